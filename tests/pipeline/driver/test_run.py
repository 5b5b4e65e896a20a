"""The driver over a simulated pool, in simulated time: every shard ends committed or quarantined,
or the run stops, whatever replicas do."""

from __future__ import annotations

import heapq
import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from pipeline.archive import commit
from pipeline.driver import policy
from pipeline.driver import run as driver
from pipeline.driver.fleet import IN_FLIGHT, Down, Event, Returned, Up
from pipeline.driver.pace import Limits, Pace
from pipeline.driver.report import Progress
from pipeline.plan import ShardFailure, ShardResult, ShardSpec
from pipeline.store.storage import Store

Act = tuple[float, str]  # seconds, then: ok, die, node (dies with it), or a kind of failure
NEVER = 1e12  # seconds
NORMAL = Limits()


def spec(name: str) -> ShardSpec:
    return ShardSpec(name, f"/in/{name}.tar", 1000, "e")


def names(count: int) -> list[str]:
    return [f"s{n:04}" for n in range(count)]


def result(shard: ShardSpec, rows: dict[str, int] | None = None, rss: int = 0) -> ShardResult:
    return ShardResult(
        shard.shard_id, shard.url, shard.size, shard.etag, "done", rows or {"ok": 10}, 1000, 100,
        200, "", "", seconds={"encode": 1.0}, rss_bytes=rss,
    )  # fmt: skip


class SimulatedPool:
    """``act(shard, attempt, replica)`` says what a replica does with a shard, ``comes(number)``
    after how many seconds a replica is up, or why it fails to start."""

    def __init__(
        self, act: Callable[[str, int, str], Act] = lambda *_: (1.0, "ok"),
        comes: Callable[[int], float | str] = lambda _: 1.0,
        rows: dict[str, int] | None = None, rss: Callable[[str], int] = lambda _: 0,
    ) -> None:  # fmt: skip
        self.act, self.comes, self.rows, self.rss = act, comes, rows, rss
        self.now, self.number = 1000.0, 0
        self.events: list[tuple[float, int, Event]] = []
        self.running: dict[str, set[str]] = {}
        self.started: list[tuple[str, str, float]] = []  # shard, replica, when
        self.killed: list[str] = []
        self.order = itertools.count()

    def clock(self) -> float:
        return self.now

    def _later(self, seconds: float, event: Event) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.order), event))

    def add(self) -> str:
        self.number += 1
        name, comes = f"replica-{self.number}", self.comes(self.number)
        self.running[name] = set()
        if isinstance(comes, str):
            self._later(1.0, Down(name, comes))
        else:
            self._later(comes, Up(name, f"node-{self.number % 3}"))
        return name

    def start(self, replica: str, shard: ShardSpec, attempt: int) -> None:
        running = self.running[replica]
        assert len(running) < IN_FLIGHT and shard.shard_id not in running
        running.add(shard.shard_id)
        self.started.append((shard.shard_id, replica, self.now))
        seconds, what = self.act(shard.shard_id, attempt, replica)
        if what in ("die", "node"):
            self._later(seconds, Down(replica, f"{what}!", node_lost=what == "node"))
        elif what == "ok":
            self._later(seconds, Returned(replica, result(shard, self.rows, self.rss(replica))))
        else:
            failure = ShardFailure(shard.shard_id, shard.url, what, f"{what}!", attempt)
            self._later(seconds, Returned(replica, failure))

    def kill(self, replica: str) -> None:
        self.killed.append(replica)
        del self.running[replica]

    def describe(self) -> str:
        return "each asks for 7 CPUs, the cluster has 1"

    def wait(self, timeout_s: float) -> list[Event]:
        until, events = self.now + timeout_s, list[Event]()
        while self.events and self.events[0][0] <= until:
            if events and self.events[0][0] > self.now:
                break
            self.now, _, event = heapq.heappop(self.events)
            if event.replica in self.running:
                self._end(event)
                events.append(event)
        if not events:
            self.now = until
        return events

    def _end(self, event: Event) -> None:
        if isinstance(event, Down):
            del self.running[event.replica]
        elif isinstance(event, Returned):
            self.running[event.replica].remove(event.outcome.shard_id)

    def shards(self) -> Counter[str]:
        """How often each shard was started."""
        return Counter(shard for shard, _, _ in self.started)


class Run:
    """One run of the driver, to its end."""

    def __init__(
        self, folder: Path, pool: SimulatedPool, shards: Iterable[str], replicas: int = 3,
        limits: Limits = NORMAL,
    ) -> None:  # fmt: skip
        shards = list(shards)
        self.pool, self.store = pool, Store(str(folder))
        self.progress = Progress(len(shards), started=pool.now)
        begin = pool.now
        driver.run(
            map(spec, shards), pool, self.store, self.progress, 0.05, replicas, limits, pool.clock
        )
        self.seconds = pool.now - begin

    @property
    def quarantined(self) -> dict[str, commit.Quarantined]:
        return commit.quarantined(self.store)


def faulty(script: dict[str, list[str]], seconds: float = 1.0) -> Callable[[str, int, str], Act]:
    """Each shard fails as its script says, an attempt after the other, and then works."""
    left = {name: list(kinds) for name, kinds in script.items()}
    return lambda shard, *_: (seconds, left[shard].pop(0) if left.get(shard) else "ok")


def test_every_shard_is_handed_out_once_when_nothing_fails(tmp_path):
    run = Run(tmp_path, SimulatedPool(), names(20))
    assert run.pool.shards() == Counter(names(20))
    assert (run.progress.done, run.progress.images, run.progress.retries) == (20, 200, 0)
    assert run.seconds == 1 + 6  # 20 shards of a second on three replicas, the first ones by twos


def test_no_shards_end_at_once_and_ask_for_no_replica(tmp_path):
    run = Run(tmp_path, SimulatedPool(), [])
    assert run.progress.done == 0 and run.pool.number == 0


def test_the_listing_is_consumed_as_replicas_come_free(tmp_path):
    pool, taken = SimulatedPool(), 0

    def listing():
        nonlocal taken
        for name in names(50):
            taken += 1
            # To know whether there is enough for the others.
            assert taken <= len(pool.started) + 2 * driver.ENOUGH + 1
            yield spec(name)

    progress = Progress(50, started=pool.now)
    driver.run(listing(), pool, Store(str(tmp_path)), progress, 0.05, 3, clock=pool.clock)
    assert progress.done == taken == 50


# Failures of shards ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "strikes", "action"),
    [
        ("fatal", 1, policy.Action.STOP),
        ("transient", 1, policy.Action.RETRY),
        ("error", 2, policy.Action.RETRY),
        ("lost", 2, policy.Action.RETRY),
        ("error", 3, policy.Action.QUARANTINE),
        ("lost", 3, policy.Action.QUARANTINE),
    ],
)
def test_what_is_done_about_a_failure(kind, strikes, action):
    assert policy.decide(kind, strikes) is action


@pytest.mark.parametrize("kind", ["transient", "error"])
def test_a_shard_that_fails_twice_is_tried_a_third_time(tmp_path, kind):
    run = Run(tmp_path, SimulatedPool(faulty({"s0002": [kind, kind]})), names(6))
    assert run.pool.shards()["s0002"] == 3
    assert (run.progress.done, run.progress.retries, run.progress.quarantined) == (6, 2, [])


def test_a_shard_that_fails_three_times_is_set_aside_and_the_rest_goes_on(tmp_path):
    run = Run(tmp_path, SimulatedPool(faulty({"s0002": ["error"] * 3})), names(6))
    assert run.progress.done == 5 and run.progress.quarantined == ["/in/s0002.tar"]
    record = run.quarantined["s0002"]
    assert record.attempts == 3
    assert record.reason.startswith("error! (replica-") and "on node-" in record.reason


def test_a_failure_that_concerns_the_whole_run_stops_it(tmp_path):
    with pytest.raises(driver.Stopped, match="fatal!"):
        Run(tmp_path, SimulatedPool(faulty({"s0002": ["fatal"]})), names(6))


def test_too_many_bad_images_stop_the_run_and_name_the_way_out(tmp_path):
    with pytest.raises(driver.Stopped, match=r"12 of 120 .*12 missing_image.*--image-key"):
        Run(tmp_path, SimulatedPool(rows={"ok": 54, "missing_image": 6}), names(6))


# Blame -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [1, 3, 8])
def test_a_poison_shard_is_set_aside_and_no_neighbour_with_it(tmp_path, replicas):
    def act(shard, attempt, replica):
        return (0.5, "die") if shard == "s0007" else (1.0, "ok")

    run = Run(tmp_path, SimulatedPool(act), names(40), replicas)
    assert run.progress.done == 39
    (record,) = run.quarantined.values()
    assert (record.shard_id, record.attempts) == ("s0007", 3)
    assert "die! (replica-" in record.reason and "on node-" in record.reason


def test_suspects_run_alone(tmp_path):
    alone: list[int] = []
    pool = SimulatedPool()

    def act(shard, attempt, replica):
        if shard == "s0007":
            alone.append(len(pool.running[replica]))
            return 0.5, "die"
        return 1.0, "ok"

    pool.act = act
    Run(tmp_path, pool, names(40), 2)
    assert alone[1:] == [1, 1, 1]


def test_replicas_that_die_of_themselves_set_no_shard_aside(tmp_path):
    # Each replica dies after 7 shards, like one that runs out of memory.
    count: Counter[str] = Counter()

    def act(shard, attempt, replica):
        count[replica] += 1
        return (0.9, "die") if count[replica] == 7 else (1.0, "ok")

    run = Run(tmp_path, SimulatedPool(act), names(200), 4)
    assert run.progress.done == 200 and run.progress.replicas_lost > 10
    assert not run.quarantined


def test_lost_nodes_are_blamed_on_a_shard_only_when_it_loses_every_one(tmp_path):
    run = Run(tmp_path, SimulatedPool(faulty({"s0001": ["node"] * 4})), names(9))
    assert run.progress.done == 9 and not run.quarantined
    poison = SimulatedPool(lambda s, *_: (1.0, "node" if s == "s0001" else "ok"))
    run = Run(tmp_path / "poison", poison, names(9))
    assert run.progress.done == 8 and set(run.quarantined) == {"s0001"}
    assert run.pool.shards()["s0001"] >= 5


# The tail ----------------------------------------------------------------------------------------

QUICK = Limits(late_floor_s=2.0)


def one_slow_replica(shard: str, attempt: int, replica: str) -> Act:
    """The last shard, on one replica, takes 20 times as long."""
    return (200.0 if shard == "s0039" and attempt == 1 else 10.0), "ok"


def test_a_slow_last_shard_does_not_double_the_time_of_the_job(tmp_path):
    fair = Run(tmp_path / "a", SimulatedPool(lambda *_: (10.0, "ok")), names(40), 2, QUICK)
    slow = Run(tmp_path / "b", SimulatedPool(one_slow_replica), names(40), 2, QUICK)
    never = Limits(late_floor_s=NEVER)
    without = Run(tmp_path / "c", SimulatedPool(one_slow_replica), names(40), 2, never)
    assert slow.seconds < 2 * fair.seconds < without.seconds
    assert slow.progress.done == 40 and slow.progress.second_copies == 1


@pytest.mark.parametrize("loser", ["ok", "error", "fatal"])
def test_what_the_loser_of_two_copies_says_is_ignored(tmp_path, loser):
    def act(shard, attempt, replica):
        if shard == "s0010":
            return (100.0, loser) if attempt == 1 else (10.0, "ok")
        return (120.0, "ok") if shard == "s0011" else (10.0, "ok")  # the job outlives the loser

    run = Run(tmp_path, SimulatedPool(act), names(12), 3, Limits(late_floor_s=2.0, late_times=2))
    assert (run.progress.done, run.progress.rows, run.progress.retries) == (12, {"ok": 120}, 0)
    assert run.pool.shards()["s0010"] == 2


def test_the_second_copy_counts_when_the_first_fails(tmp_path):
    def act(shard, attempt, replica):
        if shard == "s0011":
            return (60.0, "error") if attempt == 1 else (30.0, "ok")
        return 10.0, "ok"

    run = Run(tmp_path, SimulatedPool(act), names(12), 3, QUICK)
    assert run.progress.done == 12 and run.pool.shards()["s0011"] == 2


def test_a_shard_has_one_second_copy_at_most_and_none_while_there_is_other_work(tmp_path):
    def act(shard, attempt, replica):
        return (300.0 if shard == "s0000" else 10.0), "ok"

    run = Run(tmp_path, SimulatedPool(act), names(60), 4, QUICK)
    assert run.pool.shards()["s0000"] == 2 and run.progress.second_copies == 1
    last_new = max(when for shard, _, when in run.pool.started if shard == "s0059")
    copy = max(when for shard, _, when in run.pool.started if shard == "s0000")
    assert copy >= last_new


# Hanging -----------------------------------------------------------------------------------------


def test_a_replica_that_hangs_is_killed_and_the_job_ends(tmp_path):
    def act(shard, attempt, replica):
        return (NEVER, "ok") if replica == "replica-2" else (1.0, "ok")

    run = Run(tmp_path / "a", SimulatedPool(act), names(30), 2, Limits(late_floor_s=NEVER))
    assert run.progress.done == 30 and run.pool.killed == ["replica-2"]
    assert not run.quarantined and run.seconds < 2 * NORMAL.hang_floor_s
    run = Run(tmp_path / "b", SimulatedPool(act), names(30), 2)  # second copies need not wait
    assert run.progress.done == 30 and run.seconds < 2 * NORMAL.late_floor_s


def test_a_shard_that_hangs_every_replica_is_set_aside(tmp_path, caplog):
    def act(shard, attempt, replica):
        return (NEVER, "ok") if shard == "s0003" else (1.0, "ok")

    run = Run(tmp_path, SimulatedPool(act), names(12), 1)
    assert run.progress.done == 11
    assert "hung: /in/s0003.tar got no further in" in run.quarantined["s0003"].reason


def test_very_long_shards_get_through_although_no_pace_is_known(tmp_path):
    hour = SimulatedPool(lambda *_: (3600.0 + 100, "ok"))
    run = Run(tmp_path, hour, names(12), 3)
    assert run.progress.done == 12 and not run.quarantined


def test_a_stall_is_logged_with_what_is_stuck_and_where(tmp_path, caplog):
    caplog.set_level(logging.WARNING)

    def act(shard, attempt, replica):
        return (1500.0 if shard == "s0003" else 1.0), "ok"

    run = Run(tmp_path, SimulatedPool(act), names(4), 1, Limits(late_floor_s=NEVER))
    stuck = [r.getMessage() for r in caplog.records if r.getMessage().startswith("stuck: ")]
    assert run.progress.done == 4 and len(stuck) == 2
    assert stuck[0].startswith("stuck: /in/s0003.tar on replica-1 on node-1 for 60")


def test_waiting_for_replicas_is_no_stall(tmp_path, caplog):
    pool = SimulatedPool(comes=lambda _: 200.0)
    Run(tmp_path, pool, names(9), 1, Limits(stall_floor_s=10))
    assert not any("nothing came back" in record.getMessage() for record in caplog.records)


def test_the_pace_is_the_median_of_the_last_shards():
    pace = Pace(Limits())
    assert pace.late_s == float("inf") and pace.hang_s == 1800
    for seconds in [*[1000.0] * 300, *[40.0] * 200]:
        pace.add(seconds)
    assert (pace.median, pace.late_s, pace.stall_s, pace.hang_s) == (40, 200, 600, 1800)


# Replicas ----------------------------------------------------------------------------------------


def test_work_begins_with_the_first_replica_and_late_ones_join(tmp_path):
    pool = SimulatedPool(comes=lambda number: {1: 1.0, 2: 20.0, 3: NEVER}.get(number, 1.0))
    run = Run(tmp_path, pool, names(100), 3)
    first = {name: when for _, name, when in reversed(pool.started)}
    assert first == {"replica-1": 1001.0, "replica-2": 1020.0}
    assert run.progress.done == 100


def test_a_replica_that_takes_minutes_to_replace_holds_up_nobody(tmp_path):
    pool = SimulatedPool(faulty({"s0004": ["die"]}), comes=lambda n: 1.0 if n <= 2 else 200.0)
    run = Run(tmp_path, pool, names(60), 2)
    assert run.progress.done == 60 and run.seconds < 60


@pytest.mark.parametrize("begun", [False, True])
def test_without_any_replica_the_run_stops_and_says_what_the_cluster_has(tmp_path, begun):
    pool = SimulatedPool(
        lambda *_: (1.0, "node"), comes=lambda n: 1.0 if begun and n <= 3 else NEVER
    )
    with pytest.raises(policy.NoReplicas, match="after 30. s.*asks for 7 CPUs, the cluster has 1"):
        Run(tmp_path, pool, names(10))


def test_replicas_that_fail_to_start_stop_the_run_with_the_cause(tmp_path):
    pool = SimulatedPool(comes=lambda _: "no model there")
    with pytest.raises(policy.NoReplicas, match="the last failure: no model there"):
        Run(tmp_path, pool, names(10))
    assert pool.number == 3 and pool.now < 1010


def test_one_replica_that_never_starts_is_asked_for_ever_more_rarely(tmp_path):
    pool = SimulatedPool(
        lambda *_: (10.0, "ok"), comes=lambda n: 1.0 if n == 1 else "a broken node"
    )
    run = Run(tmp_path, pool, names(200), 2)
    assert run.progress.done == 200 and 5 < pool.number < 25


@pytest.mark.parametrize("why", ["age", "memory"])
def test_a_replica_is_drained_and_replaced_by_age_or_memory(tmp_path, why):
    count: Counter[str] = Counter()

    def rss(replica):
        count[replica] += 1
        return count[replica] << 30

    pool = SimulatedPool(rss=rss)
    limits = Limits(max_shards=10) if why == "age" else Limits(rss_growth_bytes=9 << 30)
    run = Run(tmp_path, pool, names(100), 2, limits)
    each = Counter(replica for _, replica, _ in pool.started)
    assert run.progress.done == 100 and pool.shards() == Counter(names(100))
    assert len(each) >= 9 and max(each.values()) <= 10 + IN_FLIGHT
    assert run.progress.replicas_lost == 0


# Everything at once ------------------------------------------------------------------------------


def chaos(random_: random.Random, poison: set[str]) -> Callable[[str, int, str], Act]:
    """Replicas die, nodes go, shards hang, fail and dawdle; poison always kills."""

    def act(shard: str, attempt: int, replica: str) -> Act:
        seconds = random_.expovariate(1) + 0.1
        if shard in poison:
            return seconds, "die"
        draw = random_.random()
        for share, what in ((0.02, "die"), (0.02, "node"), (0.03, "transient"), (0.02, "slow")):
            if draw < share:
                return (seconds * 100, "ok") if what == "slow" else (seconds, what)
            draw -= share
        return (NEVER if draw < 0.005 else seconds), "ok"

    return act


@pytest.mark.parametrize("seed", range(40))
def test_every_shard_has_one_end_whatever_happens(tmp_path, seed):
    random_ = random.Random(seed)
    poison = set(random_.sample(names(150), 3))

    def comes(number: int) -> float | str:
        return random_.choice([0.5, 2.0, 30.0, "a broken node"]) if number > 1 else 1.0

    limits = Limits(late_floor_s=3, hang_floor_s=30, stall_floor_s=20)
    pool = SimulatedPool(chaos(random_, poison), comes)
    run = Run(tmp_path, pool, names(150), random_.choice([2, 5, 16]), limits)
    assert run.progress.done + len(run.quarantined) == 150
    assert poison <= set(run.quarantined) and len(run.quarantined) <= 5
    assert run.progress.rows["ok"] == 10 * run.progress.done
