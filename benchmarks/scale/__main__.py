"""A month's job in minutes: 10^10 images over 1,000 replicas that get lost, stand still or wait.

    python -m benchmarks.scale [--shards 1000000] [--replicas 1000]

The driver is the job's own, on a virtual clock; replicas, storage and clouds are simulated
(simulated.py says how badly), so that the hours are simulated ones and the processor
seconds and the memory real: the driver's, the simulation's with them.  The run is made four times:
as it is, without second copies of late shards, without the hang limit, and without both.  Takes
two minutes each.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import logging
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence

from benchmarks.scale.simulated import (
    IMAGES,
    MEDIAN_S,
    NEVER,
    RESTART_S,
    HeadLost,
    SimulatedPool,
    World,
)
from jobs import common
from pipeline.driver import run
from pipeline.driver.pace import Limits
from pipeline.driver.report import Progress
from pipeline.store.storage import Store
from pipeline.work.replica import peak_bytes

LIMITS = {
    "as it is": Limits(),
    "no second copies": Limits(late_floor_s=NEVER),
    "no hang limit": Limits(still_s=NEVER, hang_floor_s=NEVER),
    "neither": Limits(late_floor_s=NEVER, still_s=NEVER, hang_floor_s=NEVER),
}


def one_head(world: World, replicas: int, limits: Limits, folder: str) -> Counter[str]:
    """What a driver does until the run has ended or its head is lost."""
    progress, pool = Progress(world.shards, started=world.now), SimulatedPool(world, replicas)
    try:
        left, store = world.left(), Store(folder)
        run.run(left, pool, store, progress, 0.05, replicas, limits, lambda: world.now)
        pool.close()
    except HeadLost:
        pool.close()
        world.spend("lost head", RESTART_S * replicas)
        world.now += RESTART_S
    return Counter({
        "second copies": progress.second_copies, "replicas lost": progress.replicas_lost,
        "tried again": progress.retries,
    })  # fmt: skip


def simulate(limits: Limits, shards: int, replicas: int) -> tuple[World, Counter[str], float, int]:
    """One run to its end, over as many heads as it takes; processor seconds, bytes of memory."""
    logging.getLogger("pipeline").setLevel(logging.CRITICAL)
    world, before, begin = World(shards, 0), peak_bytes(), time.process_time()
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        while not all(world.done):
            counts += one_head(world, replicas, limits, folder)
    return world, counts, time.process_time() - begin, peak_bytes() - before


def main(argv: Sequence[str] | None = None) -> int:
    """Each run in a process of its own, for its memory."""
    args = parse(argv)
    ideal = args.shards * MEDIAN_S / args.replicas
    print(f"{args.shards:,} shards of {IMAGES:,} images, {args.replicas:,} replicas")
    print(f"ideal {ideal / 3600:.2f} h: all replicas from the first second to the last")
    spawn = multiprocessing.get_context("spawn")
    for name, limits in LIMITS.items():
        with concurrent.futures.ProcessPoolExecutor(1, spawn) as process:
            found = process.submit(simulate, limits, args.shards, args.replicas).result()
        print("\n".join(report(name, ideal, args.replicas, *found)), flush=True)
    return 0


def report(
    name: str, ideal: float, replicas: int, world: World, counts: Counter[str], cpu_s: float,
    grown: int,
) -> list[str]:  # fmt: skip
    """One run in four lines."""
    whole = world.now * replicas
    lost = dict(world.lost_s)
    lost["idle, at the end most of it"] = whole - ideal * replicas - sum(lost.values())
    shares = [f"{what} {seconds / whole:.1%}" for what, seconds in lost.items()]
    per_s = sorted(count / 60 for count in world.requests.values())
    return [
        f"{name}: {world.now / 3600:.2f} h, {ideal / world.now:.0%} of the ideal",
        "  " + ", ".join(f"{what}: {count:,}" for what, count in counts.items()),
        f"  of all replica seconds: {', '.join(shares)}",
        f"  driver {cpu_s:.0f} s of a core, {grown / 2**20:.0f} MiB; S3 requests a second: median "
        f"{per_s[len(per_s) // 2]:,.0f}, at most {per_s[-1]:,.0f}",
    ]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("benchmarks.scale", description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, default=1_000_000, help="%(default)s")
    parser.add_argument("--replicas", type=int, default=1000, help="%(default)s")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(common.run(main))
