"""Compress here, decompress elsewhere: do the codes come back, on every kernel that can be forced?

    python -m benchmarks.exactness FOLDER [--qualities 1 2 4 8 12 16]

Files are written by this process in one batch per image size.  Other processes decode them one by
one, with other threads, instruction sets and library modes, and hash the codes.  One line a mode:
how many files, how many differ.  Anything but 0 is a broken promise, and exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from pqmim.codec import Codec
from pqmim.evaluation import rd

MODES: dict[str, dict[str, str]] = {
    "as it is, 2 threads": {"OMP_NUM_THREADS": "2"},
    "ATEN_CPU_CAPABILITY=default": {"ATEN_CPU_CAPABILITY": "default"},
    "MKL_CBWR=COMPATIBLE": {"MKL_CBWR": "COMPATIBLE"},
    "ONEDNN_MAX_CPU_ISA=SSE41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "NUMBA_CPU_NAME=generic": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
    "NUMBA_DISABLE_JIT=1": {"NUMBA_DISABLE_JIT": "1"},  # the tensor engine
}


def main() -> int:
    """Write the files, then decode them in every mode."""
    parser = argparse.ArgumentParser("benchmarks.exactness", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--qualities", type=int, nargs="+", default=[4, 16, 32])
    parser.add_argument("--decode", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.decode:
        return decode(args.folder)
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = write(args.folder, folder, args.qualities)
        for mode, environment in MODES.items():
            command = [sys.executable, "-m", "benchmarks.exactness", str(folder), "--decode"]
            done = subprocess.run(
                command, env={**os.environ, **environment}, capture_output=True, text=True
            )
            differ = int(done.stdout) if done.returncode == 0 else count
            wrong += differ
            print(f"{mode:30s} {count} files, {differ} differ {done.stderr[-300:]}", flush=True)
    return 1 if wrong else 0


def write(source: Path, folder: Path, qualities: list[int]) -> int:
    """One ``.pqm`` and one hash of the codes for each image and quality; how many."""
    codec = Codec.load()
    alike: dict[tuple[int, int], list[torch.Tensor]] = {}
    for _, image in rd.load_folder(source):
        alike.setdefault((image.shape[1], image.shape[2]), []).append(image)
    count = 0
    for (height, width), images in alike.items():
        codes = torch.cat([codec.encode(image[None]) for image in images])
        for quality in qualities:
            kept = codes[..., :quality]
            for data, one in zip(codec.compress_codes(kept, height, width), kept, strict=True):
                digest = hashlib.sha256(one.contiguous().numpy().tobytes()).hexdigest()
                (folder / f"{count:05d}-{digest}.pqm").write_bytes(data)
                count += 1
    return count


def decode(folder: Path) -> int:
    """Decode every file alone; prints how many give other codes than their name says."""
    codec, wrong = Codec.load(), 0
    for path in sorted(folder.glob("*.pqm")):
        codes = codec.decompress_codes(path.read_bytes())
        wrong += hashlib.sha256(codes.numpy().tobytes()).hexdigest() != path.stem.split("-")[1]
    print(wrong)
    return 0


if __name__ == "__main__":
    sys.exit(main())
