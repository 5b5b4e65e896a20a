"""What the driver itself costs: a million shards over a thousand replicas, none of them real.

    python -m benchmarks.driver [--shards 1000000] [--replicas 1000] [--files 100000]

The driver, its listing and its resume are those of the job; the replicas and their time are
simulated, with 1 % of shards failing, a replica lost every 10,000 shards, and late ones in the
tail.  The seconds are all of the process's, the simulation's own with them; the memory is the
growth of its peak, inputs listed and results counted.  Resume is over a simulated listing in pages
of 1,000 names, as S3 gives them, and over real files.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import logging
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from jobs import common
from pipeline.archive import resume
from pipeline.driver import run
from pipeline.driver.fleet import Down, Event, Returned, Up
from pipeline.driver.report import Progress
from pipeline.plan import ShardFailure, ShardResult, ShardSpec
from pipeline.store.shard_names import shard_id
from pipeline.store.storage import Store
from pipeline.work.replica import peak_bytes

PAGE = 1000  # names in a reply of S3


class SimulatedPool:
    """Replicas that take 5 to 15 simulated seconds a shard, and sometimes die."""

    def __init__(self) -> None:
        self.now, self.number = 0.0, 0
        self.random = random.Random(0)
        self.events: list[tuple[float, int, Event]] = []
        self.alive: set[str] = set()
        self.order = itertools.count()

    def clock(self) -> float:
        """Simulated seconds."""
        return self.now

    def _later(self, seconds: float, event: Event) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.order), event))

    def add(self) -> str:
        """A replica that is up after ten seconds."""
        self.number += 1
        name = f"replica-{self.number}"
        self.alive.add(name)
        self._later(10, Up(name, "node", rss_bytes=1 << 30))
        return name

    def start(self, replica: str, spec: ShardSpec, attempt: int) -> None:
        """Decide what becomes of the shard."""
        draw, seconds = self.random.random(), 5 + 10 * self.random.random()
        if draw < 1e-4:
            self._later(seconds, Down(replica, "died"))
        elif draw < 1e-2:
            failure = ShardFailure(spec.shard_id, spec.url, "transient", "time-out", attempt)
            self._later(seconds, Returned(replica, failure))
        else:
            result = ShardResult(
                spec.shard_id, spec.url, spec.size, spec.etag, "done", {"ok": 1000}, 10**9, 10**6,
                10**6, "", "", seconds={"read": 1.0, "encode": 5.0}, rss_bytes=1 << 30,
            )  # fmt: skip
            self._later(seconds * 20 if draw > 1 - 1e-4 else seconds, Returned(replica, result))

    def kill(self, replica: str) -> None:
        """Forget a replica."""
        self.alive.discard(replica)

    def wait(self, timeout_s: float) -> list[Event]:
        """What happens next."""
        until, events = self.now + timeout_s, list[Event]()
        while self.events and self.events[0][0] <= until and not events:
            self.now, _, event = heapq.heappop(self.events)
            if event.replica in self.alive:
                events.append(event)
                if isinstance(event, Down):
                    self.alive.discard(event.replica)
        if not events:
            self.now = until
        return events

    def describe(self) -> str:
        """Nothing to say."""
        return "simulated"


class Listed(Store):
    """An archive whose listings are made up: every shard committed, none damaged."""

    def __init__(self, folder: str, ids: list[str]) -> None:
        super().__init__(folder)
        self.ids, self.pages = ids, 0

    def names(self, prefix: str = "") -> Iterator[str]:
        """Every shard, below ``codes/`` and ``ledger/``."""
        suffix = {"codes/": ".parquet", "ledger/": ".json"}.get(prefix)
        for number, name in enumerate(self.ids if suffix else []):
            self.pages += number % PAGE == 0
            yield f"{prefix}{name}{suffix}"


def main() -> int:
    """Simulate, resume, print."""
    args = parse()
    logging.getLogger("pipeline").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        before = peak_bytes()
        specs = listing(args.shards)
        left = resume.find_left(Store(folder), specs, False)
        listed = peak_bytes() - before
        seconds = simulate(left, Store(folder), args.replicas)
        memory = peak_bytes() - before
        count = f"{args.shards:,} shards, {args.replicas:,} replicas"
        print(f"{count}: {1e3 * seconds / args.shards:.4f} ms a shard, {seconds:.1f} s in all")
        print(
            f"memory: {memory / args.shards:.0f} bytes a shard, of them {listed / args.shards:.0f} "
            "the input listing"
        )
        fake = Listed(folder, [spec.shard_id for spec in specs])
        seconds = timed_resume(fake, specs)
        grown = (peak_bytes() - before) / args.shards
        print(
            f"resume over {args.shards:,} committed: {seconds:.2f} s of our own, {fake.pages:,} "
            f"list requests, {grown:.0f} bytes a shard in all"
        )
        if args.files:
            seconds = timed_resume(real_files(folder, specs[: args.files]), specs[: args.files])
            print(f"resume over {args.files:,} committed in local files: {seconds:.2f} s")
    return 0


def listing(count: int) -> list[ShardSpec]:
    """As jobs.common.list_shards makes it: an ETag and a URL of its own for each."""
    urls = (f"s3://bucket/dataset/train/shards-{n:09d}.tar" for n in range(count))
    return [ShardSpec(shard_id(u), u, 10**9 + n, f"{n:032x}") for n, u in enumerate(urls)]


def simulate(left: resume.Left, store: Store, replicas: int) -> float:
    """Seconds of processor time for the whole run."""
    progress, pool = Progress(len(left.todo), started=0.0), SimulatedPool()
    begin = time.process_time()
    run.run(left.todo, pool, store, progress, 0.05, replicas, clock=pool.clock)
    seconds = time.process_time() - begin
    if progress.done + len(progress.quarantined) != len(left.todo):
        raise SystemExit(f"{progress.done} of {len(left.todo)} shards are done")
    print(
        f"done {progress.done:,}, tried again {progress.retries:,}, second copies "
        f"{progress.second_copies}, replicas lost {progress.replicas_lost}"
    )
    return seconds


def timed_resume(store: Store, specs: list[ShardSpec]) -> float:
    """Seconds to find out that nothing is left."""
    begin = time.perf_counter()
    left = resume.find_left(store, specs, False)
    if left.todo or left.committed != len(specs):
        raise SystemExit(f"{len(left.todo)} shards are left")
    return time.perf_counter() - begin


def real_files(folder: str, specs: list[ShardSpec]) -> Store:
    """An archive of empty tables and ledger entries in a local folder."""
    for prefix, suffix in (("codes", ".parquet"), ("ledger", ".json")):
        path = Path(folder, "files", prefix)
        path.mkdir(parents=True)
        for spec in specs:
            (path / f"{spec.shard_id}{suffix}").touch()
    return Store(f"{folder}/files")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("benchmarks.driver", description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, default=1_000_000, help="%(default)s")
    parser.add_argument("--replicas", type=int, default=1000, help="%(default)s")
    parser.add_argument("--files", type=int, default=100_000, help="real ones (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(common.run(main))
