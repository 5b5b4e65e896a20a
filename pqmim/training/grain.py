"""Fits the shape of grain on photographs, and says what it explains of others.

    python -m pqmim.training.grain train-000006.tar --pictures 60

A crop of 256 x 256 of each photograph at three prices of a bit; every third one is held out, then
the shape that is printed is fitted on all: it is what ``pqmim/realism/grain.py`` ends with.
60 pictures take 75 s of one AMD EPYC core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pqmim.codec import Codec
from pqmim.realism import fit
from pqmim.training.photographs import photos

SIDE, PRICES = 256, (0.4, 0.12, 0.05)
SPACING = 4  # photographs of a tar; neighbours may be of one series
HELD_OUT = 3  # one picture of so many


def seen(codec: Codec, crop: Tensor) -> list[fit.Seen]:
    """What a photograph uint8 [3,H,W] misses at each price."""
    height, width = (int(side) for side in crop.shape[1:])
    latent, found = codec.latent(crop[None]), []
    for price in PRICES:
        codes, _ = codec.search_latent(latent, price)
        shown = codec.decode(codes, height, width)[0].cpu().numpy()
        stride = codec.config.stride
        found.append(fit.seen(crop.numpy(), shown, codes[0].numpy(), stride))
    return found


def main(argv: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tars", nargs="+", type=Path)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--weights", default="default")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    codec, random = Codec.load(args.weights), np.random.default_rng(0)
    images = photos.load(args.tars, smallest=SIDE)
    found = []
    for image in images[1::SPACING][: args.pictures]:
        top, left = (int(random.integers(0, side - SIDE + 1)) for side in image.shape[1:])
        crop = image[:, top : top + SIDE, left : left + SIDE].contiguous()
        found.append(seen(codec, crop))
    parts = [[s for n, p in enumerate(found) if (n % HELD_OUT == 0) == out for s in p]
             for out in (True, False)]  # fmt: skip
    shape = fit.fit(parts[1])
    sys.stdout.write(f"explained of held-out ones, by band: {fit.explained(parts[0], shape)}\n")
    sys.stdout.write(f"{fit.fit([s for part in found for s in part])}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
