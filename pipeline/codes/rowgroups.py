"""One row group of a code table: fetched by one range read, then decoded to codes and columns.

The range goes from the first to the last column that is needed; a gap of more than GAP bytes (the
bitstreams, where a table has both) is left out and makes two reads.  Fetching and decoding are
apart, so that threads can fetch ahead.  Only ok rows come out: the others have no codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import keep
from pipeline.archive import table
from pipeline.archive.manifest import DatasetError, Manifest
from pipeline.archive.table import BadTable
from pipeline.codes import pages
from pipeline.plan import Status
from pipeline.store.storage import Store

GAP = 64 << 10  # bytes; a request takes longer than reading over so many
FIXED = ("key", "status", "grid_w", "grid_h")
OPERATORS = ("=", "==", "!=", "<", "<=", ">", ">=", "in", "not in")  # those of pyarrow's filters
VALID = "is valid"  # ours: the column is not null

Filter = tuple[str, str, object]


class MissingColumn(DatasetError):
    """The tables have no such column."""


class NoCodes(DatasetError):
    """The tables have bitstreams alone."""


@dataclass(frozen=True)
class Query:
    """What is read of a row group."""

    columns: tuple[str, ...]  # besides the key
    where: tuple[Filter, ...]
    codes: bool = True
    checksums: bool = True


@dataclass(frozen=True)
class Fetched:
    """Bytes of a row group by their place in the table's file."""

    ranges: tuple[tuple[int, bytes], ...]

    def slice(self, start: int, length: int) -> memoryview:
        """Some of the bytes."""
        for first, data in self.ranges:
            if first <= start and start + length <= first + len(data):
                return memoryview(data)[start - first : start - first + length]
        raise OSError(f"bytes {start} to {start + length} were not fetched")


@dataclass(frozen=True)
class Block:
    """Ok rows with their codes; ``data[offset : offset + length]`` is a row's."""

    data: np.ndarray  # uint8
    offsets: np.ndarray  # [rows] int64
    lengths: np.ndarray  # [rows] int64
    grids: np.ndarray  # [rows] int64, h << 16 | w
    rows: pa.Table  # key and columns
    origin: np.ndarray  # [rows, 2] uint32: row group of the archive, row in it

    def take(self, rows: np.ndarray) -> Block:
        """Some rows, with a copy of their codes."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        pieces = [self.data[at : at + n] for at, n in zip(self.offsets[rows], lengths, strict=True)]
        data = np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
        return Block(
            data, ends - lengths, lengths, self.grids[rows], self.rows.take(rows), self.origin[rows]
        )


def check_query(manifest: Manifest, query: Query, root: str) -> None:
    """Refuse what these tables cannot give.

    Raises:
        NoCodes, MissingColumn: with the way out.
    """
    if query.codes and not manifest.plan.stores_codes:
        raise NoCodes(
            f"{root}: has bitstreams, no raw codes: run python -m jobs.transcode --archive {root} "
            "--output NEW --store codes, then python -m jobs.finish --archive NEW"
        )
    there = table.schema(manifest.plan).names
    for name in (*query.columns, *(column for column, _, _ in query.where)):
        if name not in there or name in ("codes", "bitstream"):
            kept = ", ".join(keep.parse(spec).name for spec in manifest.plan.keep) or "none"
            raise MissingColumn(
                f"{root}: no column {name!r} to read beside the codes (kept columns: {kept}): "
                "labels and the like come in with jobs.encode --keep"
            )
    for column, operator, _ in query.where:
        if operator not in (*OPERATORS, VALID):
            raise MissingColumn(f"where {column!r} {operator!r}: one of {OPERATORS} or {VALID!r}")


def fetch(store: Store, manifest: Manifest, group: int, query: Query) -> Fetched:
    """The bytes of a row group that the query needs."""
    name = manifest.names[manifest.group_table[group]]
    places = sorted(_places(manifest, group, query).values())
    merged = [list(places[0])]
    for start, end in places[1:]:
        if start - merged[-1][1] > GAP:
            merged.append([start, end])
        merged[-1][1] = max(end, merged[-1][1])
    return Fetched(tuple((a, store.get_range(name, a, b - a)) for a, b in merged))


def decode(store: Store, manifest: Manifest, group: int, query: Query, fetched: Fetched) -> Block:
    """The rows of a row group that are ok and pass the filters.

    Raises:
        BadTable: damaged, not what the manifest describes, or an ok row has no codes.
    """
    number = int(manifest.group_table[group])
    where = f"{store.url(manifest.names[number])}, row group {manifest.group_number[group]}"
    try:
        small = _columns(manifest, group, query, fetched)
        ok = pc.equal(small["status"], Status.OK.value).to_numpy().astype(bool)
        grid_h, grid_w = (small[n].to_numpy().astype(np.int64) for n in ("grid_h", "grid_w"))
        width = 1 if manifest.plan.codewords <= 256 else 2  # bytes of a code
        sizes = grid_h * grid_w * manifest.plan.quality * width
        data, offsets = np.empty(0, np.uint8), np.full(len(ok), -1, np.int64)
        if query.codes:
            begin, end = _places(manifest, group, query)["codes"]
            chunk = fetched.slice(begin, end - begin)
            data = np.frombuffer(chunk, np.uint8)
            offsets = pages.offsets(chunk, np.where(ok, sizes, -1), query.checksums)
    except pages.BadPages as error:
        culprit = _culprit(manifest, group, fetched, ok, sizes)
        raise BadTable(f"{where}: {culprit or error}; jobs.verify says more") from error
    except table.UNREADABLE as error:
        raise BadTable(f"{where}: damaged: {error}; jobs.verify says more") from error
    chosen = np.flatnonzero(ok & _passing(small, query.where))
    rows = small.select(["key", *query.columns])
    if len(chosen) < len(ok):
        rows = rows.take(chosen)
    origin = np.stack([np.full(len(chosen), group), chosen], 1).astype(np.uint32)
    return Block(
        data, offsets[chosen], sizes[chosen], (grid_h << 16 | grid_w)[chosen],
        rows, origin,
    )  # fmt: skip


def _wanted(query: Query) -> list[str]:
    """Columns for pyarrow, each once."""
    return list(dict.fromkeys([*FIXED, *query.columns, *(column for column, _, _ in query.where)]))


def _places(manifest: Manifest, group: int, query: Query) -> dict[str, tuple[int, int]]:
    """First byte and end of the column chunks that are needed, by column."""
    names = {*_wanted(query), *(("codes",) if query.codes else ())}
    metadata = manifest.metadata(int(manifest.group_table[group]))
    found = metadata.row_group(int(manifest.group_number[group]))
    places = {}
    for index in range(metadata.num_columns):
        column = found.column(index)
        if column.path_in_schema in names:
            first = column.dictionary_page_offset or column.data_page_offset
            places[column.path_in_schema] = (first, first + column.total_compressed_size)
    return places


def _columns(
    manifest: Manifest, group: int, query: Query, fetched: Fetched, *more: str
) -> pa.Table:
    metadata = manifest.metadata(int(manifest.group_table[group]))
    file = pq.ParquetFile(
        pa.PythonFile(_Ranges(fetched), "r"), metadata=metadata, page_checksum_verification=True
    )
    number = int(manifest.group_number[group])
    return file.read_row_group(number, [*_wanted(query), *more], use_threads=False)


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


def _culprit(
    manifest: Manifest, group: int, fetched: Fetched, ok: np.ndarray, sizes: np.ndarray
) -> str | None:
    """The first ok row without codes, or with those of another grid, if pyarrow can read them."""
    try:
        found = _columns(manifest, group, Query((), ()), fetched, "codes")
    except table.UNREADABLE:
        return None
    for row in np.flatnonzero(ok):
        value, key = found["codes"][int(row)].as_py(), found["key"][int(row)].as_py()
        if value is None:
            return f"key {key!r}: status ok, but its codes are null"
        if len(value) != sizes[row]:
            return f"key {key!r}: {len(value)} bytes of codes, its grid has {sizes[row]}"
    return None


class _Ranges:
    """A file of which only some bytes are there, for pyarrow."""

    closed = False

    def __init__(self, fetched: Fetched) -> None:
        self._fetched, self._at = fetched, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 2:
            first, data = self._fetched.ranges[-1]
            offset += first + len(data)
        self._at = offset + (self._at if whence == 1 else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        data = bytes(self._fetched.slice(self._at, size))
        self._at += len(data)
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        pass
