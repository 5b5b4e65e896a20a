"""The entropy model against the autoencoder's encoder, and what bitstreams cost the job.

    python -m benchmarks.prior [--images 300]

One run on one machine: seconds per 256 x 256 image of the encoder alone (the baseline) and of
entropy coding under three stage plans; the range coder alone in symbols a second; and the whole
``jobs.encode`` with ``--store codes`` and with ``--store bitstream`` over the same shards.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import encode as job_bench
from jobs import common
from pqmim.codec import Codec
from pqmim.coding import range_coder, schedule

BATCH = 16
SYMBOLS = 1 << 20
ADDITION = 1 << 24  # the coder's total


def main() -> int:
    """Measure model and coder alone, then the job twice."""
    args = job_bench.parse(default_images=300)
    torch.set_num_threads(args.threads)
    codec = Codec.load("default", args.device)
    pictures = torch.stack(job_bench.pictures()[:BATCH])
    codes = codec.encode(pictures, args.quality)
    base = timed(lambda: codec.encode(pictures, args.quality).cpu()) / BATCH
    print(f"encoder: {1e3 * base:.1f} ms an image of 256 x 256, quality {args.quality}")
    plans = {"fast": schedule.FAST_PLAN, "default": schedule.DEFAULT_PLAN,
             "best": schedule.BEST_PLAN}  # fmt: skip
    for name, plan in plans.items():
        payloads = codec.entropy_encode(codes, plan)
        coding = timed(functools.partial(codec.entropy_encode, codes, plan)) / BATCH
        height, width, quality = codes.shape[1:]
        decode = functools.partial(codec.entropy_decode, payloads, height, width, quality, plan)
        back = timed(decode) / BATCH
        size = sum(map(len, payloads)) / BATCH
        print(
            f"{name:8s} {plan}: encode {1e3 * coding:.1f} ms = {coding / base:.2f} x the encoder, "
            f"decode {1e3 * back:.1f} ms, {size:.0f} bytes an image"
        )
    print(f"range coder alone: {symbols_per_s() / 1e6:.1f} M symbols/s")
    with tempfile.TemporaryDirectory() as folder:
        speeds = {}
        for store in ("codes", "bitstream"):
            (Path(folder) / store).mkdir()
            job_bench.copy_shards(Path(folder) / store / "in", args.images)
            report, _ = job_bench.job(args, Path(folder) / store, store)
            speeds[store] = float(report["images_per_s"])
    ratio = speeds["codes"] / speeds["bitstream"]
    print(f"jobs.encode: {speeds['codes']:.2f} images/s with codes, {speeds['bitstream']:.2f} with "
          f"bitstreams: {ratio:.2f} x the time")  # fmt: skip
    return 0


def timed(call: Callable[[], object], least_s: float = 3.0) -> float:
    """Median seconds of a call, repeated for at least so long."""
    call()
    found: list[float] = []
    while sum(found) < least_s:
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return float(np.median(found))


def symbols_per_s() -> float:
    """The range coder on random intervals."""
    rng = np.random.default_rng(0)
    length = rng.integers(1, 1 << 18, SYMBOLS)
    start = rng.integers(0, ADDITION - (1 << 18), SYMBOLS)
    return SYMBOLS / timed(lambda: range_coder.encode_intervals(start, length), 1.0)


if __name__ == "__main__":
    sys.exit(common.run(main))
