"""``CodeTable``: by number and by key, local and on S3; what it refuses; what it keeps."""

from __future__ import annotations

import json
import pickle
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.archive import manifest
from pipeline.archive.table import BadTable, write_listing
from pipeline.codes.by_number import (
    CodeTable,
    DatasetError,
    MissingColumn,
    MissingManifest,
    MissingValue,
    NoCodes,
)
from pipeline.plan import PlanMismatch, Status
from pipeline.store.storage import NotFound, Store
from tests.code_archives import make

GRIDS = ((2, 2), (3, 2), (1, 4))


def test_every_image_by_number_is_the_one_that_was_written(root):
    made = make(root, [1100, 3, 0, 40], GRIDS)
    table = CodeTable(root, columns=["txt"])
    assert len(table) == len(made.ok)
    for number in [0, 1, 900, 1000, len(table) - 1, *range(0, len(table), 53)]:
        row, found = made.ok[number], table[number]
        codes = np.frombuffer(row.codes, np.uint8).reshape(row.grid_h, row.grid_w, 3)
        assert found["key"] == row.key and found["txt"] == row.kept["txt"]
        assert np.array_equal(found["codes"].numpy(), codes)
    assert table[-1]["key"] == made.ok[-1].key
    for outside in (len(table), -len(table) - 1):
        with pytest.raises(IndexError):
            table[outside]


def test_by_key_sorted_or_not_failed_images_have_none(root):
    def scramble(row, number):
        return replace(row, key=f"{zlib.crc32(row.key.encode()):08x}") if number < 60 else row

    made = make(root, [30, 30, 1100], change=scramble)
    table = CodeTable(root)
    for row in made.rows[::17]:
        if row.status is Status.OK:
            assert table.get(row.key)["codes"].numpy().tobytes() == row.codes
        else:
            with pytest.raises(KeyError, match="no ok image"):
                table.get(row.key)
    with pytest.raises(KeyError):
        table.get("nobody")


def test_more_than_256_codewords_are_uint16(tmp_path):
    made = make(str(tmp_path / "a"), [20], ((2, 3),), codewords=1000)
    codes = CodeTable(str(tmp_path / "a"))[3]["codes"]
    assert codes.dtype == torch.uint16 and codes.shape == (2, 3, 3)
    assert codes.numpy().tobytes() == made.ok[3].codes


def test_a_row_group_is_one_range_read_and_no_footer_is_opened(tmp_path, monkeypatch):
    make(str(tmp_path / "a"), [2500])
    table = CodeTable(str(tmp_path / "a"), columns=["json.label"])
    table[0]  # which of its rows are ok
    table._cache.clear()
    reads = []
    whole = Store.get_range
    monkeypatch.setattr(Store, "get_range", lambda s, *a: reads.append(a) or whole(s, *a))
    monkeypatch.setattr(Store, "get", None)
    for number in (0, 5, 800, 1200, 7):
        table[number]
    assert len(reads) == 2


def test_no_more_than_the_cache_is_kept(tmp_path):
    make(str(tmp_path / "a"), [4200])
    one = CodeTable(str(tmp_path / "a"), cache_bytes=30_000)
    for number in range(0, len(one), 100):
        one[number]
    assert 0 < one._cached <= 30_000 and 1 <= len(one._cache) < 5


def test_bitstreams_beside_the_codes_are_not_read(tmp_path, monkeypatch):
    make(str(tmp_path / "a"), [60], store="both",
         change=lambda row, n: replace(row, bitstream=b"x" * 9000))  # fmt: skip
    sizes = []
    whole = Store.get_range
    monkeypatch.setattr(Store, "get_range", lambda s, *a: sizes.append(a[2]) or whole(s, *a))
    assert CodeTable(str(tmp_path / "a"), columns=["txt"])[0]["key"] == "000000"
    assert sum(sizes) < 60_000


def test_it_works_in_a_dataloader_of_spawned_processes(tmp_path):
    made = make(str(tmp_path / "a"), [50])
    table = CodeTable(str(tmp_path / "a"), columns=["json.label"])
    assert pickle.loads(pickle.dumps(table))[3]["key"] == table[3]["key"]
    batches = list(DataLoader(table, 10))
    assert sum((b["key"] for b in batches), []) == [row.key for row in made.ok]
    assert batches[0]["codes"].shape == (10, 2, 2, 3)


def test_it_is_used_as_a_list_and_as_a_dictionary(tmp_path):
    made = make(str(tmp_path / "a"), [50])
    table = CodeTable(tmp_path / "a", columns="txt")
    keys = [row.key for row in made.ok]
    assert [one["key"] for one in table] == keys
    assert [one["key"] for one in table[3:20:4]] == keys[3:20:4]
    assert [one["key"] for one in table[-2:]] == keys[-2:] and table[40:30] == []
    assert table[np.int64(2)]["key"] == table[torch.tensor(2)]["key"] == keys[2]
    assert keys[7] in table and "nobody" not in table and made.rows[5].key not in table
    assert 7 not in table
    assert table[keys[7]]["txt"] == table.get(keys[7])["txt"] == made.ok[7].kept["txt"]
    with pytest.raises(KeyError, match="no ok image has the key 'nobody'"):
        table["nobody"]
    with pytest.raises(TypeError):
        table[1.5]


# What is refused ---------------------------------------------------------------------------------


def test_without_manifest_it_names_the_command(tmp_path):
    make(str(tmp_path / "a"), [5], finish=False)
    with pytest.raises(MissingManifest, match=f"python -m jobs.finish --archive {tmp_path}/a"):
        CodeTable(str(tmp_path / "a"))
    with pytest.raises(NotFound, match="plan.json"):
        CodeTable(str(tmp_path))


def test_manifests_of_another_plan_damaged_or_old_are_refused(tmp_path):
    root = tmp_path / "a"
    made = make(str(root), [5])
    good = (root / "manifest.parquet").read_bytes()
    plan = json.loads((root / "plan.json").read_bytes())
    (root / "plan.json").write_text(json.dumps({**plan, "model": "0" * 64}))
    with pytest.raises(MissingManifest, match="another model"):
        CodeTable(str(root))
    (root / "plan.json").write_text(json.dumps({**plan, "format_version": 99}))
    with pytest.raises(PlanMismatch, match="newer than this software"):
        CodeTable(str(root))
    (root / "plan.json").write_bytes(made.plan.to_json())
    for broken in (good[:-5], good[:40] + b"\xff" * 30 + good[70:], b""):
        (root / "manifest.parquet").write_bytes(broken)
        with pytest.raises(BadTable, match="jobs.finish"):
            CodeTable(str(root))
    (root / "manifest.parquet").write_bytes(write_listing([]))
    with pytest.raises(MissingManifest, match="older version"):
        CodeTable(str(root))


def test_a_table_of_another_plan_does_not_enter_a_manifest(tmp_path):
    made, other = make(str(tmp_path / "a"), [5]), make(str(tmp_path / "b"), [5], quality=2)
    name = f"codes/{made.results[0].shard_id}.parquet"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    size = (tmp_path / "a" / name).stat().st_size
    with pytest.raises(BadTable, match=f"made by plan {other.plan.digest[:12]}"):
        list(manifest.describe(made.store, made.plan, [replace(made.results[0], table_bytes=size)]))
    (tmp_path / "a" / name).write_bytes(b"PAR1")
    with pytest.raises(BadTable, match="cut or replaced"):
        list(manifest.describe(made.store, made.plan, [replace(made.results[0], table_bytes=4)]))


def test_bitstreams_alone_are_sent_to_transcode(tmp_path):
    make(str(tmp_path / "a"), [5], store="bitstream")
    with pytest.raises(NoCodes, match="python -m jobs.transcode .* --store codes"):
        CodeTable(str(tmp_path / "a"))


def test_missing_columns_and_missing_labels_are_named(tmp_path):
    make(str(tmp_path / "a"), [5], change=lambda row, n: replace(
        row, kept={} if n == 3 else row.kept))  # fmt: skip
    for column in ("json.class", "codes"):
        with pytest.raises(MissingColumn, match="kept columns: txt, json.label"):
            CodeTable(str(tmp_path / "a"), columns=[column])
    table = CodeTable(str(tmp_path / "a"), columns=["json.label"])
    assert table[2]["json.label"] == 2
    with pytest.raises(MissingValue, match="'000003'.*is null.*'is valid'"):
        table[3]
    assert issubclass(MissingValue, DatasetError)


def test_null_codes_and_codes_of_another_grid_name_the_key(tmp_path):
    for name, codes, message in (("a", None, "codes are null"), ("b", b"12", "2 bytes of codes")):
        make(str(tmp_path / name), [20],
             change=lambda row, n, c=codes: replace(row, codes=c) if n == 9 else row)  # fmt: skip
        with pytest.raises(BadTable, match=f"'000009'.*{message}"):
            CodeTable(str(tmp_path / name))[0]


def test_a_flipped_bit_in_the_codes_is_an_error_unless_told_otherwise(tmp_path):
    made = make(str(tmp_path / "a"), [20])
    path = Path(tmp_path, "a", "codes", f"{made.results[0].shard_id}.parquet")
    data = bytearray(path.read_bytes())
    data[data.index(made.ok[7].codes) + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadTable, match="checksum.*jobs.verify"):
        CodeTable(str(tmp_path / "a"))[0]
    assert CodeTable(str(tmp_path / "a"), checksums=False)[0]["key"] == "000000"


def test_a_flipped_byte_anywhere_in_a_row_group_is_noticed_or_harmless(tmp_path):
    """The page headers and levels too, which have no checksum of their own."""
    made = make(str(tmp_path / "a"), [40], GRIDS)
    path = Path(tmp_path, "a", "codes", f"{made.results[0].shard_id}.parquet")
    good, noticed = path.read_bytes(), 0
    places = pq.read_metadata(path).row_group(0)
    chunks = [places.column(n) for n in range(places.num_columns)]
    (chunk,) = (chunk for chunk in chunks if chunk.path_in_schema == "codes")
    first, size = chunk.data_page_offset, chunk.total_compressed_size
    for at in range(first, first + size):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x11]) + good[at + 1 :])
        try:
            found = CodeTable(tmp_path / "a")[:]
        except BadTable as error:
            assert made.results[0].shard_id in str(error)
            noticed += 1
        else:
            assert [one["codes"].numpy().tobytes() for one in found] == [r.codes for r in made.ok]
    assert noticed > 0.9 * size


def test_a_table_replaced_after_the_manifest_is_an_error_not_other_codes(tmp_path):
    made = make(str(tmp_path / "a"), [20, 1100])
    first, second = (tmp_path / "a/codes" / f"{r.shard_id}.parquet" for r in made.results)
    first.write_bytes(second.read_bytes())
    with pytest.raises(BadTable):
        CodeTable(str(tmp_path / "a"))[0]
