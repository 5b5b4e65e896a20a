"""What ``--max-bytes`` makes of its bytes, against plain compression at every price.

    python -m benchmarks.budget kodim03.png kodim13.png kodim20.png --sizes 200 2000 20000

Of every picture and budget: bytes used, PSNR, CPU seconds, and the best plain file of as many bytes
or fewer, out of a sweep of prices and qualities.  The last line says by how much plain files were
better at most, and where.  One thread; the entropy model is warm.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pqmim.codec import Codec
from pqmim.commands.formats import read_pixels
from pqmim.files import budget, single
from pqmim.metrics import psnr

SWEEP = (  # quality as a share of all sub-codes, and prices
    (1.0, (0.0, *np.geomspace(0.002, 4.0, 14).tolist())),
    (0.5, (0.0, 0.05, 0.2, 0.8, 2.0, 8.0)),
    (0.25, (0.0, 0.1, 0.5, 2.0, 8.0)),
    (0.125, (0.0, 2.0, 8.0)),
)


@dataclass(frozen=True)
class Plain:
    """A file of plain compression."""

    size: int  # bytes
    psnr: float  # dB
    quality: int
    price: float


def sweep(codec: Codec, pixels: Tensor) -> list[Plain]:
    """Plain files of one image, by the latent that all of them share."""
    height, width = (int(side) for side in pixels.shape[1:])
    latent, found = codec.latent(pixels[None]), []
    for share, prices in SWEEP:
        quality = max(1, round(share * codec.config.subcodes))
        for price in prices:
            if price:
                codes, payloads = codec.search_latent(latent, price, quality=quality)
                (data,) = single.compress_codes(codec, codes, height, width, payloads=payloads)
            else:
                codes = codec.encode(pixels[None], quality)
                (data,) = codec.compress_codes(codes, height, width)
            shown = codec.decode(codes, height, width)[0]
            found.append(Plain(len(data), psnr(pixels.numpy(), shown.numpy()), quality, price))
    return found


def main() -> None:
    """Print a row a budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 2_000, 20_000])
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec, worst = Codec.load(), (-np.inf, "")
    for name in args.pictures:
        pixels = read_pixels(name)
        plain = sweep(codec, pixels)
        sys.stdout.write(f"{name}\n  bytes    used  PSNR  CPU s  plain bytes  PSNR  at\n")
        for size in args.sizes:
            begin = time.process_time()
            choice = budget.search(codec, pixels, size)
            spent = time.process_time() - begin
            other = max((p for p in plain if p.size <= size), key=lambda p: p.psnr, default=None)
            row = f"{size:7d} {len(choice.data):7d} {choice.psnr:5.2f} {spent:6.1f}"
            if other is not None:
                row += f" {other.size:12d} {other.psnr:5.2f}  {other.quality}:{other.price:.3g}"
                worst = max(worst, (other.psnr - choice.psnr, f"{name} at {size} bytes"))
            sys.stdout.write(row + "\n")
            sys.stdout.flush()
    sys.stdout.write(f"plain is better by {worst[0]:.3f} dB at most: {worst[1]}\n")


if __name__ == "__main__":
    main()
