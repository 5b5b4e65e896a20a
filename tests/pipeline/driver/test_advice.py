"""What a run says would make it faster, on crafted times of its parts: who is the limit, and what
to change."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.driver import report
from pipeline.driver.fleet import Fleet, Up
from pipeline.driver.report import Progress
from pipeline.plan import Plan, Resources, ShardResult
from pipeline.signals import Alone

MPX = 10_000_000  # pixels of the runs here
BEGIN, SECONDS = 100.0, 100.0
GPU = {"on_cpu": False, "threads": 9, "cores": 8}


def plan(**more: Any) -> Plan:
    return Plan("f" * 64, 16, 16, 256, inputs=1, inputs_digest="d", price=0.06, **more)


def summary(
    alone: Alone, cpu: dict[str, float], resources: Resources, *, read_s: float = 0.0,
    code_s: float = 0.0, idle_s: float = 0.0, seconds: float = SECONDS,
    plan: Plan = plan(),  # noqa: B008, frozen
) -> dict[str, Any]:  # fmt: skip
    """Of a run of one node, whose replicas come up at once and have nothing to do at its end."""
    progress, fleet = Progress(1, started=BEGIN, first_work=BEGIN), Fleet()
    for number in range(resources.replicas):
        fleet.ask(f"r{number}")
        fleet.come_up(Up(f"r{number}", "node", alone))
        progress.limit.came(f"r{number}", "node", alone, BEGIN)
    progress.look(fleet, resources.replicas, BEGIN + seconds - idle_s)
    progress.look(fleet, resources.replicas, BEGIN + seconds)
    took = {"read": read_s, "encode": code_s, "code": code_s}
    result = ShardResult(
        "s", "/in/s.tar", 1000, "e", "done", {"ok": 10}, MPX, 100, seconds=took, cpu=cpu
    )
    progress.shard_done(result, BEGIN + seconds, seconds)
    progress.resources = resources
    return progress.summary(plan, "complete")


def on_cpu(replicas: int = 2, **more: Any) -> Resources:
    return Resources(replicas, "cpu", **more)


def on_gpu(replicas: int = 1, **more: Any) -> Resources:
    return Resources(replicas, "cuda", gpus_per_replica=1.0, **more)


CASES = {
    "storage": (
        summary(Alone(0.1, 0.1, cores=2), {}, on_cpu(), read_s=380.0), 0.95, "read",
        "more --replicas, which read more than 4 shards at a time; if that changes nothing, run "
        "nearer to the storage",
    ),
    "image decoding, on the cores of a GPU's machine": (
        summary(Alone(1.0, 1.0, **GPU), {"decode": 700.0}, on_gpu(decode_threads=8)), 0.875,
        "decode",
        "machines with more cores for each GPU: they did nothing but this, the GPU waited",
    ),
    "the device": (
        summary(Alone(8.0, 1.0, **GPU), {"decode": 50.0}, on_gpu()), 0.9, "encode",
        "more GPUs; or, in a new archive, --batch-pixels 4194304",
    ),
    "the device with large batches": (
        summary(Alone(8.0, 1.0, **GPU), {}, on_gpu(), plan=plan(batch_pixels=1 << 22)), 0.9,
        "encode", "more GPUs: nothing of this run waits for anything else",
    ),
    "the entropy model": (
        summary(Alone(2.25, 6.75, **GPU), {}, on_gpu()), 0.9, "code",
        "more GPUs; or, in a new archive, --price 0 (larger files): 75% of the work are for "
        "smaller files",
    ),
    "all cores, with the entropy model": (
        summary(Alone(6.0, 10.0, cores=2, threads=4), {"decode": 20.0}, on_cpu()), 0.9, "code",
        "more cores, or a GPU; or, in a new archive, --price 0 (larger files): 56% of the work are "
        "for smaller files",
    ),
    "writing": (
        summary(Alone(1.0, 0.0, cores=2, threads=4), {"write": 170.0}, on_cpu()), 0.9, "write",
        "more cores, or a GPU: nothing of this run waits for anything else",
    ),
    "threads that decode": (
        summary(Alone(4.0, 1.0, **GPU), {"decode": 95.0}, on_gpu(decode_threads=1)), 0.5, "encode",
        "--decode-threads 2: those of a replica were busy for 95% of the time, the GPU for 50%, "
        "all cores for 12%",
    ),
    "a GPU that waits": (
        summary(Alone(4.0, 1.0, **GPU), {"decode": 20.0}, on_gpu()), 0.5, "encode",
        "--gpus-per-replica 0.5 with twice the --replicas: the GPU computed for 50% of the time; "
        "larger --batch-pixels in a new archive",
    ),
    "cores that nobody uses": (
        summary(Alone(12.0, 6.0, cores=16, threads=1), {}, on_cpu(2)), 0.9, "encode",
        "--replicas 16: those of this run kept 11% of the cores of their machines busy",
    ),
    "too few shards": (
        summary(Alone(6.0, 6.0, cores=2, threads=4), {}, on_cpu(), idle_s=40.0), 0.6, "encode",
        "replicas had no shard for 40% of their time: smaller shards, or fewer replicas, which "
        "take about as long and cost less",
    ),
    "cores that others use": (
        summary(Alone(5.0, 5.0, cores=2, threads=4), {}, on_cpu(), code_s=75.0), 0.5, "encode",
        "encoder and entropy model took 1.5 times as long as alone: look for other programs on "
        "these cores, or more threads than cores",
    ),
    "measuring": (
        summary(Alone(3.0, 3.0, cores=2, threads=4), {"measure": 120.0}, on_cpu()), 0.9, "measure",
        "more cores, or a GPU: nothing of this run waits for anything else",
    ),
    "something else": (
        summary(Alone(7.0, 7.0, cores=2, threads=4), {}, on_cpu()), 0.7, "encode",
        "the cores were busy with this run for 70% of the time: look for other programs on them, "
        "or waits for storage",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_run_says_what_bounds_it_how_far_it_is_and_what_to_change(name: str) -> None:
    found, share, bound, advice = CASES[name]
    assert found["of_limit"] == pytest.approx(share)
    assert found["bound_by"] == bound and found["advice"] == advice
    text = report.text(found)
    assert f"{share:.0%} of the limit, which is {report.NAMES[bound]} " in text
    assert f"\nto go faster: {advice}\n" in f"{text}\n"


def test_a_short_run_says_that_it_is_short() -> None:
    found = summary(Alone(0.5, 0.5, cores=2), {}, on_cpu(), seconds=8.0)
    assert found["advice"] == "8 s are too short to say what would make a longer run faster"


def test_a_run_that_encodes_nothing_gives_no_advice() -> None:
    found = Progress(1).summary(plan(), "interrupted")
    assert found["advice"] is None and "to go faster" not in report.text(found)
