"""The local half of storage: a file appears under its name complete and on disk, or not at all.

A new file is written under a hidden temporary name, synced, and linked to its own name: unlike a
rename, a link fails where the name exists.  A process that is killed can leave a hidden ``.tmp``
file, which listings and Parquet readers pass over; nothing ever reads or removes it, as it may be
another writer's.  File systems without hard links are found out by ``Store.probe``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.store.errors import NotWritable, retry

BUFFER = 1 << 20  # bytes; a tar is read in pieces of 512 bytes


@dataclass(frozen=True)
class ObjectInfo:
    """One file or object as it is now."""

    url: str
    size: int  # bytes
    etag: str


class LocalFiles:
    """One attempt a call; ``list`` alone repeats by itself."""

    def info(self, url: str) -> ObjectInfo | None:
        try:
            stat = os.stat(url)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if os.path.isdir(url) else file_info(url, stat)

    def get(self, url: str) -> bytes:
        with open(url, "rb") as file:
            return file.read()

    def get_range(self, url: str, start: int, length: int) -> bytes:
        with open(url, "rb") as file:
            file.seek(start)
            return file.read(length)

    def create(self, url: str, data: bytes) -> ObjectInfo:
        with _written(url, data) as temporary:
            os.link(temporary, url)  # fails where the name exists; a rename would replace it
            return file_info(url, os.stat(temporary))

    def put(self, url: str, data: bytes) -> ObjectInfo:
        with _written(url, data) as temporary:
            info = file_info(url, os.stat(temporary))
            os.replace(temporary, url)
            return info

    def delete(self, url: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(url)

    def open(self, url: str) -> tuple[BinaryIO, ObjectInfo]:
        file = open(url, "rb", buffering=BUFFER)  # noqa: SIM115, the reader closes it
        return file, file_info(url, os.fstat(file.fileno()))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Files whose path begins with ``prefix``, sorted."""
        return iter(retry(lambda: [*self._walk(prefix)], prefix))

    def _walk(self, prefix: str) -> Iterator[ObjectInfo]:
        walk = os.walk(os.path.dirname(prefix), onerror=_not_missing, followlinks=True)
        paths = (os.path.join(folder, name) for folder, _, names in walk for name in names)
        for path in sorted(p for p in paths if p.startswith(prefix)):
            hidden = os.path.basename(path).startswith(".")  # a temporary file, perhaps
            if not hidden and (info := self.info(path)) is not None:
                yield info


def file_info(path: str, stat: os.stat_result) -> ObjectInfo:
    """A file as it was when it was looked at."""
    return ObjectInfo(path, stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")


def _not_missing(error: OSError) -> None:
    """os.walk swallows errors by default, and with them the files below."""
    if not isinstance(error, FileNotFoundError):
        raise error


@contextlib.contextmanager
def _written(path: str, data: bytes) -> Iterator[str]:
    """A synced temporary file beside ``path``; its folder is synced after the block."""
    folder, name = os.path.split(path)
    try:
        _make(folder)
    except (FileExistsError, NotADirectoryError) as exc:
        cause = "a file is where a directory must be"
        raise NotWritable(f"{path}: {cause}: choose another output") from exc
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync(folder)


def _make(folder: str) -> None:
    """Create a folder and those above it, and have their names on disk."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make(parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not os.path.isdir(folder):  # else another writer was quicker
            raise
    _sync(parent)


def _sync(folder: str) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
