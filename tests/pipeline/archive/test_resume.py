"""What a run finds that earlier ones have left, by listings."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.archive import commit, layout, resume
from pipeline.archive.table import BadTable
from pipeline.plan import ShardSpec
from pipeline.store.storage import Store
from pipeline.work.encoder import encode_shard
from tests import archives
from tests.corpus import jpeg, make_tar


@pytest.fixture
def archive(root: str, tmp_path: Path) -> archives.Archive:
    """Five shards, the first two committed; the second is cut."""
    tar = make_tar([(f"{i}.jpg", jpeg(32, 32, seed=i)) for i in range(4)])
    names = [tmp_path / f"s{n}.tar" for n in range(5)]
    for name in names:
        name.write_bytes(tar[:2500] if name.stem == "s1" else tar)
    found = archives.begin(root, names)
    for spec in found.specs[:2]:
        result = encode_shard(spec, found.plan, found.store, found.replica)
        assert result.outcome == ("damaged" if "s1" in spec.url else "done")
    commit.quarantine(found.store, found.specs[3], "poison", 3)
    return found


def urls(specs: list[ShardSpec]) -> list[str]:
    return [Path(spec.url).stem for spec in specs]


def test_committed_and_quarantined_shards_are_left_out(archive):
    left = resume.find_left(archive.store, archive.specs, retry_failed=False)
    assert urls(left.todo) == ["s2", "s4"] and left.committed == 2
    assert left.quarantined == [archive.specs[3].url]


def test_quarantined_shards_are_tried_again_when_asked_for(archive):
    left = resume.find_left(archive.store, archive.specs, retry_failed=True)
    assert urls(left.todo) == ["s2", "s3", "s4"] and left.quarantined == []


def test_a_shard_that_an_earlier_run_found_damaged_is_still_known(archive):
    left = resume.find_left(archive.store, archive.specs, retry_failed=False)
    assert left.damaged == [archive.specs[1].url]


def test_a_quarantine_that_a_commit_outweighs_is_no_damage(archive):
    commit.quarantine(archive.store, archive.specs[0], "time-out", 3)
    left = resume.find_left(archive.store, archive.specs, retry_failed=False)
    assert left.damaged == [archive.specs[1].url] and left.committed == 2


def test_a_damaged_shard_is_marked_before_its_table_is_there(archive, monkeypatch):
    class Killed(BaseException):
        pass

    def create(self: Store, name: str, data: bytes) -> None:
        raise Killed

    cut = archive.specs[1]
    for name in (layout.table_name, layout.ledger_name, layout.damaged_name):
        archive.store.delete(name(cut.shard_id))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Store, "create", create)
        encode_shard(cut, archive.plan, archive.store, archive.replica)
    left = resume.find_left(archive.store, archive.specs, retry_failed=False)
    assert left.damaged == [] and cut in left.todo  # a mark alone says nothing
    encode_shard(cut, archive.plan, archive.store, archive.replica)
    left = resume.find_left(archive.store, archive.specs, retry_failed=False)
    assert left.damaged == [cut.url] and cut not in left.todo


def test_a_mark_of_an_attempt_that_lost_is_no_damage(archive):
    archive.store.put(layout.damaged_name(archive.specs[0].shard_id), b"{}\n")
    left = resume.find_left(archive.store, archive.specs, retry_failed=False)
    assert left.damaged == [archive.specs[1].url]


def test_a_ledger_entry_whose_table_is_gone_stops_the_run(archive):
    name = layout.table_name(archive.specs[0].shard_id)
    archive.store.delete(name)
    with pytest.raises(BadTable, match=rf"{name} is gone \(1 such.*remove these ledger entries"):
        resume.find_left(archive.store, archive.specs, retry_failed=False)


def test_a_resume_reads_no_entry_of_a_shard_that_never_failed(archive, monkeypatch):
    read: list[str] = []
    get = Store.get
    monkeypatch.setattr(Store, "get", lambda self, name: read.append(name) or get(self, name))
    resume.find_left(archive.store, archive.specs, retry_failed=False)
    assert read == [layout.ledger_name(archive.specs[1].shard_id)]
