"""Where the values are in an uncompressed binary column of a code table.

pyarrow copies every value into an array of its own, at a third of the speed of reading the file.
The payload columns are plain and uncompressed, so each page is a row of (length, bytes) pairs that
NumPy can take as it is; only the page headers have to be parsed.  Lengths are known from the grids:
each one stored must be the one expected, or the page is refused.

Cost: a page layout that Parquet allows and our writer does not use is an error here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from isal import isal_zlib

PLAIN, DATA_PAGE = 0, 0  # of Parquet's Encoding and PageType
PREFIX = 4  # bytes: little-endian length in front of a value
STOP, TRUE, FALSE, I16, I32, I64, BINARY, STRUCT = 0, 1, 2, 4, 5, 6, 8, 12  # of Thrift
MAX_DEPTH = 8  # of nested structs; a page header has 3

Header = dict[int, "int | bytes | Header"]


class BadPages(ValueError):
    """The bytes are not the column that was expected."""


def offsets(chunk: memoryview, lengths: np.ndarray, checksums: bool) -> np.ndarray:
    """Byte position in a column chunk of each row's value; of a null row (length < 0) -1.

    Raises:
        BadPages: damaged, a row is null against expectation, or has another length.
    """
    found, row = np.full(len(lengths), -1, np.int64), 0
    stored = np.where(lengths < 0, 0, lengths + PREFIX)
    data = np.frombuffer(chunk, np.uint8)
    for rows, begin, end in _pages(chunk, checksums):
        size = stored[row : row + rows]
        if len(size) < rows:
            raise BadPages(f"the pages have more than {len(lengths)} rows")
        # The levels that say which row is null: their length, then themselves.
        first = begin + PREFIX + int.from_bytes(chunk[begin : begin + PREFIX], "little")
        nulls = _levels(chunk[begin + PREFIX : first], rows) == 0
        wrong = np.flatnonzero(nulls != (size == 0))
        if len(wrong):
            state = "null" if nulls[wrong[0]] else "not null"
            raise BadPages(f"the value of row {row + wrong[0]} is {state}")
        if first + int(size.sum()) != end:
            raise BadPages(
                f"the values of rows {row} to {row + rows} take {end - first} bytes, their grids "
                f"{int(size.sum())}"
            )
        there = np.flatnonzero(size) + row
        found[there] = (np.cumsum(size) - size + first + PREFIX)[there - row]
        row += rows
    if row != len(lengths):
        raise BadPages(f"the pages have {row} rows of {len(lengths)}")
    there = np.flatnonzero(lengths >= 0)
    prefixes = data[found[there, None] + np.arange(-PREFIX, 0)].view("<u4").ravel()
    wrong = np.flatnonzero(prefixes != lengths[there])
    if len(wrong):
        raise BadPages(f"the value of row {there[wrong[0]]} has {prefixes[wrong[0]]} bytes")
    return found


def _pages(chunk: memoryview, checksums: bool) -> Iterator[tuple[int, int, int]]:
    """Rows, first byte and end of every page's body."""
    at = 0
    while at < len(chunk):
        try:
            header, begin = _struct(chunk, at)
            body, crc, page = header[3], header.get(4), header[5]
            assert isinstance(body, int) and isinstance(page, dict)
            rows, encoding = page[1], page[2]
            assert isinstance(rows, int)
        except (IndexError, KeyError, AssertionError) as error:
            raise BadPages(f"no page header at byte {at}") from error
        if (header[1], encoding) != (DATA_PAGE, PLAIN) or header[2] != body:
            raise BadPages(f"the page at byte {at} is not plain and uncompressed")
        at = begin + body
        if body < PREFIX or rows < 0 or at > len(chunk):
            raise BadPages(f"the page at byte {begin} does not fit its column")
        if checksums and crc is not None and not _matches(chunk[begin:at], crc):
            raise BadPages(f"the page at byte {begin} does not have its checksum")
        yield rows, begin, at


def _matches(body: memoryview, crc: int | bytes | Header) -> bool:
    return isinstance(crc, int) and isal_zlib.crc32(body) == crc & 0xFFFFFFFF


def _levels(data: memoryview, rows: int) -> np.ndarray:
    """Levels of 0 and 1 in Parquet's mix of runs and packed bits."""
    parts, at, count = list[np.ndarray](), 0, 0
    try:
        while count < rows:
            head, at = _varint(data, at)
            if head & 1:
                length = head >> 1  # groups of 8 levels, a byte each
                packed = np.frombuffer(data[at : at + length], np.uint8)
                parts.append(np.unpackbits(packed, bitorder="little"))
            else:
                length = 1
                parts.append(np.full(min(head >> 1, rows - count), data[at], np.uint8))
            at += length
            count += len(parts[-1])
            if len(parts[-1]) == 0 or at > len(data):
                raise IndexError
    except IndexError as error:
        raise BadPages("the levels of a page are damaged") from error
    return np.concatenate(parts)[:rows] if parts else np.empty(0, np.uint8)


def _struct(data: memoryview, at: int, depth: int = 0) -> tuple[Header, int]:
    """A struct in Thrift's compact protocol, by field number, and where it has ended."""
    fields: Header = {}
    number = 0
    if depth > MAX_DEPTH:
        raise BadPages("a page header is nested too deep")
    while True:
        head = data[at]
        at += 1
        kind = head & 15
        if kind == STOP:
            return fields, at
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, kind, depth)


def _value(data: memoryview, at: int, kind: int, depth: int) -> tuple[int | bytes | Header, int]:
    if kind in (TRUE, FALSE):
        return kind, at
    if kind in (I16, I32, I64):
        return _integer(data, at)
    if kind == BINARY:
        length, at = _varint(data, at)
        return bytes(data[at : at + length]), at + length
    if kind == STRUCT:
        return _struct(data, at, depth + 1)
    raise BadPages(f"a page header has a field of type {kind}")


def _integer(data: memoryview, at: int) -> tuple[int, int]:
    number, at = _varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at
        if shift > 63:
            raise BadPages("a page header has a number of more than 64 bits")
