"""Replicas as processes of this machine: real processes, killed and left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.archive import commit
from pipeline.driver import run as driver
from pipeline.driver.fleet import Down, Event, Moved, Returned, Up
from pipeline.driver.local_pool import LocalPool
from pipeline.driver.report import Progress
from pipeline.plan import Counts, Plan, Resources, ShardFailure, ShardResult, ShardSpec
from pipeline.store.storage import Store
from pipeline.work.encoder import encode_shard
from pipeline.work.replica import Clock, Replica
from tests.archives import begin
from tests.corpus import jpeg, make_tar

RESOURCES = Resources(replicas=1, device="cpu", local=True)
PATIENCE_S = 240.0


def shards(folder: Path, count: int) -> list[Path]:
    paths = []
    for number in range(count):
        tar = make_tar([(f"{number}-{i}.jpg", jpeg(40, 32, seed=i)) for i in range(3)])
        (folder / f"s{number}.tar").write_bytes(tar)
        paths.append(folder / f"s{number}.tar")
    return paths


@pytest.fixture
def archive(tmp_path: Path):
    return begin(str(tmp_path / "archive"), shards(tmp_path, 4))


def until(pool: LocalPool, wanted: type[Event], count: int = 1) -> list[Event]:
    """Events until so many of a kind have come."""
    found: list[Event] = []
    end = time.monotonic() + PATIENCE_S
    while sum(isinstance(e, wanted) for e in found) < count:
        assert time.monotonic() < end, found
        found += pool.wait(1.0)
    return found


def moving(
    spec: ShardSpec, plan: Plan, store: Store, replica: Replica, attempt: int = 1
) -> ShardResult:
    """A work that says how far it is, then waits for a file."""
    clock = replica.clocks[spec.shard_id] = Clock()
    clock.advance(5, images=2)
    while not store.info("go"):
        time.sleep(0.05)
    return encode_shard(spec, plan, store, replica, attempt)


def dying(
    spec: ShardSpec, plan: Plan, store: Store, replica: Replica, attempt: int = 1
) -> ShardResult:
    """A work that takes its process with it at the first attempt."""
    if attempt == 1 and spec.url.endswith("s2.tar"):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_shard(spec, plan, store, replica, attempt)


def failing(
    spec: ShardSpec, plan: Plan, store: Store, replica: Replica, attempt: int = 1
) -> ShardResult:
    raise ValueError("nothing to be done")


def test_a_replica_comes_up_works_and_tells_how_far_it_is(archive) -> None:
    pool = LocalPool(archive.store, archive.plan, RESOURCES, moving)
    try:
        name = pool.add()
        (up,) = until(pool, Up)
        assert isinstance(up, Up) and up.replica == name and up.alone.encode > 0
        pool.start(name, archive.specs[0], 1)
        moved = next(e for e in until(pool, Moved) if isinstance(e, Moved))
        assert moved == Moved(name, archive.specs[0].shard_id, Counts(2, source_bytes=5))
        archive.store.put("go", b"")
        (returned,) = (e for e in until(pool, Returned) if isinstance(e, Returned))
        assert isinstance(returned.outcome, ShardResult) and returned.outcome.rows == {"ok": 3}
    finally:
        pool.close()


def test_an_exception_is_the_shards_and_the_replica_goes_on(archive) -> None:
    pool = LocalPool(archive.store, archive.plan, RESOURCES, failing)
    try:
        name = pool.add()
        until(pool, Up)
        for attempt in (1, 2):
            pool.start(name, archive.specs[0], attempt)
            outcome = next(e for e in until(pool, Returned) if isinstance(e, Returned)).outcome
            assert isinstance(outcome, ShardFailure) and "nothing to be done" in outcome.message
    finally:
        pool.close()


def test_a_start_that_fails_says_why(archive) -> None:
    archive.store.delete(commit.model_name(archive.plan.model))
    pool = LocalPool(archive.store, archive.plan, RESOURCES, encode_shard)
    try:
        pool.add()
        (down,) = until(pool, Down)
        assert isinstance(down, Down) and "NotFound" in down.reason and not down.node_lost
        assert pool.wait(0.1) == []
    finally:
        pool.close()


def test_a_killed_process_is_noticed_and_its_shard_done_elsewhere(archive) -> None:
    progress = Progress(4, bytes_left=1)
    pool = LocalPool(archive.store, archive.plan, RESOURCES, dying)
    try:
        driver.run(archive.specs, pool, archive.store, progress, 1.0, 2)
    finally:
        pool.close()
    assert progress.done == 4 and progress.replicas_lost >= 1 and not progress.quarantined
    assert commit.committed_ids(archive.store) == {s.shard_id for s in archive.specs}


def test_nothing_comes_of_a_replica_that_was_ended(archive) -> None:
    pool = LocalPool(archive.store, archive.plan, RESOURCES, moving)
    name = pool.add()
    until(pool, Up)
    process = pool._replicas[name][0]
    pool.start(name, archive.specs[0], 1)
    pool.kill(name)
    assert pool.wait(0.5) == [] and not process.is_alive()
    pool.close()


def test_processes_end_when_their_parent_is_killed(archive, tmp_path: Path) -> None:
    script = f"""
import sys, time
from pipeline.archive import commit
from pipeline.driver.local_pool import LocalPool
from pipeline.plan import Resources
from pipeline.store.storage import Store
from pipeline.work.encoder import encode_shard
if __name__ == "__main__":
    store = Store({archive.store.root!r})
    pool = LocalPool(store, commit.read_plan(store), Resources(local=True), encode_shard)
    pool.add()
    while not pool.wait(1.0): pass
    print(pool._replicas["replica-1"][0].pid, flush=True)
    time.sleep(1000)
"""
    (tmp_path / "parent.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    end = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{child}").exists() and "Z" not in _state(child):
        assert time.monotonic() < end
        time.sleep(0.1)


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2]
    except OSError:
        return "Z"
