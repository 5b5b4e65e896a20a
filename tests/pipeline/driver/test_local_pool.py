"""LocalPool with real processes: they work, die, fail to start, report, and never outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.archive import commit, layout
from pipeline.driver import local_pool, run
from pipeline.driver.fleet import Down, Event, Moved, Returned, Up
from pipeline.driver.local_pool import LocalPool
from pipeline.driver.report import Progress
from pipeline.plan import Plan, Resources, ShardResult, ShardSpec
from pipeline.signals import Counts
from pipeline.store.storage import Store
from pipeline.work.encoder import encode_shard
from pipeline.work.host import Work
from pipeline.work.replica import Clock, Replica
from tests import archives

ROOT = Path(__file__).parents[3]
PATIENCE_S = 300.0  # for whatever takes a second or two on a free machine


# What the replicas do: chosen by the names of shards ---------------------------------------------


def fragile(
    spec: ShardSpec, plan: Plan, store: Store, replica: Replica, attempt: int
) -> ShardResult:
    """Encode; the first attempt at a shard named ``kill`` ends the process half-way."""
    if "kill" in spec.url and attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_shard(spec, plan, store, replica, attempt)


def slow(spec: ShardSpec, plan: Plan, store: Store, replica: Replica, attempt: int) -> ShardResult:
    """Say that there is progress, wait for a file ``go`` beside the shard, encode."""
    replica.clocks[spec.shard_id] = clock = Clock()
    clock.counts = Counts(images=1)
    go = Path(spec.url).with_name("go")
    while not go.exists():
        time.sleep(0.02)
    return encode_shard(spec, plan, store, replica, attempt)


def leaving(*_: object) -> ShardResult:
    """As native code that calls exit()."""
    os._exit(7)


# Fixtures ----------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> archives.Archive:
    """Four shards, nothing encoded."""
    names = ("a", "b", "kill", "d")
    inputs = [archives.shard(tmp_path / f"in/{name}.tar", 10 * n) for n, name in enumerate(names)]
    return archives.begin(tmp_path / "archive", inputs, store="bitstream")


@pytest.fixture
def pool_of(archive: archives.Archive) -> Iterator[Callable[..., Watched]]:
    """Makes pools over the archive."""
    pools = list[Watched]()

    def make(work: Work = encode_shard, **resources: object) -> Watched:
        pools.append(Watched(archive.store, archive.plan, Resources(**resources), work))  # type: ignore[arg-type]
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


class Watched(LocalPool):
    """A pool that can be asked for its events one at a time."""

    def next(self, kind: type[Any]) -> Any:
        """Wait for an event; it must be of that kind."""
        deadline = time.monotonic() + PATIENCE_S
        seen: list[Event] = self.__dict__.setdefault("seen", [])
        while not seen:
            assert time.monotonic() < deadline, f"no {kind.__name__} in {PATIENCE_S} s"
            seen += self.wait(1.0)
        event = seen.pop(0)
        assert isinstance(event, kind), event
        return event

    def pid(self, name: str) -> int:
        return self._children[name].process.pid


def gone(pid: int) -> bool:
    """Whether a process is no more; a zombie runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until_gone(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def tables(archive: archives.Archive) -> dict[str, bytes]:
    return {name: archive.store.get(name) for name in archive.store.names("codes/")}


# Tests -------------------------------------------------------------------------------------------


def test_two_replicas_write_what_one_process_writes_and_one_that_is_killed_is_replaced(
    archive: archives.Archive, pool_of: Callable[..., Watched], tmp_path: Path
) -> None:
    progress = Progress(len(archive.specs))
    run.run(archive.specs, pool_of(fragile), archive.store, progress, 1.0, replicas=2)
    undisturbed = archives.encoded(
        tmp_path / "undisturbed", [Path(spec.url) for spec in archive.specs], store="bitstream"
    )
    assert tables(archive) == tables(undisturbed) and len(tables(archive)) == 4
    assert (progress.done, progress.replicas_lost, progress.quarantined) == (4, 1, [])
    assert commit.committed_ids(archive.store) == commit.committed_ids(undisturbed.store)


def test_a_dead_replica_is_down_with_what_ended_it(
    archive: archives.Archive, pool_of: Callable[..., Watched]
) -> None:
    pool = pool_of(fragile)
    name = pool.add()
    up = pool.next(Up)
    assert up.replica == name and up.rss_bytes > 1 << 20
    pool.start(name, archive.specs[3], attempt=1)
    down = pool.next(Down)
    assert down.replica == name and not down.node_lost
    assert "ended by signal 9, Killed" in down.reason and "memory runs out" in down.reason
    other = pool_of(leaving)
    name = other.add()
    other.next(Up)
    other.start(name, archive.specs[0], attempt=1)
    down = other.next(Down)
    assert "ended with exit code 7" in down.reason


def test_what_fails_at_the_start_is_down_with_its_reason(
    archive: archives.Archive, pool_of: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.store.delete(layout.model_name(archive.plan.model))
    pool = pool_of()
    name = pool.add()
    down = pool.next(Down)
    assert down.replica == name
    assert down.reason.startswith("NotFound: ") and ".safetensors" in down.reason
    monkeypatch.setattr(sys, "executable", "/bin/false")
    pool.add()
    down = pool.next(Down)
    assert "ended with exit code 1" in down.reason
    assert pool.wait(0.1) == []


def test_progress_is_told_while_a_shard_is_under_way_and_not_after(
    archive: archives.Archive, pool_of: Callable[..., Watched]
) -> None:
    pool = pool_of(slow)
    name = pool.add()
    pool.next(Up)
    first, second = archive.specs[:2]
    for spec in (first, second):  # both at once
        pool.start(name, spec, attempt=1)
    found = {pool.next(Moved), pool.next(Moved)}
    assert found == {Moved(name, s.shard_id, Counts(images=1)) for s in (first, second)}
    Path(first.url).with_name("go").touch()
    back = [pool.next(Returned), pool.next(Returned)]
    assert {event.outcome.shard_id for event in back} == {first.shard_id, second.shard_id}
    assert all(isinstance(event.outcome, ShardResult) for event in back)


def test_no_event_comes_of_a_replica_that_was_killed_and_closing_ends_all(
    archive: archives.Archive, pool_of: Callable[..., Watched]
) -> None:
    pool = pool_of(slow)
    first, second = pool.add(), pool.add()
    pids = [pool.pid(first), pool.pid(second)]
    pool.next(Up)
    pool.next(Up)
    pool.start(first, archive.specs[0], attempt=1)
    pool.kill(first)
    pool.kill(first)  # it stays gone
    assert gone(pids[0])
    assert pool.wait(0.1) == []
    pool.start(second, archive.specs[0], attempt=1)
    pool.close()
    assert gone(pids[1])
    assert pool.wait(0.1) == []


ORPHANS = """
import sys, time
from pipeline.archive import layout
from pipeline.plan import Resources, ShardSpec
from pipeline.store.storage import Store
from tests.pipeline.driver import test_local_pool as here

store = Store(sys.argv[1])
pool = here.Watched(store, layout.read_plan(store), Resources(), here.slow)
busy = pool.add()
pool.next(here.Up)
pool.start(busy, ShardSpec("x", sys.argv[2], 1, ""), 1)
pool.next(here.Moved)
early = pool.add()
print(pool.pid(busy), pool.pid(early), flush=True)
time.sleep(10_000)
"""


def test_no_replica_outlives_its_driver(archive: archives.Archive) -> None:
    command = [sys.executable, "-c", ORPHANS, archive.store.root, archive.specs[0].url]
    driver = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    with driver:
        assert driver.stdout is not None
        pids = [int(pid) for pid in driver.stdout.readline().split()]
        assert len(pids) == 2 and not any(gone(pid) for pid in pids)
        driver.kill()
    for pid in pids:
        until_gone(pid)


def environment_of(pid: int) -> list[bytes]:
    """Of a process; while it turns into another program it shows none."""
    end = time.monotonic() + PATIENCE_S
    while not (found := Path(f"/proc/{pid}/environ").read_bytes()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found.split(b"\0")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_replicas_share_the_gpus_and_know_their_threads_before_torch_does(
    pool_of: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waiting = tmp_path / "python"  # a dead process shows no environment, and here is no such GPU
    waiting.write_text("#!/bin/sh\nexec sleep 10000\n")
    waiting.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(waiting))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    pool = pool_of(device="cuda", threads=3)
    names = [pool.add() for _ in range(3)]
    pool.kill(names[0])
    names = [*names[1:], pool.add()]
    for name, gpu in zip(names, ("GPU-5", "3", "3"), strict=True):
        environment = environment_of(pool.pid(name))
        assert b"OMP_NUM_THREADS=3" in environment
        assert b"CUDA_VISIBLE_DEVICES=" + gpu.encode() in environment, name
    assert "2 GPUs" in pool.describe()


def test_gpus_are_counted_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(local_pool.torch.cuda, "device_count", lambda: 2)
    assert local_pool.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local_pool.visible_gpus() == []
