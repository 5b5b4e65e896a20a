"""Places of values in pages, against pyarrow, and damage to every byte of a page header."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codes import pages

values = st.lists(st.none() | st.binary(max_size=40), min_size=1, max_size=200)


def column(rows: list[bytes | None], **options) -> bytes:
    sink = io.BytesIO()
    ours = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    small = {"data_page_size": 300, "write_batch_size": 8, "write_page_checksum": True}
    column = pa.table({"c": pa.array(rows, pa.binary())})
    pq.write_table(column, sink, **{**ours, **small, **options})
    found = pq.read_metadata(sink).row_group(0).column(0)
    start = found.dictionary_page_offset or found.data_page_offset
    return sink.getvalue()[start : start + found.total_compressed_size]


def lengths(rows: list[bytes | None]) -> np.ndarray:
    return np.array([-1 if row is None else len(row) for row in rows], np.int64)


@given(values)
@settings(max_examples=25, deadline=None)
def test_every_value_is_found_whatever_is_null(rows):
    chunk = column(rows)
    found = pages.offsets(memoryview(chunk), lengths(rows), True)
    back = [None if n < 0 else chunk[n : n + len(r)] for n, r in zip(found, rows, strict=True)]
    assert back == rows


def test_other_lengths_than_expected_are_refused():
    rows = [b"abc", None, b"defg", b"xy"]
    chunk = memoryview(column(rows))
    for wrong in ([3, -1, 4], [3, -1, 4, 3], [3, 4, -1, 2], [4, -1, 3, 2], [3, -1, 4, 2, -1]):
        with pytest.raises(pages.BadPages):
            pages.offsets(chunk, np.array(wrong), True)


@pytest.mark.parametrize(
    "options", [{"compression": "zstd"}, {"use_dictionary": True}, {"data_page_version": "2.0"}]
)
def test_pages_that_our_writer_does_not_make_are_refused(options):
    rows = [b"abcd" * 20] * 50
    with pytest.raises(pages.BadPages):
        pages.offsets(memoryview(column(rows, **options)), lengths(rows), True)


def test_a_flipped_byte_anywhere_is_noticed_or_harmless():
    rows = [bytes([i]) * 20 for i in range(30)]
    chunk, noticed = column(rows), 0
    for at in range(len(chunk)):
        broken = bytearray(chunk)
        broken[at] ^= 0x11
        try:
            found = pages.offsets(memoryview(bytes(broken)), lengths(rows), True)
        except pages.BadPages:
            noticed += 1
        else:
            assert [bytes(broken[n : n + 20]) for n in found] == rows
    assert noticed > 600


def test_cut_pages_are_refused():
    rows = [bytes([i]) * 20 for i in range(30)]
    chunk = column(rows)
    for end in range(len(chunk)):
        with pytest.raises(pages.BadPages):
            pages.offsets(memoryview(chunk[:end]), lengths(rows), True)
