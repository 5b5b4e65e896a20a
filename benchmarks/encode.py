"""``make bench``: the encode job against the bare model, in one run on one machine.

    python -m benchmarks.encode [--images 2000] [--replicas 1] [--threads 2]

The example shards are repeated to the number of images; ``jobs.encode`` runs over them with local
Ray.  The baseline is ``Codec.encode`` alone: one process, as many torch threads as the job's
replicas have together, the same decoded pictures already in memory, in batches of the same shape.
It is measured before and after the job and the faster of the two counts, so that a machine that
slows down does not flatter the job.  Idle is the share of the time between a replica's first and
last shard in which its model did not compute.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from jobs import common, encode
from pipeline.archive import commit
from pipeline.plan import Plan
from pipeline.store.storage import Store
from pipeline.tars.samples import ShardReader
from pipeline.work import images
from pipeline.work.replica import batch_size
from pqmim.codec import Codec

SHARDS = sorted((Path(__file__).parent.parent / "examples" / "shards").glob("*.tar"))
SIDE = 256  # pixels; every picture is resized and cropped to it, as for training a generator
PLAN = Plan(
    model="",
    quality=1,
    stride=16,
    codewords=256,
    inputs=0,
    inputs_digest="",
    resize=SIDE,
    crop=SIDE,
)


def main() -> int:
    """Measure bare, job, bare; print the ratio and where the time went."""
    args = parse()
    torch.set_num_threads(args.replicas * args.threads)
    with tempfile.TemporaryDirectory() as folder:
        copies = copy_shards(Path(folder) / "in", args.images)
        codec = Codec.load("default", args.device)
        before = bare(codec, args.quality, args.bare_seconds)
        report, store = job(args, Path(folder))
        after = bare(codec, args.quality, args.bare_seconds)
        results = commit.committed(store)
    limit = max(before, after)
    speed = report["images_per_s"]
    order = sorted(results.values(), key=lambda r: r.shard_id)
    busy = sum(r.seconds["encode"] for r in order)
    idle = 1 - busy / (report["work_s"] * args.replicas)
    size = f"{report['images']} images of {SIDE} x {SIDE} in {copies} shards"
    hands = f"{args.replicas} replicas x {args.threads} threads on {args.device}"
    print(f"{size}, quality {args.quality}, {hands}")
    print(f"bare Codec.encode: {before:.2f} and {after:.2f} images/s (before, after)")
    print(f"jobs.encode:       {speed:.2f} images/s = {speed / limit:.3f} of bare")
    print(f"replica idle:      {idle:.1%} of the time from the first shard to the last")
    total = sum(report["seconds"].values())
    for stage, seconds in report["seconds"].items():
        print(f"  {stage:8s} {seconds:8.1f} s  {seconds / total:6.1%}")
    if copies >= 50:
        early, late = order[4].rss_bytes / 2**20, order[49].rss_bytes / 2**20
        print(
            f"memory of the replica: {early:.0f} MiB after shard 5, {late:.0f} MiB after shard 50"
        )
    return 0


def copy_shards(folder: Path, images_wanted: int) -> int:
    """Repeat the example shards until they hold about that many images; how many there are."""
    folder.mkdir()
    count = max(2, round(images_wanted / 57 * len(SHARDS)))
    for number in range(count):
        shutil.copy(SHARDS[number % len(SHARDS)], folder / f"{number:06d}.tar")
    return count


def bare(codec: Codec, quality: int, seconds: float) -> float:
    """Images a second of the model alone on preloaded pictures."""
    found = pictures()
    size = batch_size(PLAN, SIDE, SIDE)
    batches = [torch.stack(found[i : i + size]) for i in range(0, len(found) - size + 1, size)]
    codec.encode(batches[0], quality).cpu()
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        codec.encode(batches[done % len(batches)], quality).cpu()
        done += 1
    return done * size / (time.perf_counter() - begin)


def pictures() -> list[torch.Tensor]:
    """The example photographs as the job decodes them, uint8 [3, SIDE, SIDE]."""
    found = []
    for shard in SHARDS:
        with open(shard, "rb") as stream:
            for sample in ShardReader(stream, shard.stat().st_size):
                data = sample.members.get("jpg") or sample.members["png"]
                try:
                    found.append(torch.from_numpy(images.decode(data, PLAN).pixels))
                except images.BadImage:
                    continue
    return found


def job(args: argparse.Namespace, folder: Path, store: str = "codes") -> tuple[dict, Store]:
    """Run jobs.encode; its summary and its archive."""
    output = str(folder / "archive")
    code = encode.main([
        "--input", str(folder / "in"), "--output", output, "--device", args.device,
        "--replicas", str(args.replicas), "--threads", str(args.threads),
        "--cpus-per-replica", str(args.threads), "--resize", str(SIDE), "--crop", str(SIDE),
        "--quality", str(args.quality), "--max-bad-images", "1", "--store", store,
    ])  # fmt: skip
    if code:
        raise SystemExit(code)
    archive = Store(output)
    name = max(n for n in archive.names("runs/") if n.endswith("summary.json"))
    return json.loads(archive.get(name)), archive


def parse(default_images: int = 2000) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("benchmarks.encode", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=default_images, help="%(default)s")
    parser.add_argument("--quality", type=int, default=8, help="sub-codes (%(default)s)")
    parser.add_argument("--replicas", type=int, default=1, help="%(default)s")
    parser.add_argument("--threads", type=int, default=2, help="torch threads each (%(default)s)")
    parser.add_argument("--device", default="cpu", help="%(default)s")
    parser.add_argument("--bare-seconds", type=float, default=20.0, help="%(default)s, twice")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(common.run(main))
