"""The pool of Ray actors itself: who gets which shard, and how far they are."""

from __future__ import annotations

import time

import pytest

from pipeline.driver import run as driver
from pipeline.driver.fleet import Event, Moved
from pipeline.driver.ray_pool import RayPool
from pipeline.driver.report import Progress
from pipeline.plan import Plan, Resources, ShardResult, ShardSpec
from pipeline.store.storage import Store
from pipeline.work.encoder import encode_shard
from pipeline.work.replica import Clock, Replica
from tests.archives import begin
from tests.corpus import jpeg, make_tar

pytestmark = pytest.mark.ray
PATIENCE_S = 240.0


def together(
    spec: ShardSpec, plan: Plan, store: Store, replica: Replica, attempt: int = 1
) -> ShardResult:
    """A work that says how far it is, and goes on when both shards have begun and it was heard."""
    clock = replica.clocks[spec.shard_id] = Clock()
    clock.advance(7, images=1)
    store.put(f"begun/{spec.shard_id}", b"")
    end = time.monotonic() + PATIENCE_S
    while len(list(store.names("begun/"))) < 3 and time.monotonic() < end:
        time.sleep(0.1)
    return encode_shard(spec, plan, store, replica, attempt)


class Noted(RayPool):
    """Notes what is started where, and what was said."""

    def start(self, replica: str, spec: ShardSpec, attempt: int) -> None:
        self.started.append((spec.shard_id, replica))
        super().start(replica, spec, attempt)

    def wait(self, timeout_s: float) -> list[Event]:
        events = super().wait(timeout_s)
        self.heard |= {e.shard_id for e in events if isinstance(e, Moved) and e.counts.images == 1}
        if len(self.heard) == 2:
            self.store.put("begun/heard", b"")
        return events


def test_two_shards_go_to_two_replicas_and_are_heard_of(ray_here, tmp_path) -> None:
    paths = [tmp_path / f"s{n}.tar" for n in range(2)]
    for path in paths:
        path.write_bytes(make_tar([(f"{i}.jpg", jpeg(40, 32, seed=i)) for i in range(3)]))
    archive = begin(tmp_path / "archive", paths)
    resources = Resources(replicas=2, gpus_per_replica=0.0)
    pool = Noted(archive.store, archive.plan, resources, together)
    pool.started, pool.heard, pool.store = [], set(), archive.store
    progress = Progress(2, bytes_left=1)
    try:
        driver.run(archive.specs, pool, archive.store, progress, 1.0, 2)
    finally:
        pool.close()
    assert progress.done == 2 and progress.images == 6
    assert {replica for _, replica in pool.started} == {"replica-1", "replica-2"}
    assert pool.heard == {spec.shard_id for spec in archive.specs}
