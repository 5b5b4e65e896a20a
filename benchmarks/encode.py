"""``make bench``: the encode job against the sum of its parts, each alone, in one run.

    python -m benchmarks.encode [--images 800] [--replicas 1] [--device cpu]

The example shards are repeated to the number of images; ``jobs.encode`` runs over them with
processes of this machine, for raw codes and for bitstreams.  Before and after it every part runs
alone on the same pictures, and the faster time counts, so that a machine that slows down does not
flatter the job:

    read     the tars, to samples            decode   image files to pixels
    encode   pixels to codes (or latents)    code     search and entropy model
    write    rows to a Parquet table

The limit is what they need of the machine together: on a CPU the sum over its cores, or the two of
the model on the replicas, whichever is longer (``pipeline.driver.limit``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from jobs import common, encode
from jobs.common.pools import local_device
from pipeline.archive import table
from pipeline.archive.table import Row
from pipeline.plan import Facts, Plan, ShardResult, ShardSpec, Status
from pipeline.store.storage import Store
from pipeline.tars.samples import ShardReader
from pipeline.work import images
from pipeline.work.replica import Clock, Replica, batch_size
from pqmim.codec import Codec
from pqmim.coding.schedule import DEFAULT_PRICE

SHARDS = sorted((Path(__file__).parent.parent / "examples" / "shards").glob("*.tar"))
SIDE = 256  # pixels; every picture is resized and cropped to it, as for training a generator


def main() -> int:
    """For raw codes and for bitstreams: the parts, the job, the parts."""
    args = parse()
    args.device = local_device(args.device)
    torch.set_num_threads(1)
    print(f"{args.replicas} replicas on {args.device}, {os.cpu_count()} cores, {SIDE} x {SIDE}")
    for store in ("codes", "bitstream"):
        with tempfile.TemporaryDirectory() as folder:
            copies = copy_shards(Path(folder) / "in", args.images)
            before = parts(args, store)
            report = job(args, Path(folder), store)
            after = parts(args, store)
        alone = {name: min(before[name], after[name]) for name in before}
        show(args, store, copies, report, alone)
    return 0


def show(
    args: argparse.Namespace, store: str, copies: int, report: dict, alone: dict[str, float]
) -> None:
    """The job beside the limit that its parts give."""
    device = alone["encode"] + alone["code"]
    cores = sum(alone.values()) - (0 if args.device == "cpu" else device)
    limit = max(device / args.replicas, cores / (os.cpu_count() or 1))
    seconds = report["work_s"] / report["images"]
    each = ", ".join(f"{name} {1e3 * value:.2f}" for name, value in alone.items())
    print(f"\n--store {store}, quality {args.quality}: {report['images']} images, {copies} shards")
    print(f"parts alone, ms an image:  {each}")
    print(f"limit:                     {1 / limit:.2f} images/s")
    print(f"jobs.encode:               {1 / seconds:.2f} images/s = {limit / seconds:.3f} of it")
    print(f"the job itself says:       {report['of_limit']:.3f}, bound by {report['bound_by']}")


def copy_shards(folder: Path, images_wanted: int) -> int:
    """Repeat the example shards until they hold about that many images; how many there are."""
    folder.mkdir()
    count = max(2, round(images_wanted / 57 * len(SHARDS)))
    for number in range(count):
        shutil.copy(SHARDS[number % len(SHARDS)], folder / f"{number:06d}.tar")
    return count


def plan_of(args: argparse.Namespace, store: str, codec: Codec) -> Plan:
    """What the job is asked for."""
    return Plan(
        model=codec.fingerprint, quality=args.quality, stride=16, codewords=256, inputs=0,
        inputs_digest="", resize=SIDE, crop=SIDE, store=store,
        price=DEFAULT_PRICE if store == "bitstream" else 0.0,
    )  # fmt: skip


def parts(args: argparse.Namespace, store: str) -> dict[str, float]:
    """Seconds an image of every part alone, on one thread or on the device."""
    codec = Codec.load("default", args.device)
    plan = plan_of(args, store, codec)
    replica = Replica(codec)
    replica.calibrate(plan, 0.1)
    members = [sample.members for shard in SHARDS for sample in read(shard)]
    files = [data for m in members if (data := m.get("jpg") or m.get("png"))]
    pictures = [pixels for data in files if (pixels := decoded(data, plan)) is not None]
    size = batch_size(plan.batch_pixels, SIDE, SIDE)
    batches = [torch.stack(pictures[i : i + size]) for i in range(0, len(pictures), size)]
    clock = Clock()
    rows = [row_of(i, codes) for i, codes in enumerate(encoded(replica, plan, batches, clock))]
    count = len(pictures)
    spec = ShardSpec("shard", "shard.tar", 1, "")
    result = ShardResult.of(spec, Facts({"ok": len(rows)}))
    return {
        "read": timed(lambda: [list(read(shard)) for shard in SHARDS]) / count,
        "decode": timed(lambda: [decoded(data, plan) for data in files]) / count,
        "encode": clock.seconds["encode"] / count,
        "code": clock.seconds["code"] / count,
        "write": timed(lambda: table.write_table(rows, plan, spec, result)) / count,
    }


def timed(call: Callable[[], object]) -> float:
    """Seconds of the faster of two calls."""
    found = []
    for _ in range(2):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return min(found)


def read(shard: Path) -> Iterator:
    """The samples of an example shard."""
    with open(shard, "rb") as stream:
        yield from ShardReader(stream, shard.stat().st_size)


def decoded(data: bytes, plan: Plan) -> torch.Tensor | None:
    """A picture as the job decodes it, uint8 [3, SIDE, SIDE], if it is one."""
    try:
        return torch.from_numpy(images.decode(data, plan.pictures).pixels)
    except images.BadImage:
        return None


def encoded(
    replica: Replica, plan: Plan, batches: list[torch.Tensor], clock: Clock
) -> Iterator[tuple[bytes, bytes | None]]:
    """Codes and bitstream of every picture, as the job makes them."""
    for batch in batches:
        if plan.price > 0:
            codes, streams = replica.search(batch, len(batch), plan.coding, clock)
            yield from ((c.tobytes(), s) for c, s in zip(codes, streams, strict=True))
        else:
            yield from ((c.tobytes(), None) for c in replica.encode(batch, plan.quality, clock))


def row_of(number: int, payload: tuple[bytes, bytes | None]) -> Row:
    """A row of the table."""
    codes, stream = payload
    grid = SIDE // 16
    return Row(
        f"{number:06d}", Status.OK, None, SIDE, SIDE, grid, grid,
        codes if stream is None else None, stream, 0,
    )  # fmt: skip


def job(args: argparse.Namespace, folder: Path, store: str) -> dict:
    """Run jobs.encode; its summary."""
    output = str(folder / "archive")
    code = encode.main([
        "--input", str(folder / "in"), "--output", output, "--device", args.device, "--local",
        "--replicas", str(args.replicas), "--resize", str(SIDE), "--crop", str(SIDE),
        "--quality", str(args.quality), "--max-bad-images", "1", "--store", store, "--quiet",
    ])  # fmt: skip
    if code:
        raise SystemExit(code)
    archive = Store(output)
    name = max(n for n in archive.names("runs/") if n.endswith("summary.json"))
    return json.loads(archive.get(name))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("benchmarks.encode", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=800, help="%(default)s")
    parser.add_argument("--quality", type=int, default=16, help="sub-codes (%(default)s)")
    parser.add_argument("--replicas", type=int, default=os.cpu_count() or 1, help="%(default)s")
    parser.add_argument("--device", default="auto", help="%(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(common.run(main))
