"""Transcoded tables are the ones that encoding would have given; nothing wrong is carried over."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.archive import layout, table
from pipeline.archive.table import BadTable, Row
from pipeline.plan import STORES, PlanMismatch
from pipeline.store.storage import Store
from pipeline.work.replica import Clock
from pipeline.work.transcoder import Transcoder, transcode_rows
from tests.archives import Archive, committed, encoded, shard
from tests.models import tiny_bytes


@pytest.fixture
def archives(tmp_path: Path) -> dict[str, Archive]:
    """The same shard encoded with each store, by the same model."""
    source, weights = shard(tmp_path / "one.tar"), tiny_bytes(prior=True)
    changes = {"keep": ("txt",), "hash": True, "measure": "psnr"}
    return {
        kind: encoded(tmp_path / kind, [source], weights=weights, store=kind, **changes)
        for kind in STORES
    }


def transcode(source: Archive, target: Archive, store: Store) -> None:
    """The source's shard into ``store``, with the plan of the target."""
    work = Transcoder(source.store, source.plan)
    work(source.specs[0], target.plan, store, source.replica)


@pytest.mark.parametrize("start", STORES)
@pytest.mark.parametrize("end", STORES)
def test_a_transcoded_table_is_the_encoded_one_byte_for_byte(
    archives: dict[str, Archive], tmp_path: Path, start: str, end: str
) -> None:
    source, target = archives[start], archives[end]
    assert replace(source.plan, store=end) == target.plan
    store = Store(str(tmp_path / "new"))
    transcode(source, target, store)
    (tmp_path / "one.tar").unlink()  # not needed
    name = layout.table_name(source.specs[0].shard_id)
    assert store.get(name) == target.table().read_bytes()
    mine = committed(store)[source.specs[0].shard_id]
    theirs = committed(target.store)[source.specs[0].shard_id]
    volatile = {"seconds": {}, "cpu": {}, "wall_s": 0.0, "rss_bytes": 0, "table_etag": ""}
    volatile["retries"] = 0  # those of the whole process since its last commit: see take_retries
    assert replace(mine, **volatile) == replace(theirs, **volatile)


def test_what_is_committed_is_not_done_again(archives: dict[str, Archive], tmp_path: Path) -> None:
    source, target, store = archives["codes"], archives["bitstream"], Store(str(tmp_path / "new"))
    transcode(source, target, store)
    source.table().unlink()
    transcode(source, target, store)
    with pytest.raises(PlanMismatch, match="was made by plan"):
        (tmp_path / "new" / layout.ledger_name(source.specs[0].shard_id)).unlink()
        transcode(source, archives["both"], store)


@pytest.mark.parametrize("kind", ["codes", "bitstream"])
def test_a_source_table_that_is_not_the_ledgers_is_refused(
    archives: dict[str, Archive], tmp_path: Path, kind: str
) -> None:
    source, store = archives[kind], Store(str(tmp_path / "new"))
    data = source.table().read_bytes()
    source.table().write_bytes(data[:99] + bytes([data[99] ^ 1]) + data[100:])
    with pytest.raises(BadTable, match="changed after the commit"):
        transcode(source, archives["both"], store)
    assert list(store.names("")) == []


@pytest.mark.parametrize("kind", ["codes", "bitstream"])
def test_a_payload_with_a_wrong_crc32_is_not_carried_over(
    archives: dict[str, Archive], tmp_path: Path, kind: str
) -> None:
    source, store = archives[kind], Store(str(tmp_path / "new"))
    rows = list(table.read_rows(source.table().read_bytes()))
    rows[0] = broken(rows[0])
    spec = source.specs[0]
    entry = committed(source.store)[spec.shard_id]
    data = table.write_table(rows, source.plan, spec, entry)
    source.table().write_bytes(data)
    entry = replace(entry, table_sha256=sha256(data).hexdigest(), table_bytes=len(data))
    source.ledger().write_bytes(entry.to_json())
    with pytest.raises(BadTable, match=f"{spec.shard_id}.*'a/first'.*crc32"):
        transcode(source, archives["both"], store)
    assert list(store.names("")) == []


def broken(row: Row) -> Row:
    """The first byte of the payload is another one."""
    name = "codes" if row.bitstream is None else "bitstream"
    data = getattr(row, name)
    return replace(row, **{name: bytes([data[0] ^ 1]) + data[1:]})


def test_batches_of_any_size_give_the_same_rows(archives: dict[str, Archive]) -> None:
    source, target = archives["codes"], archives["bitstream"]
    rows, found = list(table.read_rows(source.table().read_bytes())), []
    for batch_pixels in (1, 1 << 20):
        plan = replace(target.plan, batch_pixels=batch_pixels)
        found.append(transcode_rows(rows, source.plan, plan, source.replica, Clock()))
    assert found[0] == found[1]
