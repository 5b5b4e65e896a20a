"""What a run gives to Ray's metrics: over a real encode job, and over a simulated run in which
everything goes wrong."""

from __future__ import annotations

import json
import logging
import random
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from jobs import common, encode
from jobs.common import work
from pipeline.driver import run as driver
from pipeline.driver.fleet import Pool
from pipeline.driver.pace import Limits
from pipeline.driver.report import Progress
from pipeline.observe import exporter, metrics
from pipeline.observe.exporter import EVERY_S, Exporter
from pipeline.store.storage import Store
from tests.corpus import header_offsets, jpeg, make_tar
from tests.models import tiny_bytes
from tests.pipeline.driver.test_run import (
    NEVER,
    SimulatedPool,
    chaos,
    names,
    result,
    spec,
)  # fmt: skip

HANG = {("s0149", 1), ("s0149", 2)}  # a shard and its second copy
OF_METRICS = {metric.name: metric for metric in metrics.ALL}


class Recorded:
    """The kinds of ``ray.util.metrics``, with Ray's rules; what was counted, by name and label."""

    def __init__(self) -> None:
        self.counted: dict[tuple[str, str], float] = defaultdict(float)
        self.set_at: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.observed: list[float] = []
        self.names: set[str] = set()
        self.runs: set[str] = set()
        self.Counter = self.Gauge = lambda *about: Recorder(self, *about)
        self.Histogram = lambda name, help, buckets, keys: Recorder(self, name, help, keys)

    def of(self, metric: metrics.Metric) -> dict[str, float]:
        """What was counted of a metric, by label."""
        return {label: n for (name, label), n in self.counted.items() if name == metric.name}


class Recorder:
    """One metric."""

    def __init__(self, recorded: Recorded, name: str, help: str, keys: tuple[str, ...]) -> None:
        self.recorded, self.name, self.keys = recorded, name, keys
        assert OF_METRICS[name].help == help
        recorded.names.add(name)

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.recorded.runs.add(tags["run"])

    def _label(self, tags: dict[str, str]) -> tuple[str, str]:
        assert {"run", *tags} == set(self.keys)
        label = next(iter(tags.values()), "")
        assert label in (OF_METRICS[self.name].values or ("",))
        return self.name, label

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0, "Ray refuses it"
        self.recorded.counted[self._label(tags)] += value

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.recorded.set_at[self._label(tags)].append(value)

    def observe(self, value: float) -> None:
        self.recorded.observed.append(value)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Every job that starts replicas is counted here."""
    found = Recorded()
    monkeypatch.setattr(work, "exporters", lambda _, progress: [Exporter(found, progress)])
    return found


def job(folder: Path, *more: str) -> dict[str, Any]:
    """Three shards, two images each that are good and one that is not; one tar is cut off."""
    (folder / "tiny.safetensors").write_bytes(tiny_bytes(prior=True))
    shards = folder / "shards"
    shards.mkdir()
    for n in range(3):
        good = [(f"{n}-{i}.jpg", jpeg(48, 32, seed=i)) for i in range(2)]
        tar = make_tar([*good, (f"{n}-bad.jpg", b"no picture")])
        cut = header_offsets(tar)["2-bad.jpg"] + 515 if n == 2 else len(tar)
        (shards / f"{n}.tar").write_bytes(tar[:cut])
    flags = ["--input", str(shards), "--output", str(folder / "out"), "--device", "cpu",
             "--weights", str(folder / "tiny.safetensors"), "--quality", "3",
             "--max-bad-images", "1", *more]  # fmt: skip
    assert common.run(lambda: encode.main(flags)) == common.INCOMPLETE
    store = Store(str(folder / "out"))
    (name,) = (name for name in store.names("runs/") if name.endswith("summary.json"))
    return {"id": name.split("/")[1], **json.loads(store.get(name))}


def test_what_is_counted_of_a_job_is_what_its_summary_says(
    here: None, recorded: Recorded, tmp_path: Path
) -> None:
    summary = job(tmp_path, "--measure", "psnr")
    assert recorded.runs == {summary["id"]} and recorded.names == set(OF_METRICS)
    assert recorded.of(metrics.IMAGES) == summary["rows"]
    assert summary["rows"]["ok"] == 6 and summary["rows"]["decode_error"] == 2
    for metric, name in (
        (metrics.SOURCE, "source_bytes"), (metrics.TABLES, "table_bytes"),
        (metrics.CODES, "code_bytes"),
    ):  # fmt: skip
        assert recorded.of(metric) == {"": summary[name]} and summary[name] > 0
    assert recorded.of(metrics.STAGE) == pytest.approx(
        {stage: seconds for stage, seconds in summary["seconds"].items() if seconds}
    )
    assert recorded.of(metrics.PIXELS) == {"": 6 * 48 * 32}
    assert recorded.of(metrics.SHARDS) == {"done": 2, "damaged": 1}
    assert len(recorded.observed) == 3 and min(recorded.observed) > 0
    last = {name: values[-1] for name, values in recorded.set_at.items()}
    assert last["pqmim_shards_left", ""] == last["pqmim_bytes_left", ""] == 0
    assert last["pqmim_replicas", "wanted"] == last["pqmim_replicas", "up"] == 1
    assert 0 < last["pqmim_of_limit", ""] < 2


def test_damage_found_before_and_shards_given_up_before_are_not_counted_again(
    here: None, recorded: Recorded, tmp_path: Path
) -> None:
    progress = Progress(9, done_before=4, set_aside=1, damaged=["/in/before.tar"])
    watcher = Exporter(recorded, progress)
    progress.shard_done(result(spec("a")), 1.0, 1.0)
    watcher.end(progress, 1.0)
    assert recorded.of(metrics.SHARDS) == {"done": 1} and progress.shards_left == 3


class Watched(SimulatedPool):
    """Everything happens; who watches looks in simulated time."""

    def __init__(self, seed: int) -> None:
        random_ = random.Random(seed)
        others = chaos(random_, {"s0007"})
        act = lambda *at: (NEVER, "ok") if at[:2] in HANG else others(*at)  # noqa: E731
        super().__init__(act, lambda number: random_.choice([0.5, 30.0]) if number > 1 else 1.0)


def drive(pool: Pool, progress: Progress, folder: Path) -> None:
    limits = Limits(late_floor_s=3, hang_floor_s=30, stall_floor_s=20)
    clock = pool.clock  # type: ignore[attr-defined]
    driver.run(map(spec, names(150)), pool, Store(str(folder)), progress, 1.0, 5, limits, clock)


def test_failures_are_counted_by_kind_and_gauges_are_set_every_ten_seconds(tmp_path: Path) -> None:
    recorded, pool = Recorded(), Watched(1)
    progress = Progress(150, bytes_left=150_000, started=pool.now, run="that one")
    progress.watchers.append(Exporter(recorded, progress))
    drive(pool, progress, tmp_path)
    looks = (pool.now - progress.started) / EVERY_S
    progress.end()
    assert recorded.runs == {"that one"}
    assert recorded.of(metrics.RETRIED) == progress.retried and len(progress.retried) == 2
    assert recorded.of(metrics.LOST) == progress.lost and set(progress.lost) == set(metrics.LOSSES)
    assert recorded.of(metrics.COPIES) == {"": progress.second_copies}
    assert recorded.of(metrics.SHARDS) == {
        "done": progress.done, "quarantined": len(progress.quarantined)
    }  # fmt: skip
    gauges = {m.name for m in metrics.ALL if m.kind == "gauge"}
    assert {name for name, _ in recorded.set_at} == gauges
    for (name, _), values in recorded.set_at.items():
        assert min(values) >= 0, name
        assert 0.8 * looks < len(values) <= looks + 2
    left = recorded.set_at["pqmim_shards_left", ""]
    assert left == sorted(left, reverse=True) and left[-1] == 0
    assert max(recorded.set_at["pqmim_starved_share", ""]) <= 1
    assert max(recorded.set_at["pqmim_oldest_flight_seconds", ""]) > 1


@pytest.mark.parametrize("broken", ["Counter", "Gauge", "inc", "set", "observe"])
def test_a_failure_to_count_is_said_once_and_ends_no_run(
    tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no agent")

    kinds: Any = Recorded()
    if broken[0].isupper():
        kinds = types.SimpleNamespace(**{**vars(kinds), broken: fail})
    else:
        monkeypatch.setattr(Recorder, broken, fail)
    pool = Watched(2)
    progress = Progress(150, bytes_left=150_000, started=pool.now)
    with caplog.at_level(logging.WARNING, exporter.__name__):
        progress.watchers.append(Exporter(kinds, progress))
        drive(pool, progress, tmp_path)
        progress.end()
    assert progress.done == 149
    said = [r.getMessage() for r in caplog.records if r.name == exporter.__name__]
    assert said == ["this run is not counted for Prometheus any more: RuntimeError('no agent')"]
