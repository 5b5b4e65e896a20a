"""A cluster that is not there: replicas, storage, clouds on a virtual clock (benchmarks.scale).

    a shard          10,000 images, 1.1 GB, 10 s of a GPU: the median, within 10 %
    stragglers       1 shard in 100 takes 2 to 8 times as long, 1 node in 100 is 3 times slower
    hangs            1 shard in 20,000 stands still and ends after 6 to 14 hours by itself
    storage          5,500 reads a second for the first half hour, four times that when the prefix
                     has been split; readers wait for each other, and 1 shard in 500 gives up
    spot             a node is lost once in five months; after an hour a zone goes within 3 minutes
                     and is back after half an hour, and so another one after 2 hours
    head             lost once, after 1.5 hours; a new cluster is there and goes on 5 minutes later
    start            a replica is up 90 to 240 s after it was asked for

The figures are those of others (AWS on S3's prefixes; spot traces; Llama 3 on stragglers and
hardware); none was measured on such a cluster.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Iterator

from pipeline.driver.fleet import Down, Event, Moved, Returned, Up
from pipeline.plan import ShardFailure, ShardResult, ShardSpec
from pipeline.signals import Counts

IMAGES, SIZE, MEDIAN_S = 10_000, 1_100_000_000, 10.0
GETS = math.ceil(SIZE / (16 << 20))  # requests to read a shard
ASKS_PER_S, ASK_EVERY_S = 200.0, 5.0  # as driver.ray_pool asks how far replicas are
HANGS = 1 / 20_000  # share of shards
ZONES, ZONE_OUT_S, ZONE_GOES_S = 3, 1800.0, 180.0
ZONE_LOSSES = ((3600.0, 0), (7200.0, 1))
HEAD_LOST_S, RESTART_S = 5400.0, 300.0
SPLIT_S, READS, SPLITS = 1800.0, 5500.0, 4
NODE_LOST_PER_S = 0.2 / (30 * 86400)
NEVER = math.inf


class HeadLost(Exception):
    """The machine of the driver has gone."""


@dataclasses.dataclass
class Simulated:
    """One replica: when it is done with what it has, and what it is working on."""

    name: str
    zone: int
    slow: float
    free_at: float = 0.0
    work: dict[str, tuple[float, float, bool]] = dataclasses.field(default_factory=dict)

    def moves(self, now: float) -> Iterator[Moved]:
        """How far its shards are: bytes read until now; one that hangs stays where it is."""
        for shard_id, (begin, end, hangs) in self.work.items():
            if now > begin:
                share = 0.5 if hangs else min((now - begin) / (end - begin), 1.0)
                yield Moved(self.name, shard_id, Counts(source_bytes=int(share * SIZE)))


class World:
    """What outlives a head: the clock, the bucket, the zones, and what it all came to."""

    def __init__(self, shards: int, seed: int) -> None:
        self.now, self.shards = 0.0, shards
        self.random = random.Random(seed)
        self.done = bytearray(shards)
        self.lost_s: dict[str, float] = {}  # replica seconds, by what took them
        self.requests: dict[int, int] = {}  # by minute
        self.head_lost = HEAD_LOST_S

    def left(self) -> Iterator[ShardSpec]:
        """The listing without what the ledger has, as a resume finds it."""
        for number in range(self.shards):
            if not self.done[number]:
                url = f"s3://bucket/dataset/train/shards-{number:09d}.tar"
                yield ShardSpec(f"shards-{number:09d}", url, SIZE, f"{number:032x}")

    def spend(self, what: str, seconds: float) -> None:
        """Count replica seconds that did no work."""
        self.lost_s[what] = self.lost_s.get(what, 0.0) + seconds

    def zone_back(self, zone: int, now: float) -> float:
        """When machines of a zone are to be had, from now on."""
        losses = [at for at, gone in ZONE_LOSSES if gone == zone and at <= now < at + ZONE_OUT_S]
        return max([now, *(at + ZONE_OUT_S for at in losses)])

    def reads_per_s(self, now: float) -> float:
        """What the prefix of the shards can do."""
        return READS * (SPLITS if now > SPLIT_S else 1)


class SimulatedPool:
    """Replicas on machines that cloud and storage do things to."""

    def __init__(self, world: World, replicas: int) -> None:
        self.world, self.replicas = world, replicas
        self.order, self.names = itertools.count(), itertools.count(1)
        self.events: list[tuple[float, int, Event]] = []
        self.alive: dict[str, Simulated] = {}
        self.up: deque[str] = deque()
        self.asked_at = world.now
        for at, zone in ZONE_LOSSES:
            if at >= world.now:
                self._later(at - world.now, Down(f"zone-{zone}", "reclaimed", True))

    def _later(self, seconds: float, event: Event) -> None:
        heapq.heappush(self.events, (self.world.now + seconds, next(self.order), event))

    def add(self) -> str:
        """A replica in the zone that has the fewest, up when a machine has come."""
        world, name = self.world, f"replica-{next(self.names)}"
        number = int(name.split("-")[1])
        slow = 3.0 if world.random.random() < 0.01 else 1.0
        self.alive[name] = replica = Simulated(name, number % ZONES, slow)
        ready = world.zone_back(replica.zone, world.now) + 90 + 150 * world.random.random()
        world.spend("start-up and zones without machines", ready - world.now)
        replica.free_at = ready
        self._later(ready - world.now, Up(name, f"node-{number}", rss_bytes=1 << 30))
        lost = world.random.expovariate(NODE_LOST_PER_S)
        self._later(lost, Down(name, "The node was terminated", True))
        return name

    def start(self, replica: str, spec: ShardSpec, attempt: int) -> None:
        """Decide what becomes of the shard; it begins when the one before it has ended."""
        world, member = self.world, self.alive[replica]
        draw = world.random.random
        begin, usual = max(world.now, member.free_at), MEDIAN_S * (0.9 + 0.2 * draw())
        seconds = usual * member.slow * (2 + 6 * draw() if draw() < 0.01 else 1.0)
        world.spend("stragglers", seconds - usual)
        wait = self._wait_for_storage(begin, seconds)
        world.spend("throttling", wait)
        hangs = draw() < HANGS
        if hangs:
            wait += 3600 * (6 + 8 * draw())
        end = begin + seconds + wait
        member.free_at = end
        member.work[spec.shard_id] = begin, end, hangs
        minute = int(begin // 60)
        world.requests[minute] = world.requests.get(minute, 0) + GETS + 3  # HEAD, two PUT
        throttled = begin < SPLIT_S and draw() < 1 / 500
        self._later(end - world.now, Returned(replica, outcome(spec, attempt, throttled)))

    def _wait_for_storage(self, begin: float, seconds: float) -> float:
        """Seconds that a shard takes longer, because all replicas together read too fast."""
        wanted = len(self.up) * GETS / MEDIAN_S
        return seconds * max(0.0, wanted / self.world.reads_per_s(begin) - 1)

    def kill(self, replica: str) -> None:
        """Forget a replica; what it has worked on is wasted."""
        member = self.alive.pop(replica, None)
        if member is not None:
            for begin, _, hangs in member.work.values():
                what = "hung" if hangs else "done again"
                self.world.spend(what, max(self.world.now - begin, 0.0))

    def close(self) -> None:
        """End every replica."""
        for name in list(self.alive):
            self.kill(name)

    def wait(self, timeout_s: float) -> list[Event]:
        """What happens next.

        Raises:
            HeadLost: and the driver with it.
        """
        world, events = self.world, list(self._moves())
        until = world.now if events else world.now + timeout_s
        while self.events and self.events[0][0] <= until and not events:
            at, _, event = heapq.heappop(self.events)
            if at > world.head_lost:
                world.now, world.head_lost = world.head_lost, NEVER
                raise HeadLost
            world.now = at
            events += self._happens(event)
        if not events:
            world.now = until
        return events

    def _happens(self, event: Event) -> list[Event]:
        """What of it reaches the driver."""
        if event.replica.startswith("zone-"):
            gone = [m.name for m in self.alive.values() if m.zone == int(event.replica[5:])]
            for name in gone:
                self._later(ZONE_GOES_S * self.world.random.random(), Down(name, "reclaimed", True))
            return []
        member = self.alive.get(event.replica)
        if member is None:
            return []
        if isinstance(event, Up):
            self.up.append(event.replica)
        elif isinstance(event, Down):
            self.kill(event.replica)
        elif isinstance(event, Returned):
            begin, end, hung = member.work.pop(event.outcome.shard_id)
            self.world.spend("hung", (end - begin) * hung)
            self._count(event.outcome)
        return [event]

    def _count(self, outcome: ShardResult | ShardFailure) -> None:
        """A shard is in the ledger, for the first or for the second time."""
        if isinstance(outcome, ShardResult):
            number = int(outcome.shard_id[7:])
            if self.world.done[number]:
                self.world.spend("done twice", MEDIAN_S)
            self.world.done[number] = 1

    def _moves(self) -> Iterator[Event]:
        """What replicas say of how far they are, as often as RayPool asks them."""
        passed = self.world.now - self.asked_at
        count = int(min(passed / ASK_EVERY_S * len(self.up), ASKS_PER_S * passed))
        if count:
            self.asked_at = self.world.now
        for _ in range(min(count, len(self.up))):
            name = self.up.popleft()
            if name in self.alive:
                self.up.append(name)
                yield from self.alive[name].moves(self.world.now)

    def describe(self) -> str:
        """Nothing to say."""
        return "simulated"


def outcome(spec: ShardSpec, attempt: int, throttled: bool) -> ShardResult | ShardFailure:
    """What comes back of a shard."""
    if throttled:
        return ShardFailure(spec.shard_id, spec.url, "transient", "503 Slow Down", attempt)
    return ShardResult(
        spec.shard_id, spec.url, spec.size, spec.etag, "done", {"ok": IMAGES}, IMAGES * 65536,
        IMAGES * 900, IMAGES * 1000, seconds={"read": 8.0, "encode": 9.0}, rss_bytes=1 << 30,
    )  # fmt: skip
