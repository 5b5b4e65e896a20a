"""Memory of one replica over many shards, beside the bound that the README states.

    python -m benchmarks.memory [--shards 100] [--megapixels 100] [--queue-mb 256]

Shards are made on the fly, each with small pictures and one large flat one, in turn a baseline, a
progressive and a CMYK JPEG, an RGBA PNG, and a PNG bomb over the limit; two are in flight, as in an
actor.  After every fifth shard nothing is in flight and the resident memory is printed.  The model
is a tiny random one unless ``--weights`` names another; what it takes is measured first, alone.

Exit code 1 if the peak is over the bound, or the memory after shard 10 grows by over 5 %: from the
mean of the first half of the readings to that of the second.
"""

from __future__ import annotations

import argparse
import gc
import io
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image

from pipeline.plan import Plan, ShardSpec
from pipeline.store.shard_names import shard_id
from pipeline.store.storage import Store
from pipeline.work.encoder import encode_shard
from pipeline.work.replica import PENDING_BATCHES, Replica, resident_bytes
from pqmim.autoencoder.config import AutoencoderConfig
from pqmim.autoencoder.network import PQVAE
from pqmim.checkpoint import to_bytes
from pqmim.codec import Codec

IN_FLIGHT = 2  # shards a replica, as in pipeline.driver.ray_pool
WORK_BYTES = 26  # a pixel of a picture that is being decoded: pipeline.work.images
PIXEL_BYTES = 3
SMALL = 24  # pictures beside the large one
EVERY = 5
WARM = 10  # shards
FLAT, LEAST_READINGS = 0.05, 10  # growth says nothing in fewer: readings swing by 80 MiB
MIB = 1 << 20


def main() -> int:
    """Encode the shards; print memory and bound; check them."""
    args = parse()
    torch.set_num_threads(1)
    codec = Codec.load(args.weights) if args.weights else _tiny()
    side = int((args.megapixels * 1e6) ** 0.5)
    kinds = large_files(side)
    largest = max(map(len, kinds.values()))
    plan = Plan(
        model=codec.fingerprint, quality=1, stride=codec.config.stride,
        codewords=codec.config.codewords, inputs=1, inputs_digest="", store="codes",
        max_pixels=side * side,
    )  # fmt: skip
    replica = Replica(codec, args.decode_threads, args.queue_mb * MIB)
    replica.calibrate(plan, seconds=0.1)
    # One by one: the bound leaves the model's memory apart, which queues cannot change.
    model = peak_of(replica, plan, side)
    base = resident_bytes()
    limit = bound(base, model, plan, replica.queue_bytes, side * side, largest)
    print(f"base {base / MIB:.0f} MiB, model on the largest picture {model / MIB:.0f} MiB")
    _reset_peak()
    with tempfile.TemporaryDirectory() as folder:
        found = run(args.shards, kinds, plan, replica, Path(folder))
    peak = _status("VmHWM")
    warm = [rss for number, rss in found.items() if number >= min(WARM, args.shards)]
    growth = growth_of(warm)
    print(f"peak {peak / MIB:.0f} MiB, bound {limit / MIB:.0f} MiB, growth {growth:+.1%}")
    grows = len(warm) >= LEAST_READINGS and growth > FLAT
    return 1 if peak > limit or grows else 0


def growth_of(readings: list[int]) -> float:
    """From the mean of the first half to that of the second, as a share."""
    half = len(readings) // 2
    early, late = readings[: len(readings) - half], readings[half:]
    return sum(late) / len(late) / (sum(early) / len(early)) - 1


def bound(base: int, model: int, plan: Plan, queue_bytes: int, pixels: int, largest: int) -> int:
    """The most that a replica's memory may be, in bytes.

    For each shard in flight: the queue, or the largest picture alone; the batch made of it; the
    pictures that wait for a batch; and the next file, twice while it is being read.
    """
    queue = max(queue_bytes, WORK_BYTES * pixels + largest)
    batch = PIXEL_BYTES * max(plan.batch_pixels, pixels)
    waiting = PIXEL_BYTES * PENDING_BATCHES * plan.batch_pixels
    return base + model + IN_FLIGHT * (queue + batch + waiting + 2 * largest)


def peak_of(replica: Replica, plan: Plan, side: int) -> int:
    """Memory that the model takes for one picture of side x side, beside the picture."""
    size = -(-side // plan.stride) * plan.stride
    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    _reset_peak()
    before = resident_bytes()
    replica.codec.encode(pixels, plan.quality)
    return max(0, _status("VmHWM") - before)


def run(
    shards: int, kinds: dict[str, bytes], plan: Plan, replica: Replica, folder: Path
) -> dict[int, int]:
    """Resident bytes by number of shards done, every fifth and at rest."""
    found, begin = {}, time.perf_counter()
    small = small_files()
    store = Store(str(folder / "out"))

    def one(number: int) -> None:
        path = folder / f"{number}.tar"
        write_shard(path, kinds, small, number)
        stat = path.stat()
        spec = ShardSpec(
            shard_id(str(path)), str(path), stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
        )
        result = encode_shard(spec, plan, store, replica)
        refused = result.rows.get("too_large", 0)
        if result.outcome != "done" or refused != (list(kinds)[number % len(kinds)] == "bomb"):
            raise SystemExit(f"shard {number}: {result.outcome}, {result.rows}")
        path.unlink()

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        for first in range(0, shards, EVERY):
            list(pool.map(one, range(first, min(shards, first + EVERY))))
            gc.collect()
            done = min(shards, first + EVERY)
            found[done] = resident_bytes()
            seconds = time.perf_counter() - begin
            print(f"shard {done:4d}: {found[done] / MIB:6.0f} MiB, {seconds:5.0f} s", flush=True)
    return found


def large_files(side: int) -> dict[str, bytes]:
    """Flat pictures of side x side, which are small files, and one that is over the limit."""
    flat = Image.new("RGB", (side, side), (90, 120, 60))
    return {
        "jpeg": _encode(flat, "JPEG"),
        "progressive": _encode(flat, "JPEG", progressive=True, subsampling=0),
        "png": _encode(Image.new("RGBA", (side, side), (9, 9, 9, 99)), "PNG", compress_level=1),
        "cmyk": _encode(Image.new("CMYK", (side, side), (9, 99, 9, 0)), "JPEG"),
        "bomb": _encode(Image.new("L", (side + 1, side)), "PNG", compress_level=1),
    }


def small_files() -> list[bytes]:
    """Pictures as most archives have them, of a few shapes."""
    noise = Image.effect_noise((640, 480), 40).convert("RGB")
    sizes = [(500, 375), (375, 500), (640, 480), (256, 256)]
    return [_encode(noise.resize(sizes[i % 4]), "JPEG") for i in range(SMALL)]


def write_shard(path: Path, kinds: dict[str, bytes], small: list[bytes], number: int) -> None:
    """A tar of the small pictures with a large one among them."""
    large = list(kinds.values())[number % len(kinds)]
    with tarfile.open(path, "w") as tar:
        for index, data in enumerate([*small[: SMALL // 2], large, *small[SMALL // 2 :]]):
            info = tarfile.TarInfo(f"{index:04d}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _tiny() -> Codec:
    torch.manual_seed(0)
    config = AutoencoderConfig(
        widths=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1),
        subcodes=4, codewords=16, subcode_dims=2,
    )  # fmt: skip
    return Codec.from_bytes(to_bytes(PQVAE(config), None))


def _status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--megapixels", type=float, default=100.0, help="of the largest picture")
    parser.add_argument("--queue-mb", type=int, default=256)
    parser.add_argument("--decode-threads", type=int, default=4)
    parser.add_argument("--weights", help="of the model; a tiny random one without")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
