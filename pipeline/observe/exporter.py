"""The numbers of a run, given to Ray's metrics: what Prometheus finds at Ray's ports.

Every EVERY_S the totals of the run are compared with what was given before, and the difference is
counted: the sums in Prometheus are those of the run's summary.  That costs the driver 0.1 ms each
time, and 5 us a shard.  Gauges are set each time, as Ray forgets one that is not set for 36 s; a
counter that has not counted yet has no series, as Ray refuses to count 0.

What goes wrong here is said once and ends the counting, never the run.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from pipeline.driver.fleet import Fleet
from pipeline.driver.report import Progress
from pipeline.observe import metrics
from pipeline.observe.metrics import Metric
from pipeline.plan import ShardResult, ShardSpec

log = logging.getLogger(__name__)
EVERY_S = 10.0


class Kinds(Protocol):
    """The kinds of metrics of ``ray.util.metrics``."""

    Counter: Any
    Gauge: Any
    Histogram: Any


def totals(progress: Progress) -> Iterator[tuple[Metric, str, float]]:
    """Metric, label and value of every counter."""
    yield from ((metrics.IMAGES, status, count) for status, count in progress.rows.items())
    yield metrics.SOURCE, "", progress.source_bytes
    yield metrics.TABLES, "", progress.table_bytes
    yield metrics.CODES, "", progress.code_bytes
    yield metrics.PIXELS, "", progress.pixels
    yield from ((metrics.STAGE, stage, seconds) for stage, seconds in progress.seconds.items())
    damaged = len(progress.damaged)
    yield metrics.SHARDS, "done", progress.done - damaged
    yield metrics.SHARDS, "damaged", damaged
    yield metrics.SHARDS, "quarantined", len(progress.quarantined)
    yield from ((metrics.RETRIED, kind, count) for kind, count in progress.retried.items())
    yield metrics.STORAGE, "", progress.storage_retries
    yield metrics.COPIES, "", progress.second_copies
    yield from ((metrics.LOST, cause, count) for cause, count in progress.lost.items())


def levels(
    progress: Progress, fleet: Fleet, wanted: int, now: float
) -> Iterator[tuple[Metric, str, float]]:
    """Metric, label and value of every gauge."""
    oldest = next(iter(fleet.flights), None)
    yield metrics.SHARDS_LEFT, "", progress.shards_left
    done = progress.source_bytes + progress.flying.source_bytes
    yield metrics.BYTES_LEFT, "", max(progress.bytes_left - done, 0)
    yield metrics.REPLICAS, "wanted", wanted
    yield metrics.REPLICAS, "coming", fleet.coming
    yield metrics.REPLICAS, "up", fleet.up
    yield metrics.IN_FLIGHT, "", len(fleet.flights)
    yield metrics.OLDEST, "", now - oldest.started if oldest else 0.0
    yield metrics.STARVED, "", fleet.starved / fleet.up if fleet.up else 0.0
    if (held := progress.verdict(now)) is not None:
        yield metrics.OF_LIMIT, "", held.share


def _spared(method: Callable[..., None]) -> Callable[..., None]:
    """Whatever the method raises is said once, and the exporter does nothing from then on."""

    @functools.wraps(method)
    def spared(self: Exporter, *arguments: Any) -> None:
        if self.broken:
            return
        try:
            method(self, *arguments)
        except Exception as error:
            self.broken = True
            log.warning("this run is not counted for Prometheus any more: %r", error)

    return spared


class Exporter:
    """Counts one run; a :class:`pipeline.driver.report.Watcher`."""

    def __init__(self, kinds: Kinds, progress: Progress) -> None:
        self.broken, self._due = False, 0.0
        self._seen: tuple[Fleet, int] | None = None  # the replicas, and how many are wanted
        self._given = {(metric.name, label): value for metric, label, value in totals(progress)}
        self._metrics: dict[str, Any] = {}
        self._make(kinds, progress.run)

    @_spared
    def _make(self, kinds: Kinds, run: str) -> None:
        for metric in metrics.ALL:
            keys = ("run", metric.label) if metric.label else ("run",)
            if metric.kind == "counter":
                made = kinds.Counter(metric.name, metric.help, keys)
            elif metric.kind == "gauge":
                made = kinds.Gauge(metric.name, metric.help, keys)
            else:
                made = kinds.Histogram(metric.name, metric.help, list(metrics.BUCKETS_S), keys)
            made.set_default_tags({"run": run})
            self._metrics[metric.name] = made

    @_spared
    def shard(self, result: ShardResult, seconds: float) -> None:
        """A shard is committed."""
        self._metrics[metrics.SHARD.name].observe(seconds)

    def given_up(self, spec: ShardSpec, reason: str) -> None:
        """A shard is quarantined, which the totals say."""

    @_spared
    def look(self, progress: Progress, fleet: Fleet, wanted: int, now: float) -> None:
        """Count what has been added, and set the gauges, every EVERY_S."""
        self._seen = fleet, wanted
        if now >= self._due:
            self._due = now + EVERY_S
            self._export(progress, now)

    @_spared
    def end(self, progress: Progress, now: float) -> None:
        """Count the rest."""
        self._export(progress, now)

    def _export(self, progress: Progress, now: float) -> None:
        for metric, label, value in totals(progress):
            added = value - self._given.get((metric.name, label), 0)
            if added > 0:
                self._given[metric.name, label] = value
                self._metrics[metric.name].inc(added, _tags(metric, label))
        if self._seen is not None:
            for metric, label, value in levels(progress, *self._seen, now):
                self._metrics[metric.name].set(value, _tags(metric, label))


def _tags(metric: Metric, label: str) -> dict[str, str]:
    """Beside ``run``."""
    return {metric.label: label} if metric.label else {}
