"""All access to files and objects: expand inputs, read a source, keep an archive.

Local paths and ``s3://`` (any S3 server, by AWS_ENDPOINT_URL) behind the same few calls.  Writing
is create-only and in one request: a store has the whole object or nothing, and the first writer
wins.  The two back-ends hold no state, so that a Store can be sent to a worker.  Cost: an object is
in memory as a whole when it is written, and must be below 5 GiB, the limit of one S3 PUT.
Never use any of this across a fork: s3fs then deadlocks.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import fsspec

from pipeline import patterns
from pipeline.faults import (
    AccessDenied,
    AlreadyThere,
    NotFound,
    NotWritable,
    StorageError,
    TransientStorage,
    retries,
    retry,
)
from pipeline.files import LocalFiles, ObjectInfo
from pipeline.reader import Reader

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

READ_BLOCK = 5 << 20  # bytes of one ranged GET; smaller ones are bound by latency
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
THREADS = 32  # concurrent small requests
LIST_FROM = 9  # named objects from which on a listing is cheaper than a HEAD each
LIST_SLACK = 100  # give a listing up when it is this many times longer than what is looked for
RACES, RACERS = 4, 16  # Swift lets two of them win in 63 % of the rounds: 2 % pass unseen


@functools.lru_cache(maxsize=4)
def _connect(*_environment: object) -> Any:
    """One connection pool per process and set of credentials; requests are repeated by us alone."""
    connection = fsspec.filesystem(
        "s3",
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "max_pool_connections": 2 * THREADS,
            "retries": {"mode": "standard", "total_max_attempts": 1},
        },
    )
    connection.retries = 1
    return connection


def _s3fs() -> Any:
    """The s3fs file system of this process and environment."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")
    return _connect(os.getpid(), *(os.environ.get(name) for name in names))


class _S3:
    """One request a call; ``list`` and ``glob`` alone repeat by themselves, page by page."""

    def info(self, url: str) -> ObjectInfo | None:
        bucket, key, _ = _s3fs().split_path(url)
        if not key:
            return None
        try:
            head = _s3fs().call_s3("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return None
        return ObjectInfo(url, head["ContentLength"], head["ETag"].strip('"'))

    def get(self, url: str) -> bytes:
        return _s3fs().cat_file(url, max_concurrency=1)  # more would ask for the size first

    def get_range(self, url: str, start: int, length: int) -> bytes:
        return _s3fs().cat_file(url, start=start, end=start + length)

    def create(self, url: str, data: bytes) -> None:
        self.put(url, data, mode="create")

    def put(self, url: str, data: bytes, mode: str = "overwrite") -> None:
        # In one part, whatever its size: Ceph ignores If-None-Match on multipart completion.
        _s3fs().pipe_file(url, data, mode=mode, chunksize=max(len(data), READ_BLOCK))

    def delete(self, url: str) -> None:
        _s3fs().rm_file(url)

    def open(self, url: str) -> tuple[BinaryIO, ObjectInfo]:
        file = _s3fs().open(url, "rb", block_size=READ_BLOCK, cache_type="readahead")
        details = file.details  # from a HEAD; each GET then carries its ETag in If-Match
        if details["type"] != "file":
            raise FileNotFoundError(url)
        return file, ObjectInfo(url, details["size"], details["ETag"].strip('"'))

    def list(self, prefix: str, delimiter: str = "") -> Iterator[ObjectInfo]:
        bucket, key, _ = _s3fs().split_path(prefix)
        if "/" not in prefix.removeprefix("s3://"):
            raise NotFound(f"{prefix}: a bucket name without '/' cannot be a prefix")
        request = {"Bucket": bucket, "Prefix": key, "Delimiter": delimiter}
        while True:
            call = functools.partial(_s3fs().call_s3, "list_objects_v2", **request)
            page = retry(call, prefix)
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):  # a console's placeholder for a folder
                    url = f"s3://{bucket}/{entry['Key']}"
                    yield ObjectInfo(url, entry["Size"], entry["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def glob(self, pattern: str) -> Iterator[ObjectInfo]:
        prefix = patterns.static_prefix(pattern)
        deep = "/" in pattern[len(prefix) :] or "**" in pattern
        regex = patterns.glob_regex(pattern)
        found = self.list(prefix, delimiter="" if deep else "/")
        return (info for info in found if regex.fullmatch(info.url))


def absolute(url: str) -> str:
    """The one spelling of a URL: ``s3://bucket/key`` or an absolute path, no slash at the end.

    Raises:
        StorageError: another scheme.
    """
    if url.startswith("s3://"):
        return "s3://" + url[5:].rstrip("/")
    path = url.removeprefix("file://")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise StorageError(
            f"{url}: no such storage here: give a local path, file:// or s3:// "
            "(for other clouds set AWS_ENDPOINT_URL to their S3 endpoint)"
        )
    return os.path.abspath(path)


def _backend(url: str) -> _S3 | LocalFiles:
    return _S3() if url.startswith("s3://") else LocalFiles()


# Inputs ------------------------------------------------------------------------------------------


def expand(inputs: Sequence[str]) -> list[ObjectInfo]:
    """Every shard that the inputs name, sorted by URL, each once.

    An input is a path or URL with braces or glob, a directory or prefix (all ``*.tar`` below it),
    or ``@file``, a list of such inputs, one a line.

    Raises:
        NotFound: an input, or one of the names it stands for, matches nothing.
    """
    origin = {absolute(n): text for text in _entries(inputs) for n in patterns.braces(text)}
    if not origin:
        raise NotFound(f"{' '.join(inputs) or 'the input'}: names no shard: check --input")
    found = _listed([name for name in origin if not patterns.has_magic(name)])
    with ThreadPoolExecutor(THREADS) as pool:
        rest = [name for name in origin if name not in found]
        for infos in pool.map(lambda name: _resolve(name, origin[name]), rest):
            found.update((info.url, info) for info in infos)
    return [found[url] for url in sorted(found)]


def _entries(inputs: Iterable[str]) -> Iterator[str]:
    """The inputs, with ``@file`` replaced by the lines of that file."""
    for text in inputs:
        if not text.startswith("@"):
            yield text
            continue
        url = absolute(text[1:])
        lines = retry(functools.partial(_backend(url).get, url), url).decode().splitlines()
        yield from (line for line in map(str.strip, lines) if line and line[0] != "#")


def _listed(names: list[str]) -> dict[str, ObjectInfo]:
    """Those of many S3 names that a listing of their common prefix shows.

    The listing is given up when the prefix holds far more than what is looked for.
    """
    found: dict[str, ObjectInfo] = {}
    buckets: dict[str, list[str]] = {}
    for name in names:
        if re.match("s3://[^/]+/", name):
            buckets.setdefault(name.split("/")[2], []).append(name)
    for group in buckets.values():
        if len(group) < LIST_FROM:
            continue
        listing = _S3().list(os.path.commonprefix(group))
        wanted = set(group)
        shown = itertools.islice(listing, LIST_SLACK * len(group))
        found.update((info.url, info) for info in shown if info.url in wanted)
    return found


def _resolve(name: str, pattern: str) -> list[ObjectInfo]:
    """The objects that one name without braces stands for; at least one."""
    backend = _backend(name)
    info = retry(lambda: backend.info(name), name)
    if info is not None:
        return [info]
    if patterns.has_magic(name):
        found = list(backend.glob(name))
        hint = "matches no object"
    else:
        below = list(backend.list(name + "/"))
        found = [info for info in below if info.url.endswith(".tar")]
        hint = "does not exist" if not below else "holds no *.tar"
    if not found:
        raise NotFound(f"{name}: {hint} (input {pattern!r}): check the spelling and the listing")
    return found


def open_read(url: str, info: ObjectInfo | None = None) -> Reader:
    """A sequential reader of an object; with ``info``, of exactly the version that was listed."""
    url = absolute(url)
    return Reader(url, _backend(url).open, info)


# An archive --------------------------------------------------------------------------------------


class Store:
    """The objects of one archive, by names relative to its root."""

    def __init__(self, uri: str, conditional: bool = True) -> None:
        """``conditional``: what :meth:`probe` has found out; workers are told by the driver."""
        self.root = absolute(uri)
        self.conditional = conditional
        self._backend = _backend(self.root)

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

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create an object, whole or not at all; True if it is there now with exactly these bytes.

        False means that another one came first; it is left alone.  Equal bytes count as ours: when
        a reply is lost after the server has stored the object, the repetition finds it there, and
        aiohttp repeats a PUT on a broken connection without telling us.  So writers that must tell
        each other apart have to write different bytes.
        """
        url = self.url(name)

        def create() -> None:
            if self.conditional:
                self._backend.create(url, data)
            elif self._backend.info(url) is not None:
                raise AlreadyThere(url)
            else:
                self._backend.put(url, data)

        try:
            retry(create, url)
        except AlreadyThere:
            return self.get(name) == data
        return True

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
        when several writers race; else this Store checks and then writes, and says so in the log.

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
                "%s: no atomic create-only writes here; checking before each write instead. "
                "Do not run two jobs on this output at once.",
                self.root,
            )
        return self.conditional

    def _backend_probe(self, name: str) -> None:
        self.put(name, b"probe")
        try:
            if self.get(name) != b"probe" or name not in self.names(name):
                raise NotWritable(f"{self.url(name)}: what was written does not come back")
        finally:
            self._remove(name)

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
