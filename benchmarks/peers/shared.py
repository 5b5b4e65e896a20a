"""What every peer has of us: the decoder, the model, where the results go; and two moments.

``decoded`` and ``Model`` are the very functions of the job, so that only what is around them
differs.  The first picture decoded and the first model loaded are written into a file, from which
``benchmarks.peers`` knows when start-up ended.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.plan import Plan
from pipeline.work import images
from pqmim.codec import Codec

SIDE, QUALITY = 256, 16
PLAN = Plan(
    model="", quality=QUALITY, stride=16, codewords=256, inputs=0, inputs_digest="", store="codes",
    resize=SIDE, crop=SIDE,
)  # fmt: skip


@functools.cache
def stamp(what: str) -> None:
    """Note when it happened first in this process."""
    with open(os.environ.get("PEERS_STAMPS", os.devnull), "a") as file:
        file.write(f"{time.time()} {what}\n")


def decoded(data: bytes) -> np.ndarray:
    """An image file as uint8 [3, SIDE, SIDE].

    Raises:
        pipeline.work.images.BadImage: it is none.
    """
    stamp("decoded")
    torch.set_num_threads(1)
    return images.decode(data, PLAN.pictures).pixels


class Model:
    """The codec, loaded and warm."""

    def __init__(self, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.codec, self.threads = Codec.load("default", "cpu"), threads
        self.codec.encode(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), QUALITY)
        stamp("loaded")

    def codes(self, pixels: np.ndarray) -> list[bytes]:
        """uint8 [B,3,SIDE,SIDE] -> the raw codes of each."""
        torch.set_num_threads(self.threads)
        found = self.codec.encode(torch.from_numpy(np.ascontiguousarray(pixels)), QUALITY)
        return [codes.tobytes() for codes in found.numpy()]


def arguments(description: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line that every peer has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--input", required=True, help="folder of shards")
    parser.add_argument("--output", required=True, help="folder, new")
    parser.add_argument("--models", type=int, default=1, help="copies of the model")
    parser.add_argument("--workers", type=int, default=4, help="for decoding")
    parser.add_argument("--threads", type=int, default=1, help="of a model")
    parser.add_argument("--batch", type=int, default=32, help="images")
    args = parser.parse_args(argv)
    args.shards = sorted(str(path) for path in Path(args.input).glob("*.tar"))
    return args
