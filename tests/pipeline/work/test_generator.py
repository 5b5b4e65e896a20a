"""Generated tables depend on the seed and the numbers alone, and read like any other."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.archive import commit, layout, table
from pipeline.archive.table import BadTable, Row
from pipeline.plan import Plan, ShardSpec, Status, listing_digest
from pipeline.store.storage import Store
from pipeline.work.generator import Request, generate_rows, generate_shard, key_of, seed_of
from pipeline.work.replica import Clock, Replica
from pqmim.codec import NoPriorError
from tests.models import tiny_codec

REQUEST = Request(seed=7, first=0, count=5, height=40, width=64, steps=2, temperature=256)


def plan_of(specs: list[ShardSpec], replica: Replica, **changes: object) -> Plan:
    codec = replica.codec
    return Plan(
        model=codec.fingerprint, quality=4, stride=16, codewords=16, inputs=len(specs),
        inputs_digest=listing_digest(specs), **{"store": "both", **changes},
    )  # fmt: skip


@pytest.fixture(scope="module")
def replica() -> Replica:
    return Replica(tiny_codec(prior=True))


def generate(root: Path, replica: Replica, request: Request, images: int) -> list[Row]:
    """An archive's rows, by shards of so many images, the last shard first."""
    specs, store = list(request.shards(images)), Store(str(root))
    plan = plan_of(specs, replica)
    commit.begin(store, plan)
    for spec in reversed(specs):
        generate_shard(spec, plan, store, replica)
    data = [store.get(layout.table_name(spec.shard_id)) for spec in specs]
    return [row for one in data for row in table.read_rows(one)]


def test_shards_batches_and_order_do_not_change_an_image(tmp_path: Path, replica: Replica) -> None:
    whole = generate(tmp_path / "a", replica, REQUEST, 5)
    parts = generate(tmp_path / "b", replica, REQUEST, 2)
    assert [row.key for row in whole] == [key_of(i) for i in range(5)]
    assert whole == parts
    plan = plan_of([], replica, batch_pixels=1)
    assert generate_rows(REQUEST, plan, replica, Clock()) == whole
    assert len({row.codes for row in whole}) == 5
    other = dataclasses.replace(REQUEST, seed=8)
    assert not {r.codes for r in generate(tmp_path / "c", replica, other, 5)} & {
        row.codes for row in whole
    }


def test_rows_hold_what_readers_expect(tmp_path: Path, replica: Replica) -> None:
    row = generate(tmp_path, replica, REQUEST, 5)[3]
    assert (row.status, row.width, row.height, row.grid_w, row.grid_h) == (Status.OK, 64, 40, 4, 3)
    assert zlib.crc32(row.codes) == row.crc32
    codes = np.frombuffer(row.codes, np.uint8).reshape(1, 3, 4, 4)
    plan = plan_of([], replica)
    assert (replica.entropy_decode([row.bitstream], 3, 4, plan.coding) == codes).all()
    nothing = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    drawn = replica.codec.complete(nothing, nothing.bool(), steps=2, seed=[seed_of(7, 3)])
    assert (drawn.numpy() == codes).all()


def test_what_is_committed_is_not_drawn_again(tmp_path: Path, replica: Replica) -> None:
    specs, store = list(REQUEST.shards(3)), Store(str(tmp_path))
    plan = plan_of(specs, replica)
    first = generate_shard(specs[1], plan, store, replica)
    assert (first.rows, first.url) == ({"ok": 2}, specs[1].url)
    assert generate_shard(specs[1], plan, store, Replica(tiny_codec())) == first  # no entropy model
    with pytest.raises(NoPriorError):
        generate_shard(specs[0], plan, store, Replica(tiny_codec()))
    assert len(list(store.names("codes/"))) == 1


def test_a_shards_url_says_all_of_it(replica: Replica) -> None:
    spec = list(REQUEST.shards(3))[1]
    assert spec.url == (
        "generate:seed=7,first=3,count=2,height=40,width=64,steps=2,temperature=256"
    )
    assert Request.from_url(spec.url) == dataclasses.replace(REQUEST, first=3, count=2)
    assert spec.shard_id.startswith("gen-000003-")
    for url in ("/in/000.tar", "generate:seed=7", "generate:seed=x,first=0"):
        with pytest.raises(BadTable, match="not a shard that jobs.generate described"):
            Request.from_url(url)
