"""The archive: create-only writes and the probe of what the store can do.

Local paths and ``s3://`` (any S3 server, by AWS_ENDPOINT_URL) behind the same few calls; inputs.py
has what a job reads.  Writing is create-only and whole: the first writer wins.  The back-ends
(s3.py, files.py) hold no state, so that a Store can be sent to a worker.  Cost: an object is in
memory as a whole when it is written.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pipeline.store.errors import (
    AccessDenied,
    AlreadyThere,
    NotFound,
    NotWritable,
    StorageError,
    TransientStorage,
    retries,
    retry,
)
from pipeline.store.inputs import absolute, backend_of, expand, open_read
from pipeline.store.local import ObjectInfo
from pipeline.store.reader import Reader

__all__ = [
    "AccessDenied",
    "NotFound",
    "NotWritable",
    "ObjectInfo",
    "Reader",
    "StorageError",
    "Store",
    "TransientStorage",
    "expand",
    "open_read",
    "retries",
    "retry",
]
log = logging.getLogger(__name__)

RACES, RACERS = 4, 16  # Swift lets two of them win in 63 % of the rounds: 2 % pass unseen


class Store:
    """The objects of one archive, by names relative to its root."""

    def __init__(self, uri: str, conditional: bool = True) -> None:
        """``conditional``: what :meth:`probe` has found out; workers are told by the driver."""
        self.root = absolute(uri)
        self.conditional = conditional
        self._backend = backend_of(self.root)

    def url(self, name: str) -> str:
        """The full URL of an object."""
        return f"{self.root}/{name}"

    def get(self, name: str) -> bytes:
        """The whole object; NotFound if there is none."""
        return retry(lambda: self._backend.get(self.url(name)), self.url(name))

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes; StorageError if the object ends before."""
        if length == 0:
            return b""
        url = self.url(name)
        data = retry(lambda: self._backend.get_range(url, start, length), url)
        if len(data) != length:
            raise StorageError(f"{url}: ends before byte {start + length}: it is cut or replaced")
        return data

    def info(self, name: str) -> ObjectInfo | None:
        """Size and ETag, None if there is no such object."""
        return retry(lambda: self._backend.info(self.url(name)), self.url(name))

    def create(self, name: str, data: bytes) -> ObjectInfo | None:
        """Create an object, whole or not at all; what is there now if it has exactly these bytes.

        None means that another one came first; it is left alone.  Equal bytes count as ours: when
        a reply is lost after the server has stored the object, the repetition finds it there, and
        aiohttp repeats a PUT on a broken connection without telling us.  So writers that must tell
        each other apart have to write different bytes.
        """
        url = self.url(name)

        def write() -> ObjectInfo:
            if self.conditional:
                return self._backend.create(url, data)
            if self._backend.info(url) is not None:
                raise AlreadyThere(url)
            return self._backend.put(url, data)

        try:
            return retry(write, url)
        except AlreadyThere:
            return self.info(name) if self.get(name) == data else None

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """:meth:`create`, for those who need no more than whether these bytes are there now."""
        return self.create(name, data) is not None

    def put(self, name: str, data: bytes) -> None:
        """Write or overwrite: for summaries and manifests, which nobody else writes."""
        retry(lambda: self._backend.put(self.url(name), data), self.url(name))

    def delete(self, name: str) -> None:
        """Remove an object if it is there."""
        retry(lambda: self._backend.delete(self.url(name)), self.url(name))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose name begins with ``prefix``, at any depth, sorted."""
        yield from self._backend.list(self.url(prefix))

    def names(self, prefix: str = "") -> Iterator[str]:
        """The same, as names."""
        return (info.url[len(self.root) + 1 :] for info in self.list(prefix))

    def probe(self) -> bool:
        """Find out before any work whether the archive can be written, and how safely.

        Writes, reads back, lists and deletes small objects.  True if create-only writes hold, also
        when several writers race; else this Store asks (HEAD) and then writes (PUT), and says so
        in the log.  A process that is killed in here leaves objects named ``probe-*``, which
        nothing reads.

        Raises:
            NotWritable: with the cause and the way out.
            TransientStorage: the store does not answer.
        """
        name = f"probe-{secrets.token_hex(8)}"
        try:
            self._backend_probe(name)
        except (NotFound, AccessDenied, NotWritable) as exc:
            raise NotWritable(f"output {self.root} cannot be used: {exc}") from exc
        self.conditional = True
        self.conditional = self._create_only_holds(name)
        if not self.conditional:
            log.warning(
                "%s: no atomic create-only writes here (conditional PUT, hard links); falling back "
                "to HEAD + PUT. Do not run two jobs on this output at once.",
                self.root,
            )
        return self.conditional

    def _backend_probe(self, name: str) -> None:
        """Whether writing, reading, listing and deleting show at once what was done before."""
        url = self.url(name)
        retry(lambda: self._backend.put(url, b"probe, first"), url)
        try:
            written = retry(lambda: self._backend.put(url, b"probe"), url)
            if self.get(name) != b"probe" or list(self.list(name)) != [written]:
                raise NotWritable(
                    f"{url}: what was written does not come back at once, or with another ETag: "
                    "this store, or a cache before it, shows old states; choose another output"
                )
        finally:
            self._remove(name)
        if name in self.names(name):
            log.warning("%s is still listed after it was deleted", url)

    def _create_only_holds(self, name: str) -> bool:
        names = [f"{name}-{race}" for race in range(RACES)]
        try:
            return all(self._race(one) for one in names)
        except TransientStorage:
            raise
        except StorageError as exc:
            log.warning("create-only write refused: %s", exc)
            return False
        finally:
            for one in names:
                self._remove(one)

    def _race(self, name: str) -> bool:
        """Whether one of several simultaneous writers wins, and the object is the winner's."""
        start = threading.Barrier(RACERS)

        def write(data: bytes) -> bool:
            start.wait()
            return self.put_if_absent(name, data)

        bodies = [b"%d" % i for i in range(RACERS)]
        with ThreadPoolExecutor(RACERS) as pool:
            won = list(pool.map(write, bodies))
        return won.count(True) == 1 and self.get(name) == bodies[won.index(True)]

    def _remove(self, name: str) -> None:
        try:
            self.delete(name)
        except AccessDenied as exc:
            log.warning("the small object %s stays: %s", self.url(name), exc)
