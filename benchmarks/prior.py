"""The entropy model alone: engines and forms of product, stage plans, the range coder.

    python -m benchmarks.prior [PICTURE]

One run on one machine and one thread: CPU seconds to compress and decompress a picture with the
engine that was chosen here, and with every other engine and form of product forced (the files are
the same bytes, or it says so); entropy coding under three stage plans beside the encoder; and the
range coder alone in symbols a second.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.encode import SHARDS, read
from jobs import common
from pqmim import checkpoint
from pqmim.codec import Codec
from pqmim.coding import range_coder, schedule
from pqmim.pictures.read import read as read_picture
from pqmim.prior import fused, load, products, tensors
from pqmim.prior.engine import Model
from pqmim.prior.integers import Checkpoint

CPU = torch.device("cpu")
SYMBOLS = 1 << 20
ADDITION = 1 << 24  # the coder's total
ROUNDS = 3


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser("benchmarks.prior", description=__doc__.split("\n")[0])
    parser.add_argument("picture", nargs="?", type=Path, help="an image file (an example photo)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = args.picture.read_bytes() if args.picture else example()
    pixels = read_picture(data).tensor()
    print(f"{pixels.shape[2]} x {pixels.shape[1]} pixels, {cpu_name()}")
    engines(pixels)
    plans(Codec.load(), pixels)
    print(f"range coder alone: {symbols_per_s() / 1e6:.1f} M symbols/s")
    return 0


def example() -> bytes:
    """The first photograph of the example shards."""
    return next(m["jpg"] for s in read(SHARDS[0]) if "jpg" in (m := s.members))


def cpu_name() -> str:
    """What this machine's processor can do, as far as it says so."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown processor"
    facts = dict(line.split(":", 1) for line in text.split("\n\n")[0].split("\n") if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
    flags = facts.get("flags", facts.get("Features", "")).split()
    has = ", ".join(flag for flag in wanted if flag in flags) or "none of the usual extensions"
    family = f"family {facts.get('cpu family', '?')} model {facts.get('model', '?')}"
    return f"{facts.get('model name', 'a processor')}, {family}: {has}"


def every_engine(prior: Checkpoint) -> Iterator[tuple[str, Callable[[], Model]]]:
    """The one that is chosen, and all that can be forced."""
    yield "as chosen", lambda: load.load(prior, CPU)
    for form in products.FORMS:
        yield f"compiled, {form}", functools.partial(fused.load, prior, form)
        yield f"tensors, {form}", functools.partial(tensors.Engine, prior, CPU, form)


def engines(pixels: torch.Tensor) -> None:
    """Compress and decompress with each, least CPU seconds of some interleaved rounds."""
    weights = checkpoint.parse(checkpoint.read("default"), "default")
    assert weights.prior is not None
    codecs = {}
    for name, make in every_engine(weights.prior):
        codec = Codec(weights.model, weights.fingerprint, "cpu", weights.prior)
        begin = time.process_time()
        try:
            codec._prior = make()
        except (RuntimeError, ImportError) as error:
            print(f"{name:18s} not here: {error}")
            continue
        codecs[name] = codec, time.process_time() - begin
    files, least = dict[str, bytes](), dict[str, list[float]]()
    for _ in range(ROUNDS):
        for name, (codec, _) in codecs.items():
            files[name], there = timed(
                functools.partial(codec.compress, pixels, price=schedule.DEFAULT_PRICE)
            )
            _, back = timed(functools.partial(codec.decompress, files[name]))
            best = least.setdefault(name, [there, back])
            best[:] = min(best[0], there), min(best[1], back)
    for name, (there, back) in least.items():
        same = "" if files[name] == files["as chosen"] else "  OTHER BYTES"
        print(
            f"{name:18s} compress {there:7.3f} s, decompress {back:7.3f} s, "
            f"load {codecs[name][1]:.2f} s, {len(files[name])} bytes{same}"
        )


def plans(codec: Codec, pixels: torch.Tensor) -> None:
    """Entropy coding of given codes under three stage plans, beside the encoder."""
    codes, base = timed(lambda: codec.encode(pixels[None]))
    print(f"encoder: {base:.3f} s")
    height, width, quality = codes.shape[1:]
    for name in ("FAST_PLAN", "DEFAULT_PLAN", "BEST_PLAN"):
        plan = getattr(schedule, name)
        payloads, coding = timed(functools.partial(codec.entropy_encode, codes, plan))
        _, back = timed(
            functools.partial(codec.entropy_decode, payloads, height, width, quality, plan)
        )
        print(
            f"{name:12s} {plan}: encode {coding:.3f} s = {coding / base:.2f} x the encoder, "
            f"decode {back:.3f} s, {len(payloads[0])} bytes"
        )


def timed(call: Callable) -> tuple:
    """The result of a call, and its CPU seconds."""
    begin = time.process_time()
    result = call()
    return result, time.process_time() - begin


def symbols_per_s() -> float:
    """Intervals through the range coder."""
    rng = np.random.default_rng(0)
    length = rng.integers(1, 1 << 16, SYMBOLS)
    start = rng.integers(0, ADDITION - (1 << 16), SYMBOLS)
    _, seconds = timed(lambda: range_coder.encode_intervals(start, length))
    return SYMBOLS / seconds


if __name__ == "__main__":
    sys.exit(common.run(main))
