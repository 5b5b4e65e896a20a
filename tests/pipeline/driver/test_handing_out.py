"""Who gets which shard, and what is known of the shards in flight, over a simulated pool."""

from __future__ import annotations

import io
import random
from collections import Counter

import pytest

from pipeline.driver import run as driver
from pipeline.driver.fleet import Moved, Returned
from pipeline.driver.pace import Limits
from pipeline.driver.report import Progress
from pipeline.plan import ShardResult, ShardSpec
from pipeline.signals import Counts
from pipeline.store.storage import Store
from pqmim.meter import Meter
from tests.pipeline.driver.test_run import NEVER, Run, SimulatedPool, names, result, spec

OPEN_S = 0.3  # of a shard; hidden while its replica computes another one


class Replicas(SimulatedPool):
    """Each computes one shard at a time; the next one opens meanwhile."""

    def __init__(self, comes: list[float], takes: dict[str, float]) -> None:
        super().__init__(comes=lambda number: comes[number - 1])
        self.takes, self.busy_until = takes, dict[str, float]()

    def start(self, replica: str, shard: ShardSpec, attempt: int) -> None:
        begin = max(self.now + OPEN_S, self.busy_until.get(replica, 0.0))
        self.busy_until[replica] = begin + self.takes[shard.shard_id]
        self.act = lambda *_: (self.busy_until[replica] - self.now, "ok")
        super().start(replica, shard, attempt)


def list_scheduling(comes: list[float], takes: list[float]) -> float:
    """Seconds until all is done, if each shard goes to the replica that is free first; only the
    first one of a replica waits for its opening."""
    free, used = list(comes), [False] * len(comes)
    for seconds in takes:
        first = min(range(len(free)), key=free.__getitem__)
        free[first] += seconds + (0.0 if used[first] else OPEN_S)
        used[first] = True
    return max(end for end, was in zip(free, used, strict=True) if was)


@pytest.mark.parametrize("replicas", [2, 8, 100])
@pytest.mark.parametrize("spread", [(8.0, 8.0), (4.0, 12.0), (1.0, 15.0)])
@pytest.mark.parametrize("last", [10.0, 40.0])
def test_the_run_takes_no_longer_than_list_scheduling(tmp_path, replicas, spread, last):
    """Replicas come up between 1 s and ``last``; 1 to 4 shards for each."""
    step, draws = (1, 3) if replicas < 10 else (39, 1)
    for count in range(1, 4 * replicas + 1, step):
        for number in range(draws):
            draw = random.Random(1000 * number + count)
            comes = [draw.uniform(1.0, last) for _ in range(replicas)]
            takes = {name: draw.uniform(*spread) for name in names(count)}
            folder = tmp_path / f"{count}-{number}"
            run = Run(folder, Replicas(comes, takes), names(count), replicas)
            assert run.progress.done == count
            assert run.seconds <= 1.1 * list_scheduling(comes, list(takes.values())), folder


def test_two_shards_go_to_two_replicas_although_one_is_up_first(tmp_path):
    pool = SimulatedPool(lambda *_: (20.0, "ok"), comes=lambda number: {1: 1.0, 2: 9.0}[number])
    Run(tmp_path, pool, names(2), 2)
    assert Counter(replica for _, replica, _ in pool.started) == {"replica-1": 1, "replica-2": 1}


def test_nothing_waits_for_a_replica_that_never_comes(tmp_path):
    pool = SimulatedPool(comes=lambda number: 1.0 if number == 1 else NEVER)
    run = Run(tmp_path, pool, names(10), 5)
    assert run.progress.done == 10 and run.seconds < 15


def test_while_there_is_work_enough_every_replica_has_two(tmp_path):
    pool, most = SimulatedPool(), Counter()
    start = pool.start

    def counted(replica: str, shard: ShardSpec, attempt: int) -> None:
        start(replica, shard, attempt)
        most[replica] = max(most[replica], len(pool.running[replica]))

    pool.start = counted  # type: ignore[method-assign]
    Run(tmp_path, pool, names(30), 3)
    assert set(most.values()) == {2}


class Telling(SimulatedPool):
    """Replicas whose shards move every ``every`` seconds until they end."""

    def __init__(self, every: float, moves: int, takes: float) -> None:
        super().__init__(lambda *_: (takes, "ok"))
        self.every, self.moves = every, moves

    def start(self, replica: str, shard: ShardSpec, attempt: int) -> None:
        super().start(replica, shard, attempt)
        for n in range(1, self.moves + 1):
            counts = Counts(n, 0, 100 * n, 10 * n, n)
            self._later(n * self.every, Moved(replica, shard.shard_id, counts))


def test_a_slow_shard_that_moves_is_not_hung(tmp_path):
    limits = Limits(still_s=100.0, hang_floor_s=100.0, hang_times=0.0)
    run = Run(tmp_path, Telling(60.0, 50, 3001.0), names(1), 1, limits)
    assert run.progress.done == 1 and not run.progress.replicas_lost


def test_a_shard_that_no_longer_moves_is_hung(tmp_path):
    limits = Limits(still_s=100.0, hang_floor_s=NEVER)
    run = Run(tmp_path, Telling(10.0, 5, NEVER), names(1), 1, limits)
    assert run.progress.replicas_lost == 3 and "got no further" in run.quarantined["s0000"].reason
    assert run.seconds < 3 * (50 + 100) + 100 + 200 + 400


def test_a_shard_that_nothing_is_heard_of_has_a_limit_of_its_own(tmp_path):
    for limits in (
        Limits(still_s=900.0, hang_floor_s=100.0),
        Limits(still_s=50.0, hang_floor_s=100.0),
    ):
        run = Run(tmp_path, Telling(1.0, 0, NEVER), names(1), 1, limits)
        assert run.progress.replicas_lost == 3 and 700 <= run.seconds < 730


class Clocked(Telling):
    """Notes what is shown, at every event."""

    def __init__(self, progress: Progress, *args: float) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.progress, self.seen = progress, list[tuple[int, Counts]]()

    def wait(self, timeout_s: float):
        self.seen.append((self.progress.images, self.progress.flying))
        return super().wait(timeout_s)


def test_what_is_in_flight_is_counted_once(tmp_path):
    progress = Progress(1, bytes_left=1000, started=1000.0)
    pool = Clocked(progress, 1.0, 9, 200.0)
    limits = Limits(late_floor_s=20.0, late_times=0.0)
    driver.run(
        map(spec, names(3)), pool, Store(str(tmp_path)), progress, 0.05, 3, limits, pool.clock
    )
    assert max(flying.images for _, flying in pool.seen) == 27
    assert progress.second_copies == 0 and progress.flying == Counts()
    assert progress.images == 30


def test_two_copies_of_a_shard_are_shown_as_one(tmp_path):
    progress = Progress(1, bytes_left=1000, started=1000.0)
    pool = Clocked(progress, 1.0, 9, 1.0)
    times = iter([(1.0, "ok"), (500.0, "ok"), (300.0, "ok")])
    pool.act = lambda *_: next(times)
    limits = Limits(late_floor_s=20.0, late_times=0.0)
    driver.run(
        map(spec, names(2)), pool, Store(str(tmp_path)), progress, 0.05, 2, limits, pool.clock
    )
    assert progress.second_copies == 1 and progress.images == 20
    assert max(flying.images for _, flying in pool.seen) == 9 and progress.flying == Counts()


def test_a_lost_replica_takes_its_counts_with_it(tmp_path):
    progress = Progress(1, bytes_left=1000, started=1000.0)
    pool = Clocked(progress, 1.0, 3, 10.0)
    lost = iter([(5.0, "die")])
    pool.act = lambda *_: next(lost, (10.0, "ok"))
    driver.run(map(spec, names(1)), pool, Store(str(tmp_path)), progress, 0.05, 1, clock=pool.clock)
    assert progress.images == 10 and progress.flying == Counts()
    assert max(flying.images for _, flying in pool.seen) == 3


def test_the_forecast_falls_while_the_work_goes_on_evenly() -> None:
    stream, now = io.StringIO(), 0.0
    meter = Meter("encode", 1000, stream=stream, clock=lambda: now)
    progress = Progress(10, bytes_left=1000, started=0.0, first_work=0.0, meter=meter)
    left = []
    for second in range(1, 100):
        now, before = float(second), progress.flying
        progress.moved(before, Counts(second, 0, 100 * second, 10 * second, 10 * second))
        progress.show(now, 1, 1)
        left.append(progress._left(now, progress.flying.source_bytes))
    assert left[9:12] == ["0:01:30", "0:01:29", "0:01:28"] and left[-1] == "0:00:01"
    lines = stream.getvalue().splitlines()
    assert 3 <= len(lines) <= 5 and "0/10 shards, 31 images, 1.0/s, 0.800 bpp, 0 bad" in lines[1]


def test_results_end_what_was_in_flight() -> None:
    progress = Progress(1, bytes_left=1000)
    progress.moved(Counts(), Counts(4, 1, 400, 40, 500))
    progress.moved(Counts(4, 1, 400, 40, 500), Counts())
    outcome = Returned("r", result(spec("a"))).outcome
    assert isinstance(outcome, ShardResult)
    progress.shard_done(outcome, 5.0, 1.0)
    assert (progress.images, progress.flying) == (10, Counts())
