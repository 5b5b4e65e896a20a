"""Code tables: round trip, plain readers, checksums, identical bytes."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from pipeline.archive import table
from pipeline.archive.table import Row
from pipeline.plan import Plan, ShardResult, ShardSpec, Status

PLAN = Plan(model="f" * 64, quality=4, stride=16, codewords=16, inputs=1, inputs_digest="d",
            keep=("txt", "json.label:int32"))  # fmt: skip
SPEC = ShardSpec("shard-1", "/in/shard.tar", 1000, "etag")
RESULT = ShardResult("shard-1", "/in/shard.tar", 1000, "etag", "done", {"ok": 2, "decode_error": 1},
                     512, 8, 0, "", "")  # fmt: skip
ROWS = [
    Row("a/b.c", Status.OK, None, 32, 16, 2, 1, b"\x00\x01\x02\x03\x04\x05\x06\x07", None, 7, 30.5,
        b"\x00" * 32, {"txt": "schön", "json.label": 3}),
    Row("bad", Status.DECODE_ERROR, "JPEG: truncated"),
    Row("empty", Status.OK, None, 16, 16, 1, 1, b"\x00" * 4, None, 0, kept={"json.label": None}),
]  # fmt: skip


def data(rows=ROWS, plan=PLAN) -> bytes:
    return table.write_table(rows, plan, SPEC, RESULT)


def test_rows_round_trip():
    back = list(table.read_rows(data()))
    assert [replace(r, kept={}) for r in back] == [replace(r, kept={}) for r in ROWS]
    assert back[0].kept == {"txt": "schön", "json.label": 3}
    assert back[1].kept == {"txt": None, "json.label": None}


def test_the_footer_names_plan_source_and_counts():
    footer = table.read_footer(data())
    assert footer["plan_digest"] == PLAN.digest
    assert (footer["source_url"], footer["source_etag"]) == ("/in/shard.tar", "etag")
    assert footer["rows"] == '{"decode_error": 1, "ok": 2}'


def test_only_tables_with_bitstreams_name_the_coder():
    assert "coder" not in table.read_footer(data(plan=replace(PLAN, store="codes")))
    footer = table.read_footer(data(plan=replace(PLAN, store="both")))
    assert set(json.loads(footer["coder"])) == {"stages", "constriction"}


def test_the_same_rows_give_the_same_bytes_whatever_the_timing():
    slower = replace(RESULT, seconds={"read": 9.0}, wall_s=99.0, attempt=3, rss_bytes=1)
    assert table.write_table(ROWS, PLAN, SPEC, slower) == data()


def test_payload_pages_are_plain_and_text_is_compressed():
    metadata = pq.ParquetFile(io.BytesIO(data())).metadata
    columns = {c.path_in_schema: c for c in map(metadata.row_group(0).column, range(14))}
    assert columns["codes"].compression == "UNCOMPRESSED"
    assert "RLE_DICTIONARY" not in columns["codes"].encodings
    assert columns["codes"].statistics is None and columns["key"].statistics is not None
    assert columns["error"].compression == "ZSTD"
    assert "RLE_DICTIONARY" in columns["status"].encodings


def test_many_rows_make_row_groups_of_1024():
    rows = [Row(str(i), Status.OK, codes=b"\x01" * 8) for i in range(2500)]
    metadata = pq.ParquetFile(io.BytesIO(data(rows))).metadata
    assert [metadata.row_group(g).num_rows for g in range(3)] == [1024, 1024, 452]


def test_a_flipped_bit_in_any_page_is_an_error():
    whole = data([Row(f"key-{i}", Status.OK, codes=bytes(range(64))) for i in range(50)])
    spot = whole.index(bytes(range(64))) + 40
    broken = bytearray(whole)
    broken[spot] ^= 4
    with pytest.raises(table.BadTable, match="damaged"):
        list(table.read_rows(bytes(broken)))


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_cut_and_foreign_files_are_named(cut):
    with pytest.raises(table.BadTable):
        list(table.read_rows(data()[:cut]))
    with pytest.raises(table.BadTable, match="not a code table"):
        list(table.read_rows(table.write_listing([SPEC])))


def test_listings_round_trip():
    assert table.read_listing(table.write_listing([SPEC, SPEC])) == [SPEC, SPEC]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "table.parquet"
    path.write_bytes(data())
    return str(path)


def test_plain_pyarrow_reads_it(file):
    assert pq.read_table(file)["codes"].to_pylist()[0] == ROWS[0].codes


def test_pandas_reads_it(file):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(file)
    assert list(frame["key"]) == ["a/b.c", "bad", "empty"] and frame["codes"][0] == ROWS[0].codes


def test_duckdb_reads_it(file):
    duckdb = pytest.importorskip("duckdb")
    query = f"select key, octet_length(codes) from '{file}' where status = 'ok' order by key"
    assert duckdb.sql(query).fetchall() == [("a/b.c", 8), ("empty", 4)]


def test_hugging_face_datasets_reads_it(file, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(
        "parquet", data_files=file, split="train", cache_dir=tmp_path / "c"
    )
    assert rows[0]["codes"] == ROWS[0].codes and rows[1]["status"] == "decode_error"


def test_a_table_of_an_empty_shard_stands_in_nobodys_way(file, tmp_path):
    """A row group of no rows was more than load_dataset could read: a batch size of 0."""
    empty = data([])
    assert list(table.read_rows(empty)) == [] and table.read_footer(empty)
    (tmp_path / "empty.parquet").write_bytes(empty)
    assert pq.read_table(str(tmp_path / "empty.parquet")).schema == pq.read_table(file).schema
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(
        "parquet", data_files=[str(tmp_path / "empty.parquet"), file], split="train",
        cache_dir=tmp_path / "c",
    )  # fmt: skip
    assert len(rows) == len(ROWS)
