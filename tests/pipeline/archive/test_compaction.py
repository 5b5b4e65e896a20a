"""Packed tables: the same rows for readers, nothing changed for the archive."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from pipeline.archive import compaction, manifest, table
from pipeline.archive.table import BadTable
from pipeline.codes.by_number import CodeTable
from tests.code_archives import make

GRIDS = ((2, 2), (3, 2))
SIZES = [30, 0, 50, 1100, 40]


def pack(made, target: int) -> list[manifest.Entry]:
    entries = list(compaction.pack(made.store, made.plan, made.results, target))
    made.store.put(manifest.MANIFEST, manifest.write(entries, made.plan))
    return entries


def test_readers_see_the_same_rows_in_the_same_order(root):
    made = make(root, SIZES, GRIDS)
    before = {name: made.store.get(name) for name in made.store.names("codes/")}
    plain = CodeTable(root, columns=["txt"])
    entries = pack(made, sum(result.table_bytes for result in made.results[:3]))
    assert [len(e.shards) for e in entries] == [3, 1, 1]
    packed = CodeTable(root, columns=["txt"])
    assert len(packed) == len(plain) == len(made.ok)
    for number in range(0, len(packed), 97):
        assert packed[number]["key"] == plain[number]["key"] == made.ok[number].key
        assert packed[number]["codes"].equal(plain[number]["codes"])
        assert packed[number]["txt"] == plain[number]["txt"]
    assert before == {name: made.store.get(name) for name in made.store.names("codes/")}
    own = [row for name in sorted(before)[:3] for row in table.read_rows(before[name])]
    assert list(table.read_rows(made.store.get(entries[0].name))) == own


def test_the_same_again_writes_nothing_and_after_a_crash_only_what_is_missing(tmp_path):
    made = make(str(tmp_path / "a"), [20] * 9)
    target = int(3.3 * made.results[0].table_bytes)
    entries = pack(made, target)
    assert [len(e.shards) for e in entries] == [3, 3, 3]
    stamps = {e.name: (tmp_path / "a" / e.name).stat().st_mtime_ns for e in entries}
    (tmp_path / "a" / entries[1].name).unlink()
    assert pack(made, target) == entries
    for entry in (entries[0], entries[2]):
        assert (tmp_path / "a" / entry.name).stat().st_mtime_ns == stamps[entry.name]
    found = pq.read_table(tmp_path / "a" / "manifest.parquet").to_pylist()
    assert [(row["shards"], row["rows"], row["shard_id"]) for row in found] == [(3, 60, None)] * 3


def test_without_target_the_manifest_goes_back_to_the_archives_own_tables(tmp_path):
    made = make(str(tmp_path / "a"), [20] * 3)
    own = made.store.get(manifest.MANIFEST)
    pack(made, 1 << 20)
    assert made.store.get(manifest.MANIFEST) != own
    made.finish()
    assert made.store.get(manifest.MANIFEST) == own


def test_a_damaged_outcome_stays_visible(tmp_path):
    made = make(str(tmp_path / "a"), [20] * 2)
    results = [made.results[0], replace(made.results[1], outcome="damaged")]
    entries = compaction.pack(made.store, made.plan, results, 1 << 20)
    made.store.put(manifest.MANIFEST, manifest.write(entries, made.plan))
    assert pq.read_table(tmp_path / "a/manifest.parquet")["outcome"].to_pylist() == ["damaged"]


def test_a_changed_table_is_not_packed(tmp_path):
    made = make(str(tmp_path / "a"), [20] * 2)
    path = tmp_path / "a/codes" / f"{made.results[1].shard_id}.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BadTable, match=r"shard-0001.parquet.*jobs.verify"):
        pack(made, 1 << 20)
    assert not list((tmp_path / "a").glob("packed/*"))


@pytest.mark.parametrize("target", [0, compaction.MAX_BYTES + 1])
def test_targets_that_cannot_be_are_refused(tmp_path, target):
    made = make(str(tmp_path / "a"), [2])
    with pytest.raises(ValueError, match="a packed table has"):
        pack(made, target)
