"""The job without its model: what the pipeline alone could do, and whether replicas add up.

    python -m benchmarks.ceiling [--images 1200]

*Ceiling*: a replica whose encoder gives zeros reads shards, decodes, resizes, batches, writes
tables and commits, all in one process.  Its CPU seconds an image stand beside those of nothing but
decoding the same JPEGs and resizing them; in turns, the least of the rounds counts.  The rest is
what a faster encoder could not gain.

*Scaling*: a work that takes a fixed time of its replica and no processor, through the real driver
and its processes of this machine: from the moment that every replica is up, the time that the
shards left would take at best over the time that they took.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from benchmarks.encode import SHARDS
from benchmarks.pictures import files
from jobs import common
from pipeline.archive import commit, layout, table
from pipeline.driver import run as driver
from pipeline.driver.fleet import Event, Returned, Up
from pipeline.driver.local_pool import LocalPool
from pipeline.driver.report import Progress
from pipeline.plan import Facts, Plan, Resources, ShardResult, ShardSpec, listing_digest
from pipeline.store import storage
from pipeline.store.shard_names import shard_id
from pipeline.store.storage import Store
from pipeline.work import images
from pipeline.work.encoder import encode_shard
from pipeline.work.replica import Clock, Replica
from pqmim import checkpoint
from pqmim.codec import Codec

SIDE, QUALITY, PER_SHARD, ROUNDS = 256, 16, 400, 3
REPLICAS = (1, 2, 4, 8)
FIXED_S, SHARDS_EACH = 0.25, 80  # seconds a shard; shards a replica


class Null(Replica):
    """A replica that computes nothing."""

    def encode(self, pixels: Tensor, quality: int, clock: Clock) -> np.ndarray:
        """Zeros [B,h,w,quality]."""
        batch, _, height, width = pixels.shape
        return np.zeros((batch, height // 16, width // 16, quality), np.uint8)


def fixed(
    spec: ShardSpec, plan: Plan, store: Store, replica: Replica, attempt: int = 1
) -> ShardResult:
    """A work of FIXED_S seconds of the replica, one shard after the other."""
    with replica._device_lock:
        time.sleep(FIXED_S)
    return ShardResult.of(spec, Facts({"ok": 1}))


class Noted(LocalPool):
    """Knows when all its replicas are up, and how many shards had come back by then."""

    def watch(self, replicas: int) -> None:
        """Before anything begins."""
        self.missing, self.back, self.since = replicas, 0, 0.0

    def wait(self, timeout_s: float) -> list[Event]:
        """As the pool does."""
        events = super().wait(timeout_s)
        if self.missing:
            self.missing -= sum(isinstance(event, Up) for event in events)
            self.back += sum(isinstance(event, Returned) for event in events)
            self.since = time.monotonic()
        return events


def bare(data: bytes) -> np.ndarray:
    """Decode and resize, and nothing else."""
    return images.crop(images.resize(simplejpeg.decode_jpeg(data), SIDE, 1 << 28), SIDE)


def write_shards(folder: Path, pictures: list[bytes], count: int) -> list[Path]:
    """Tars of PER_SHARD pictures each."""
    paths = []
    for first in range(0, count, PER_SHARD):
        paths.append(folder / f"{first:06d}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for number in range(first, min(first + PER_SHARD, count)):
                data = pictures[number % len(pictures)]
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return paths


def begin(root: Path, specs: list[ShardSpec], codec: Codec, weights: bytes) -> tuple[Store, Plan]:
    """An archive for raw codes."""
    plan = Plan(
        codec.fingerprint, QUALITY, 16, 256, len(specs), listing_digest(specs), "codes",
        resize=SIDE, crop=SIDE,
    )  # fmt: skip
    store = Store(str(root))
    commit.begin(store, plan)
    store.put_if_absent(layout.LISTING, table.write_listing(specs))
    store.put_if_absent(layout.model_name(plan.model), weights)
    return store, plan


def listed(paths: list[Path]) -> list[ShardSpec]:
    """Specs of shards of this machine."""
    found = storage.expand([str(path) for path in paths])
    return [ShardSpec(shard_id(o.url), o.url, o.size, o.etag) for o in found]


def cpu(call: Callable[[], object]) -> float:
    """Processor seconds of all threads."""
    start = time.process_time()
    call()
    return time.process_time() - start


def ceiling(folder: Path, count: int) -> str:
    """Pipeline against decoding and resizing alone."""
    pictures, weights = files([str(shard) for shard in SHARDS]), checkpoint.read("default")
    codec = Codec.from_bytes(weights)
    specs = listed(write_shards(folder, pictures, count))
    replica, ours, alone = Null(codec, decode_threads=1), list[float](), list[float]()
    for turn in range(ROUNDS):
        store, plan = begin(folder / f"archive-{turn}", specs, codec, weights)

        def pipeline(store: Store = store, plan: Plan = plan) -> None:
            for spec in specs:
                encode_shard(spec, plan, store, replica)

        alone.append(cpu(lambda: [bare(pictures[i % len(pictures)]) for i in range(count)]))
        ours.append(cpu(pipeline))
    a, b = (1e3 * min(found) / count for found in (alone, ours))
    return (f"ceiling: {b:.2f} CPU ms an image without a model, {a:.2f} of them decoding and "
            f"resizing alone: {a / b:.0%} of it, {1e3 / b:.0f} images/s a core\n")  # fmt: skip


def scaling(folder: Path, replicas: int, codec: Codec, weights: bytes) -> str:
    """Shards of a fixed time on so many replicas."""
    count = SHARDS_EACH * replicas
    specs = [ShardSpec(f"s{n:05d}", f"/s{n:05d}.tar", 1 << 20, "") for n in range(count)]
    store, plan = begin(folder / f"scaling-{replicas}", specs, codec, weights)
    work = importlib.import_module("benchmarks.ceiling").fixed  # not __main__'s, for the processes
    pool = Noted(store, plan, Resources(replicas=replicas, local=True), work)
    pool.watch(replicas)
    progress = Progress(count, bytes_left=sum(spec.size for spec in specs))
    try:
        driver.run(specs, pool, store, progress, 1.0, replicas)
        took = time.monotonic() - pool.since
    finally:
        pool.close()
    ideal = (count - pool.back) * FIXED_S / replicas
    return f"{replicas} replicas: {ideal / took:.1%} of the ideal, over {took:.0f} s\n"


def main() -> int:
    """Print both."""
    parser = argparse.ArgumentParser(
        "benchmarks.ceiling", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--images", type=int, default=1200, help="%(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    weights = checkpoint.read("default")
    codec = Codec.from_bytes(weights)
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(ceiling(Path(folder), args.images))
        for replicas in REPLICAS:
            sys.stdout.write(scaling(Path(folder), replicas, codec, weights))
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(common.run(main))
