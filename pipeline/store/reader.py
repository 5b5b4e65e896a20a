"""A sequential reader that survives a broken connection.

A tar is read once, from its first to its last byte, over minutes; the connection may break at any
point.  A failed read re-opens the object at the first byte not yet handed out, as often as
``faults.retry`` allows for one read; the object must still be the one that was opened first.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO

from pipeline.store.errors import AlreadyThere, StorageError, TransientStorage, retry
from pipeline.store.local import ObjectInfo

Opener = Callable[[str], tuple[BinaryIO, ObjectInfo]]


class Reader(io.RawIOBase, BinaryIO):  # type: ignore[misc]  # as typeshed has it for io.FileIO
    """Reads an object, normally once through; ``read(n)`` gives n bytes, fewer only at its end."""

    def __init__(self, url: str, opener: Opener, info: ObjectInfo | None) -> None:
        super().__init__()
        self.url = url
        self._opener = opener
        self.bytes_read = 0  # handed out
        self._position = 0
        self._info = info
        self._file: BinaryIO | None = retry(self._open, url)

    @property
    def size(self) -> int:
        """Bytes of the object."""
        assert self._info is not None  # _open has set it
        return self._info.size

    def read(self, size: int | None = -1) -> bytes:
        """``size`` bytes, fewer only at the end.

        Raises:
            TransientStorage: the connection kept failing.
            StorageError: the object was replaced since it was listed or opened.
        """
        left = max(0, self.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted == 0:
            return b""
        try:
            data = retry(lambda: self._read(wanted), self.url)
        except AlreadyThere as exc:
            raise self._replaced() from exc
        self.bytes_read += len(data)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Step over what is not needed; the next read asks for the new place."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = base + offset
        if self._file is not None:
            self._file.seek(self._position)
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if not self.closed and getattr(self, "_file", None) is not None:
            self._file.close()  # type: ignore[union-attr]
        super().close()

    def _read(self, wanted: int) -> bytes:
        file = self._file or self._open()
        self._file = None  # kept only if this read succeeds
        data = file.read(wanted)
        if len(data) < wanted:
            raise TransientStorage(
                f"{self.url}: the body ended at byte {self._position + len(data)} of {self.size}"
            )
        self._file = file
        return data

    def _open(self) -> BinaryIO:
        file, info = self._opener(self.url)
        if self._info is None:
            self._info = info
        if (info.etag, info.size) != (self._info.etag, self._info.size):
            file.close()
            raise self._replaced()
        file.seek(self._position)
        return file

    def _replaced(self) -> StorageError:
        return StorageError(
            f"{self.url}: was replaced while it was in use (it had ETag "
            f"{self._info.etag if self._info else '?'}): let its writer finish, then plan again"
        )
