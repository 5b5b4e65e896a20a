"""The paper's first claim on our data: one codebook against products of them, at equal raw rate.

    python -m benchmarks.ablation KODAK --shards 'DIR/*.tar' [--steps 300]

Each line is a small autoencoder of its own (widths 96 and 128, one block each), trained for the
same number of steps on the same crops, from the same start: the principal components, k-means
codebooks.  No entropy model: the rate is that of the raw codes, and the static tables' beside it.
One codebook of b bits needs 2**b entries, so the comparison ends where it can still be stored; the
last line is what products reach.  The second claim, static tables against the masked prior, is
``pqmim eval KODAK --rates``.
"""

from __future__ import annotations

import argparse
import glob
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

from pqmim.autoencoder.config import AutoencoderConfig
from pqmim.autoencoder.network import PQVAE
from pqmim.evaluation import rate, rd
from pqmim.metrics import psnr
from pqmim.training import crops
from pqmim.training.autoencoder import Recipe, Trainer

# Sub-codes, codewords, dimensions of a sub-code.
FORMS = (
    (1, 256, 16), (2, 16, 8), (4, 4, 4),
    (1, 4096, 16), (2, 64, 8), (3, 16, 6), (4, 8, 4),
    (16, 256, 8),
)  # fmt: skip


def main() -> int:
    """Train and measure every form."""
    parser = argparse.ArgumentParser("benchmarks.ablation", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="images to measure on")
    parser.add_argument("--shards", required=True, help="glob of the tars to train on")
    parser.add_argument("--steps", type=int, default=300, help="%(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = crops.load_images([Path(name) for name in sorted(glob.glob(args.shards))])
    measured = [image for _, image in rd.load_folder(args.folder)]
    print(f"{len(images)} images, {args.steps} steps; measured on {len(measured)}")
    print("sub-codes x codewords  raw bits   raw bpp  static bpp   start dB  trained dB  seconds")
    for subcodes, codewords, dims in FORMS:
        begin = time.perf_counter()
        start, trained, static = one(subcodes, codewords, dims, args.steps, images, measured)
        bits = subcodes * math.log2(codewords)
        print(
            f"{subcodes:9d} x {codewords:<9d}  {bits:8.0f}  {bits / 256:8.4f}  {static:10.4f}  "
            f"{start:9.2f}  {trained:10.2f}  {time.perf_counter() - begin:7.0f}",
            flush=True,
        )
    return 0


def one(
    subcodes: int, codewords: int, dims: int, steps: int, images: list[torch.Tensor],
    measured: list[torch.Tensor],
) -> tuple[float, float, float]:  # fmt: skip
    """dB at the start and at the end, and bpp by static tables at the end."""
    recipe = Recipe(
        model=AutoencoderConfig(
            widths=(96, 128), encoder_blocks=(1, 1), decoder_blocks=(1, 1),
            subcodes=subcodes, codewords=codewords, subcode_dims=dims,
        ),
        minutes=1.0, full_share=1.0, subcode_bits=math.log2(codewords),
    )  # fmt: skip
    trainer = Trainer(recipe, torch.device("cpu"))
    trainer.start(images)
    start, _ = quality(trainer.average, measured)
    stream = crops.batches(images, recipe.crop, recipe.batch, recipe.seed, 0)
    for step in range(steps):
        trainer.seconds = 60 * recipe.minutes * step / steps  # the schedule goes by steps here
        trainer.train_step(next(stream))
    return start, *quality(trainer.average, measured)


@torch.no_grad()
def quality(model: PQVAE, measured: list[torch.Tensor]) -> tuple[float, float]:
    """Mean PSNR in dB of the nearest codewords, and bpp of their static tables."""
    model.refresh_gain()
    values, grids = [], []
    for image in measured:
        codes = model.encode(image[None], model.config.subcodes)
        values.append(psnr(model.decode(codes)[0].numpy(), image.numpy()))
        grids.append(codes[0].numpy())
    pixels = sum(image[0].numel() for image in measured)
    return float(np.mean(values)), rate.static_bits(grids, model.config.codewords) / pixels


if __name__ == "__main__":
    sys.exit(main())
