"""Reading tars in tests: a stream like a socket, and samples as dicts."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from typing import BinaryIO

from pipeline.tars.samples import Sample, ShardReader


class OneWay(io.RawIOBase):
    """A stream that cannot seek and gives at most ``most`` bytes a read, as a socket does."""

    def __init__(self, data: bytes | BinaryIO, most: int = 1 << 20) -> None:
        self._source = io.BytesIO(data) if isinstance(data, bytes) else data
        self._most = most

    def read(self, size: int = -1) -> bytes:
        return self._source.read(min(size, self._most) if size >= 0 else self._most)

    def seekable(self) -> bool:
        return False


def read(
    tar: bytes, size: int | None = None, wanted: Callable[[str], bool] | None = None, **options: int
) -> tuple[list[Sample], ShardReader]:
    reader = ShardReader(io.BytesIO(tar), len(tar) if size is None else size, wanted, **options)
    return list(reader), reader


def healthy(tar: bytes, **options) -> list[Sample]:
    found, reader = read(tar, **options)
    assert reader.complete and reader.damage == () and reader.bytes_read == len(tar)
    assert reader.samples == len(found)
    return found


def grouped(entries: list[tuple[str, bytes]]) -> dict[str, dict[str, bytes]]:
    """What `samples()` entries are as samples."""
    result: dict[str, dict[str, bytes]] = {}
    for name, data in entries:
        key, extension = name.split(".", 1)
        result.setdefault(key, {})[extension] = data
    return result


def as_dict(found: list[Sample]) -> dict[str, dict[str, bytes]]:
    assert len({s.key for s in found}) == len(found)
    return {s.key: s.members for s in found}


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))
