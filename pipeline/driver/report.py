"""Progress while a run goes on, and its summary: where the time went, and how close to the limit.

Stage seconds are added up over the threads and replicas, so they exceed the wall time where stages
overlap.  ``of_limit`` is explained in ``pipeline.driver.limit``.
"""

from __future__ import annotations

import datetime
import time
from collections import deque
from dataclasses import astuple, dataclass, field
from typing import Protocol

from pipeline.driver.advice import advise
from pipeline.driver.fleet import Fleet
from pipeline.driver.limit import NAMES, Limit, Verdict
from pipeline.plan import Plan, Resources, ShardResult, ShardSpec, Status
from pipeline.signals import Counts, add
from pqmim.meter import Meter

LOOK_S = 0.5  # between two looks of who watches
RECENT_S = 60.0  # that the rate in the forecast is taken over, at least


class Watcher(Protocol):
    """Who looks at a run while it goes on; must cost it nothing and never raise."""

    def shard(self, result: ShardResult, seconds: float) -> None:
        """A shard is committed, so long after it was handed out."""

    def given_up(self, spec: ShardSpec, reason: str) -> None:
        """A shard is quarantined."""

    def look(self, progress: Progress, fleet: Fleet, wanted: int, now: float) -> None:
        """Called twice a second; ``wanted``: replicas."""

    def end(self, progress: Progress, now: float) -> None:
        """The run is over."""


@dataclass
class Progress:
    """Running totals of one submission."""

    shards: int  # of the whole job
    done_before: int = 0  # committed by earlier submissions
    bytes_left: int = 0
    started: float = field(default_factory=time.monotonic)
    first_work: float | None = None
    last_done: float = 0.0
    rows: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    pixels: int = 0
    code_bytes: int = 0
    source_bytes: int = 0
    table_bytes: int = 0
    done: int = 0
    adopted: int = 0
    skipped: int = 0  # AppleDouble members
    filled: dict[str, int] = field(default_factory=dict)  # kept column -> rows that have a value
    retried: dict[str, int] = field(default_factory=dict)  # shards, by kind of failure
    storage_retries: int = 0  # requests
    second_copies: int = 0  # of late shards
    lost: dict[str, int] = field(default_factory=dict)  # replicas, by cause
    rss_bytes: int = 0
    damaged: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    set_aside: int = 0  # quarantined by earlier submissions, and not to be tried again
    cpu: dict[str, float] = field(default_factory=dict)
    limit: Limit = field(default_factory=Limit)
    encodes: bool = True  # pictures, so that the limit of a replica means something
    run: str = ""  # id of the submission
    resources: Resources = Resources()  # that it has
    meter: Meter | None = None
    watchers: list[Watcher] = field(default_factory=list)
    flying: Counts = Counts()  # of the shards in flight
    _look_at: float = 0.0
    _past: deque[tuple[float, int]] = field(default_factory=deque)  # when, and bytes done by then

    def shard_done(self, result: ShardResult, now: float, seconds: float) -> None:
        """Count a committed shard, so long after it was handed out."""
        self.done += 1
        self.last_done = now
        self.adopted += result.adopted
        self.skipped += result.skipped
        self.pixels += result.pixels
        self.code_bytes += result.code_bytes
        self.source_bytes += result.source_size
        self.table_bytes += result.table_bytes
        self.storage_retries += result.retries
        self.rss_bytes = max(self.rss_bytes, result.rss_bytes)
        add(self.filled, result.filled)
        add(self.rows, result.rows)
        add(self.seconds, result.seconds)
        add(self.cpu, result.cpu)
        if result.outcome != "done":
            self.damaged.append(result.url)
        for watcher in self.watchers:
            watcher.shard(result, seconds)

    def given_up(self, spec: ShardSpec, reason: str) -> None:
        """Count a quarantined shard."""
        self.quarantined.append(spec.url)
        self.bytes_left -= spec.size
        for watcher in self.watchers:
            watcher.given_up(spec, reason)

    @property
    def retries(self) -> int:
        """Shards tried again."""
        return sum(self.retried.values())

    @property
    def replicas_lost(self) -> int:
        """Replicas that were up."""
        return sum(self.lost.values())

    @property
    def shards_left(self) -> int:
        """Shards that have no end yet."""
        ended = self.done_before + self.set_aside + self.done + len(self.quarantined)
        return self.shards - ended

    @property
    def images(self) -> int:
        """Images encoded by this submission."""
        return self.rows.get(Status.OK.value, 0)

    @property
    def work_s(self) -> float:
        """Seconds from the first shard handed out to the last one committed."""
        return max(self.last_done - (self.first_work or self.started), 1e-9)

    def moved(self, before: Counts, now: Counts) -> None:
        """A shard in flight has got further, or is no longer in flight (no counts)."""
        pairs = zip(astuple(self.flying), astuple(before), astuple(now), strict=True)
        self.flying = Counts(*(total - old + new for total, old, new in pairs))

    def look(self, fleet: Fleet, wanted: int, now: float) -> None:
        """Replicas have what they can get: tell who watches, every LOOK_S; ``wanted``: replicas."""
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        self.limit.idle(fleet.starved, now)
        for watcher in self.watchers:
            watcher.look(self, fleet, wanted, now)

    def show(self, now: float, replicas: int, running: int) -> None:
        """Tell a person how far the run is."""
        if self.meter is None:
            return
        done = self.source_bytes + self.flying.source_bytes
        images = self.images + self.flying.images
        if not images and not self.done:
            return self.meter.show(0, f"{replicas} replicas up, {running} shards in flight")
        bad = sum(self.rows.values()) - self.images + self.flying.bad
        elapsed = max(now - (self.first_work or self.started), 1e-9)
        pixels = self.pixels + self.flying.pixels
        bits = 8 * (self.code_bytes + self.flying.code_bytes)
        bpp = f"{bits / pixels:.3f} bpp, " if pixels else ""
        self.meter.show(
            done,
            f"{self.done_before + self.done}/{self.shards} shards, {images} images, "
            f"{images / elapsed:.1f}/s, {bpp}{bad} bad, ETA {self._left(now, done)}",
        )

    def end(self) -> None:
        """The run is over."""
        for watcher in self.watchers:
            watcher.end(self, time.monotonic())
        if self.meter is not None:
            self.meter.close()

    def _left(self, now: float, done: int) -> str:
        """Time to the end, at the rate of the last minute or tenth of the run."""
        self._past.append((now, done))
        window = max(RECENT_S, (now - (self.first_work or self.started)) / 10)
        while len(self._past) > 2 and self._past[1][0] <= now - window:
            self._past.popleft()
        then, before = self._past[0]
        if len(self._past) == 1 and self.first_work is not None:
            then, before = self.first_work, 0
        if done <= before or now <= then:
            return "-"
        seconds = round(max(self.bytes_left - done, 0) * (now - then) / (done - before))
        return str(datetime.timedelta(seconds=seconds))

    @property
    def bpp(self) -> float:
        """Payload bits per encoded pixel."""
        return 8 * self.code_bytes / self.pixels if self.pixels else 0.0

    def verdict(self, now: float) -> Verdict | None:
        """How close the run is to its limit; None where that is not known."""
        if not self.encodes:
            return None
        return self.limit.verdict(self.pixels, self.seconds, self.cpu, now)

    def summary(self, plan: Plan, state: str) -> dict[str, object]:
        """The record of this submission, ``runs/<run_id>/summary.json``."""
        mpx_s = self.pixels / 1e6 / self.work_s if self.done else 0.0
        held = self.verdict(self.last_done) if self.done else None
        return {
            "state": state,
            "as_of": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "images": self.images,
            "images_per_s": self.images / self.work_s if self.done else 0.0,
            "megapixels_per_s": mpx_s,
            "of_limit": held and held.share,
            "bound_by": held and held.bound,
            "alone_s": held and held.parts,
            "busy": held and held.busy,
            "replica_s": held and held.replica_s,
            "advice": held
            and advise(held, self.seconds, self.cpu, self.resources, plan, self.work_s),
            "bpp": self.bpp,
            "rows": self.rows,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu,
            "wall_s": time.monotonic() - self.started,
            "work_s": self.work_s if self.done else 0.0,
            "source_bytes": self.source_bytes,
            "code_bytes": self.code_bytes,
            "table_bytes": self.table_bytes,
            "shards": self.shards,
            "shards_done": self.done_before + self.done,
            "shards_encoded": self.done - self.adopted,
            "skipped": self.skipped,
            "empty_columns": [
                name for name, count in self.filled.items() if self.rows and not count
            ],
            "damaged": self.damaged,
            "quarantined": self.quarantined,
            "retries": self.retries,
            "storage_retries": self.storage_retries,
            "second_copies": self.second_copies,
            "replicas_lost": self.replicas_lost,
            "rss_bytes": self.rss_bytes,
            "replicas": self.resources.replicas,
            "device": self.resources.device,
            "model": plan.model,
            "quality": plan.quality,
        }


def text(summary: dict[str, object]) -> str:
    """The summary for a person: one screen."""
    seconds: dict[str, float] = summary["seconds"]  # type: ignore[assignment]
    total = sum(seconds.values()) or 1.0
    stages = "  ".join(f"{k} {v:.1f} s ({v / total:.0%})" for k, v in seconds.items())
    rows: dict[str, int] = summary["rows"]  # type: ignore[assignment]
    bad = ", ".join(f"{n} {s}" for s, n in sorted(rows.items()) if s != Status.OK) or "none"
    lines = [
        f"{summary['state']}: {summary['shards_done']} of {summary['shards']} shards committed, "
        f"{summary['images']} images in this run, bad: {bad}",
        f"{summary['images_per_s']:.1f} images/s, {summary['megapixels_per_s']:.2f} Mpx/s, "
        f"{summary['bpp']:.3f} bpp, {summary['replicas']} replicas on {summary['device']}",
        f"stages: {stages or 'nothing was encoded'}",
    ]
    events = {
        "shards tried again": summary.get("retries", 0),
        "storage requests repeated": summary.get("storage_retries", 0),
        "second copies of late shards": summary.get("second_copies", 0),
        "replicas lost": summary.get("replicas_lost", 0),
        "AppleDouble members (._*, of macOS) skipped": summary.get("skipped", 0),
    }
    if any(events.values()):
        lines.append(", ".join(f"{name}: {count}" for name, count in events.items() if count))
    if summary.get("of_limit"):
        parts: dict[str, float] = summary["alone_s"]  # type: ignore[assignment]
        alone = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
        lines.append(
            f"{summary['of_limit']:.0%} of the limit, which is {NAMES[str(summary['bound_by'])]} "
            f"(the parts alone, in seconds of a core or device: {alone})"
        )
    if summary.get("advice"):
        lines.append(f"to go faster: {summary['advice']}")
    for name in summary.get("empty_columns", []):  # type: ignore[attr-defined]
        lines.append(
            f"--keep {name}: null in every row of this run: no sample has such a member, or such a "
            "field in it; the error of a row says if it has another kind of value"
        )
    for name in ("damaged", "quarantined"):
        lines += [f"{name}: {url}" for url in summary[name]]  # type: ignore[attr-defined]
    return "\n".join(lines)
