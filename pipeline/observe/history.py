"""What a run's report shows beside the summary: how fast it was when, its slowest shards, rates and
qualities of its images, and what went wrong with which of them.

Gathered as results come in, in memory that does not grow with the run: a curve of at most
2 * POINTS points, whose step doubles when it is full, histograms of fixed steps, and the first or
the worst few of everything that has a name.  Costs 3 us a shard.
"""

from __future__ import annotations

import datetime
import heapq
from dataclasses import dataclass, field

from pipeline.driver.fleet import Fleet
from pipeline.driver.report import Progress
from pipeline.plan import ShardResult, ShardSpec
from pipeline.signals import add

POINTS = 120
SLOWEST, NAMED = 10, 8  # shards; rows and shards of a kind of failure


@dataclass(frozen=True)
class Point:
    """The run at a time."""

    at: float  # seconds since its begin
    images: int  # done until then, with those of shards in flight
    source_bytes: int  # read until then
    replicas: int  # up


@dataclass(frozen=True, order=True)
class Slow:
    """One shard that took long."""

    seconds: float  # from hand-out to return
    url: str
    images: int
    stage: str  # that took most of its time
    share: float  # of its stage seconds, that one
    attempt: int


@dataclass(frozen=True)
class Bad:
    """One row without codes."""

    key: str
    status: str
    error: str
    url: str


@dataclass
class History:
    """Of one run; a :class:`pipeline.driver.report.Watcher`."""

    began: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))
    curve: list[Point] = field(default_factory=list)
    slowest: list[Slow] = field(default_factory=list)  # a heap
    bpp: dict[int, int] = field(default_factory=dict)  # images by steps; see signals.Glance
    psnr: dict[int, int] = field(default_factory=dict)
    bad: dict[str, list[Bad]] = field(default_factory=dict)  # by status, the first NAMED
    damaged: list[tuple[str, str]] = field(default_factory=list)  # url and reason, the first NAMED
    quarantined: list[tuple[str, str]] = field(default_factory=list)  # the same
    _step: float = 1.0  # seconds between two points
    _due: float = 0.0
    _replicas: int = 0

    def shard(self, result: ShardResult, seconds: float) -> None:
        """Look at a committed shard."""
        if len(self.slowest) < SLOWEST or seconds > self.slowest[0].seconds:
            self._slow(result, seconds)
        add(self.bpp, result.glance.bpp)
        add(self.psnr, result.glance.psnr)
        for key, status, error in result.glance.errors:
            rows = self.bad.setdefault(status, [])
            if len(rows) < NAMED:
                rows.append(Bad(key, status, error, result.url))
        if result.outcome != "done" and len(self.damaged) < NAMED:
            self.damaged.append((result.url, "; ".join(result.damage)))

    def _slow(self, result: ShardResult, seconds: float) -> None:
        stages = result.seconds or {"": 0.0}
        stage = max(stages, key=stages.__getitem__)
        share = stages[stage] / (sum(stages.values()) or 1.0)
        images = sum(result.rows.values())
        slow = Slow(seconds, result.url, images, stage, share, result.attempt)
        heapq.heappush(self.slowest, slow)
        if len(self.slowest) > SLOWEST:
            heapq.heappop(self.slowest)

    def given_up(self, spec: ShardSpec, reason: str) -> None:
        """Note a quarantined shard."""
        if len(self.quarantined) < NAMED:
            self.quarantined.append((spec.url, reason))

    def look(self, progress: Progress, fleet: Fleet, wanted: int, now: float) -> None:
        """Add a point to the curve, if it is time for one."""
        self._replicas = fleet.up
        if now >= self._due:
            self._add(progress, now)

    def end(self, progress: Progress, now: float) -> None:
        """Add the last point."""
        self._add(progress, now)

    def _add(self, progress: Progress, now: float) -> None:
        self._due = now + self._step
        images = progress.images + progress.flying.images
        source = progress.source_bytes + progress.flying.source_bytes
        self.curve.append(Point(now - progress.started, images, source, self._replicas))
        if len(self.curve) >= 2 * POINTS:
            self._step *= 2
            del self.curve[1::2]
