"""One row group of a code table: read by one range read, to codes and columns.

The range goes from the first to the last column that is needed; a gap of more than GAP bytes (the
bitstreams, where a table has both) is left out and makes two reads.  pyarrow decodes the range and
verifies the checksums of its pages; the codes stay in the buffer where pyarrow has put them.  Any
thread may read, because each opens a Parquet file of its own over the bytes.  Only ok rows come
out: the others have no codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.archive import table
from pipeline.archive.manifest import Manifest
from pipeline.archive.table import BadTable
from pipeline.codes.query import GRID, VALID, Filter, Query
from pipeline.plan import Status
from pipeline.store.storage import Store

GAP = 64 << 10  # bytes; a request takes longer than reading over so many


@dataclass(frozen=True)
class GroupRows:
    """Ok rows with their codes; ``data[offset : offset + length]`` is a row's."""

    data: np.ndarray  # uint8
    offsets: np.ndarray  # [rows] int64
    lengths: np.ndarray  # [rows] int64
    grids: np.ndarray  # [rows] int64, h << 16 | w
    rows: pa.Table  # key and columns
    origin: np.ndarray  # [rows, 2] uint32: row group of the archive, row in it

    def slice(self, first: int, end: int) -> GroupRows:
        """Neighbours, without a copy."""
        if first <= 0 and end >= len(self.grids):
            return self
        part = slice(first, end)
        rows = self.rows.slice(first, max(0, end - first))
        return GroupRows(
            self.data, self.offsets[part], self.lengths[part], self.grids[part], rows,
            self.origin[part],
        )  # fmt: skip

    def take(self, rows: np.ndarray) -> GroupRows:
        """Some rows, with a copy of their codes."""
        lengths = self.lengths[rows]
        starts = np.cumsum(lengths) - lengths
        data = np.empty(int(lengths.sum()), np.uint8)
        for length in np.unique(lengths):  # one for each size of grid
            some = np.flatnonzero(lengths == length)
            found = windows(self.data, int(length))[self.offsets[rows[some]]]
            windows(data, int(length))[starts[some]] = found
        return GroupRows(
            data, starts, lengths, self.grids[rows], self.rows.take(rows), self.origin[rows]
        )


def windows(data: np.ndarray, length: int) -> np.ndarray:
    """[bytes, length] view of the bytes that follow each byte."""
    return np.lib.stride_tricks.as_strided(data, (len(data) - length + 1, length), (1, 1))


def read(store: Store, manifest: Manifest, group: int, query: Query) -> GroupRows:
    """The rows of a row group that are ok and pass the filters.

    Raises:
        BadTable: damaged, not what the manifest describes, or an ok row has no codes.
    """
    where = _where(store, manifest, group)
    found = _columns(store, manifest, group, query.names, query.checksums)
    try:
        ok = _ok(found)
        chosen = np.flatnonzero(ok & _passing(found, query.where))
        grids = _grids(found)
        width = 1 if manifest.plan.codewords <= 256 else 2  # bytes of a code
        sizes = (grids >> 16) * (grids & 0xFFFF) * manifest.plan.quality * width
        data, offsets = np.empty(0, np.uint8), np.zeros(len(ok), np.int64)
        if query.codes:
            wrong = _wrong_codes(found, ok, sizes)
            if wrong:
                raise BadTable(f"{where}: {wrong}; jobs.verify says more")
            data, offsets = _values(found["codes"])
    except table.UNREADABLE as error:
        raise BadTable(f"{where}: damaged: {error}; jobs.verify says more") from error
    rows = found.select(list(dict.fromkeys(["key", *query.columns])))
    if len(chosen) < len(ok):
        rows = rows.take(chosen)
    origin = np.stack([np.full(len(chosen), group), chosen], 1).astype(np.uint32)
    return GroupRows(data, offsets[chosen], sizes[chosen], grids[chosen], rows, origin)


def read_grids(store: Store, manifest: Manifest, group: int, query: Query) -> np.ndarray:
    """[rows] uint32, h << 16 | w, of the rows that are ok and pass the filters.

    Raises:
        BadTable: damaged, or not what the manifest describes.
    """
    names = list(dict.fromkeys([*GRID, *(column for column, _, _ in query.where)]))
    found = _columns(store, manifest, group, names, query.checksums)
    try:
        return _grids(found)[_ok(found) & _passing(found, query.where)].astype(np.uint32)
    except table.UNREADABLE as error:
        where = _where(store, manifest, group)
        raise BadTable(f"{where}: damaged: {error}; jobs.verify says more") from error


def _where(store: Store, manifest: Manifest, group: int) -> str:
    name = manifest.names[int(manifest.group_table[group])]
    return f"{store.url(name)}, row group {manifest.group_number[group]}"


def _ok(found: pa.Table) -> np.ndarray:
    return pc.equal(found["status"], Status.OK.value).to_numpy().astype(bool)


def _grids(found: pa.Table) -> np.ndarray:
    grid_h, grid_w = (found[name].to_numpy().astype(np.int64) for name in ("grid_h", "grid_w"))
    return grid_h << 16 | grid_w


def _values(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a binary column where pyarrow has put them, and where each row's begin."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array)]
    return np.frombuffer(data or b"", np.uint8), starts.astype(np.int64)


def _wrong_codes(found: pa.Table, ok: np.ndarray, sizes: np.ndarray) -> str | None:
    """The first ok row without codes, or with those of another grid."""
    lengths = pc.fill_null(pc.binary_length(found["codes"]), -1).to_numpy()
    wrong = np.flatnonzero(ok & (lengths != sizes))
    if len(wrong) == 0:
        return None
    row = int(wrong[0])
    key, length = found["key"][row].as_py(), int(lengths[row])
    if length < 0:
        return f"key {key!r}: status ok, but its codes are null"
    return f"key {key!r}: {length} bytes of codes, its grid has {sizes[row]}"


def _columns(
    store: Store, manifest: Manifest, group: int, names: list[str], checksums: bool
) -> pa.Table:
    """Some columns of all rows, the failed ones included."""
    number = int(manifest.group_table[group])
    places = _places(manifest, group, names)
    merged = [list(places[0])]
    for start, end in places[1:]:
        if start - merged[-1][1] > GAP:
            merged.append([start, end])
        merged[-1][1] = max(end, merged[-1][1])
    name = manifest.names[number]
    fetched = [(a, store.get_range(name, a, b - a)) for a, b in merged]
    try:
        file = pq.ParquetFile(
            pa.PythonFile(_Ranges(fetched), "r"),
            metadata=manifest.metadata(number),
            page_checksum_verification=checksums,
        )
        return file.read_row_group(int(manifest.group_number[group]), names, use_threads=False)
    except table.UNREADABLE as error:
        where = _where(store, manifest, group)
        raise BadTable(f"{where}: damaged: {error}; jobs.verify says more") from error


def _places(manifest: Manifest, group: int, names: Iterable[str]) -> list[tuple[int, int]]:
    """First byte and end of the column chunks that are needed, in the order of the file."""
    metadata = manifest.metadata(int(manifest.group_table[group]))
    found, wanted = metadata.row_group(int(manifest.group_number[group])), set(names)
    places = []
    for index in range(metadata.num_columns):
        column = found.column(index)
        if column.path_in_schema in wanted:
            first = column.dictionary_page_offset or column.data_page_offset
            places.append((first, first + column.total_compressed_size))
    return sorted(places)


def _passing(small: pa.Table, where: Sequence[Filter]) -> np.ndarray:
    """Which rows pass all filters; a null passes none but ``is valid`` False."""
    passing = np.ones(small.num_rows, bool)
    for column, operator, value in where:
        if operator == VALID:
            found = pc.equal(pc.is_valid(small[column]), bool(value))
        else:
            numbered = pa.table({"row": np.arange(small.num_rows), column: small[column]})
            rows = numbered.filter(pq.filters_to_expression([(column, operator, value)]))["row"]
            passing &= np.isin(np.arange(small.num_rows), rows.to_numpy())
            continue
        passing &= found.to_numpy().astype(bool)
    return passing


class _Ranges:
    """A file of which only some bytes are there, for pyarrow."""

    closed = False

    def __init__(self, ranges: Sequence[tuple[int, bytes]]) -> None:
        """``ranges``: first byte in the file, and the bytes."""
        self._ranges, self._at = ranges, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 2:
            first, data = self._ranges[-1]
            offset += first + len(data)
        self._at = offset + (self._at if whence == 1 else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def read_buffer(self, size: int) -> memoryview:
        """What pyarrow prefers to ``read``, because it need not copy."""
        start, self._at = self._at, self._at + size
        for first, data in self._ranges:
            if first <= start and start + size <= first + len(data):
                return memoryview(data)[start - first : start - first + size]
        raise OSError(f"bytes {start} to {start + size} were not fetched")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        pass
