"""Our codec's speed on the CPU against CompressAI's models, in one run, at equal threads.

    python -m benchmarks.compressai_speed [--threads 1] [--rounds 5] [--archive]

CompressAI wants numpy < 2, so it lives in a virtual environment that this command makes (2 GB, a
few minutes) and never among the dependencies.  Its models have random weights: the architecture
sets the time, and their latents are nearly all zero, which is the easy case for its coder.  One
process a model, all loaded first, one picture of 768 x 512 through each in turn, medians of the
rounds.  Pixels are uint8 at both ends.  CPU seconds stand beside wall time: they hold on a busy
machine as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 768, 512
OURS = "pqmim"
# The zoo's constructors at its smaller size (N = 128): the kinder choice for them.
THEIRS = {"bmshj2018_hyperprior": 4, "mbt2018_mean": 4, "cheng2020_anchor": 3}
AIM = "mbt2018_mean"
# compressai 1.2.8 has a wheel for Python 3.11; torchvision 0.28 belongs to torch 2.13.
WITHOUT_DEPENDENCIES = ["compressai==1.2.8", "torchvision==0.28.0"]
PACKAGES = [
    "torch==2.13.0", "numpy<2", "scipy", "pandas", "einops", "pytorch-msssim", "torch_geometric",
    "pillow", "matplotlib", "tomli", "tqdm", "pybind11", "wheel", "setuptools",
]  # fmt: skip

Call = Callable[[torch.Tensor], tuple[Any, int]]


def main() -> int:
    """Make the environment, start the workers, and print the table."""
    args = _parse()
    if args.worker:
        return work(args)
    python = environment(args.venv)
    names = [OURS, *args.models]
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.raw"
        picture.write_bytes(photograph())
        workers = {name: start(name, python, picture, args) for name in names}
        try:
            times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for number in range(args.rounds + 1):  # the first warms up
                for name in names:
                    sys.stderr.write(f"round {number} of {args.rounds}: {name}\n")
                    found = ask(workers[name])
                    if number:
                        times[name].append(found)
        finally:
            for worker in workers.values():
                worker.kill()
                worker.wait()
    sys.stdout.write(table(times, args))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks.compressai_speed", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of torch, for all (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="%(default)s")
    parser.add_argument(
        "--archive", action="store_true",
        help="ours as jobs.encode stores by default: 16 sub-codes, the fast stages",
    )  # fmt: skip
    parser.add_argument("--models", nargs="+", choices=THEIRS, default=list(THEIRS))
    parser.add_argument("--venv", type=Path, default=ROOT / ".run" / "compressai")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--picture", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def environment(folder: Path) -> Path:
    """The interpreter of the virtual environment, made if it is not there."""
    python, done = folder / "bin" / "python", folder / "complete"
    if done.exists():
        return python
    sys.stderr.write(f"installing CompressAI into {folder}\n")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    subprocess.run([*pip, *PACKAGES], check=True)
    subprocess.run([*pip, "--no-deps", *WITHOUT_DEPENDENCIES], check=True)
    done.touch()
    return python


def photograph() -> bytes:
    """An example photograph at 768 x 512, uint8 [3,H,W]."""
    import io

    import numpy as np
    from PIL import Image

    from pipeline.tars.samples import ShardReader

    shard = min((ROOT / "examples" / "shards").glob("*.tar"))
    with shard.open("rb") as stream:
        samples = ShardReader(stream, shard.stat().st_size)
        photos = [s.members["jpg"] for s in samples if "jpg" in s.members]
    with Image.open(io.BytesIO(photos[1])) as image:
        array = np.asarray(image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(array.transpose(2, 0, 1)).tobytes()


def start(
    name: str, python: Path, picture: Path, args: argparse.Namespace
) -> subprocess.Popen[str]:
    """One model in a process of its own."""
    interpreter = sys.executable if name == OURS else str(python)
    command = [
        interpreter, "-m", "benchmarks.compressai_speed", "--worker", name,
        "--picture", str(picture), "--threads", str(args.threads),
        *(["--archive"] if args.archive else []),
    ]  # fmt: skip
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **threads}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def ask(worker: subprocess.Popen[str]) -> dict[str, float]:
    """One picture there and back; its times.

    Raises:
        RuntimeError: the worker died; what it said is on stderr.
    """
    if worker.stdin is None or worker.stdout is None:
        raise RuntimeError("a worker without pipes")
    worker.stdin.write("go\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"a worker ended with exit code {worker.wait()}: {worker.args!r}")
    return cast("dict[str, float]", json.loads(line))


def work(args: argparse.Namespace) -> int:
    """The worker: one picture there and back for each line of stdin."""
    torch.set_num_threads(args.threads)
    data = bytearray(args.picture.read_bytes())
    pixels = torch.frombuffer(data, dtype=torch.uint8).reshape(3, HEIGHT, WIDTH)
    encode, decode = ours(args.archive) if args.worker == OURS else theirs(args.worker)
    for _ in sys.stdin:
        clocks = [(time.perf_counter(), time.process_time())]
        packed, size = encode(pixels)
        clocks.append((time.perf_counter(), time.process_time()))
        shown = decode(packed)
        clocks.append((time.perf_counter(), time.process_time()))
        if shown.shape != pixels.shape or shown.dtype != torch.uint8:
            raise RuntimeError(f"{args.worker} decodes to {shown.dtype} {tuple(shown.shape)}")
        (w0, c0), (w1, c1), (w2, c2) = clocks
        times = {"encode": w1 - w0, "decode": w2 - w1, "encode_cpu": c1 - c0, "decode_cpu": c2 - c1}
        sys.stdout.write(json.dumps({**times, "bytes": size}) + "\n")
        sys.stdout.flush()
    return 0


def ours(archive: bool) -> tuple[Call, Callable[[Any], torch.Tensor]]:
    """The shipped weights, codes searched at the default price; all sub-codes in the default
    stages, or as in an archive."""
    from pqmim.codec import Codec
    from pqmim.coding import schedule

    codec = Codec.load()

    def encode(pixels: torch.Tensor) -> tuple[bytes, int]:
        quality, plan = (16, schedule.FAST_PLAN) if archive else (None, schedule.DEFAULT_PLAN)
        data = codec.compress(pixels, quality, plan, price=schedule.DEFAULT_PRICE)
        return data, len(data)

    return encode, codec.decompress


def theirs(name: str) -> tuple[Call, Callable[[Any], torch.Tensor]]:
    """An architecture of CompressAI's zoo with random weights."""
    import importlib

    # torchvision's wheel wants a CUDA torch: it imports once these names exist, and none is called
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.manual_seed(0)
    zoo = importlib.import_module("compressai.zoo")
    model = getattr(zoo, name)(quality=THEIRS[name], pretrained=False).eval()
    model.update(force=True)

    @torch.no_grad()
    def encode(pixels: torch.Tensor) -> tuple[Any, int]:
        packed = model.compress(pixels[None].float() / 255)
        return packed, sum(len(s) for strings in packed["strings"] for s in strings)

    @torch.no_grad()
    def decode(packed: Any) -> torch.Tensor:
        shown = model.decompress(packed["strings"], packed["shape"])["x_hat"]
        pixels: torch.Tensor = shown[0].clamp(0, 1).mul(255).round().to(torch.uint8)
        return pixels

    return encode, decode


def table(times: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> str:
    """Medians, and how many times our time each model takes."""
    medians = {
        name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        for name, rounds in times.items()
    }
    lines = [
        f"{WIDTH} x {HEIGHT}, {args.threads} threads, medians of {args.rounds} interleaved rounds",
        "model                  encode s  (x ours)  decode s  (x ours)    CPU: encode       decode",
    ]
    own = medians[OURS]
    for name, m in medians.items():
        ratios = {key: m[key] / own[key] for key in own}
        lines.append(
            f"{name:22s} {m['encode']:8.3f}  ({ratios['encode']:6.2f})  {m['decode']:8.3f}"
            f"  ({ratios['decode']:6.2f})  {m['encode_cpu']:6.3f} ({ratios['encode_cpu']:5.2f})"
            f"  {m['decode_cpu']:6.3f} ({ratios['decode_cpu']:5.2f})"
        )
    if AIM in medians:
        encode, decode = (medians[AIM][key] / own[key] for key in ("encode", "decode"))
        lines.append(f"aim, {AIM} at least 2 x ours: encode {encode:.2f} x, decode {decode:.2f} x")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
