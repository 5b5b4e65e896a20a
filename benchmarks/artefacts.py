"""Seams, blocks and colour shifts in decoded photographs, as numbers that a picture can be held to.

    python -m benchmarks.artefacts FOLDER [--images 6]

For every default operating point, over the error (decoded minus source) of all images:

- blocks: the mean step of the error from pixel to pixel across the borders of the 16 x 16 patches,
  over the mean step elsewhere.  1 is no trace of patches.  For JPEG across its 8 x 8 blocks.
- seams: the same across the borders of the entropy model's windows of 16 x 16 patches, over that
  across the patch borders next to them.  The autoencoder knows no windows, but the codes are chosen
  by their bits, and these change from window to window.
- flat: blocks, in the flattest tenth of the source's patches alone (skies).
- colour: the largest mean error of a channel over an image, in levels of 255: mean and worst image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pqmim.codec import Codec
from pqmim.evaluation import coders, rd
from pqmim.prior.config import WINDOW

FLAT = 0.1  # share of the patches
JPEG_BLOCK = 8
Array = NDArray[np.float64]


def main() -> int:
    """Code, decode, print a line an operating point."""
    parser = argparse.ArgumentParser("benchmarks.artefacts", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=6, help="evenly chosen (%(default)s)")
    parser.add_argument("--weights", default="default", help="path or name (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = rd.image_paths(args.folder)
    paths = paths[:: max(1, len(paths) // args.images)][: args.images]
    images = [rd.load_image(path) for path in paths]
    codec = Codec.load(args.weights)
    ours = coders.Model(codec, coders.default_points(codec))
    webp, jpeg = coders.classical(["webp", "jpeg"])
    print(f"{len(images)} images, model {codec.fingerprint[:16]}")
    names = ("bpp", "blocks", "seams", "flat", "colour", "worst")
    print(f"{'point':>12} " + " ".join(f"{name:>7}" for name in names))
    for coder, points in ((ours, ours.points), (webp, webp.points[:6]), (jpeg, jpeg.points[1:6])):
        block = JPEG_BLOCK if coder is jpeg else codec.config.stride  # WebP predicts 16 x 16 blocks
        for point in points:
            print(line(coder, point, images, block))
            sys.stdout.flush()
    return 0


def line(
    coder: coders.Coder, point: coders.OperatingPoint, images: Sequence[torch.Tensor], block: int
) -> str:
    """One operating point over all images."""
    rates, blocks, seams, flats, shifts = [], [], [], [], []
    for image in images:
        data = coder.encode(image, point)
        source = image.numpy().astype(np.float64)
        error = coder.decode(data).numpy() - source
        rates.append(8 * len(data) / image[0].numel())
        across, inside, window, beside = steps(error, block)
        blocks.append(across.mean() / inside.mean())
        seams.append(window.mean() / beside.mean())
        flats.append(flat_blocks(error, source, block))
        shifts.append(np.abs(error.mean((1, 2))).max())
    values = [float(np.mean(v)) for v in (blocks, seams, flats, shifts)] + [float(max(shifts))]
    return f"{coder.name + ' ' + str(point):>12} {np.mean(rates):7.3f} " + " ".join(
        f"{value:7.3f}" for value in values
    )


def steps(error: Array, block: int) -> list[Array]:
    """Absolute steps of an error [3, H, W]: across patch borders, elsewhere, across window borders,
    across the patch borders next to those."""
    found: list[list[Array]] = [[], [], [], []]
    for axis in (1, 2):
        step = np.abs(np.diff(error, axis=axis)).mean(0)
        border = np.arange(1, error.shape[axis])  # the step between pixels n - 1 and n
        place = border / block % WINDOW  # in patches, within a window
        kinds = (border % block == 0, border % block != 0, place == 0, (place == 1) | (place == 15))
        for kind, values in zip(kinds, found, strict=True):
            values.append(np.compress(kind, step, axis=axis - 1).ravel())
    return [np.concatenate(values) for values in found]


def flat_blocks(error: Array, source: Array, block: int) -> float:
    """The first ratio within pairs of neighbouring patches that are flat in the source."""
    rows, columns = (side // block for side in source.shape[1:])
    cut = source[:, : rows * block, : columns * block].reshape(3, rows, block, columns, block)
    spread = cut.std((2, 4)).mean(0)
    flat = spread <= np.quantile(spread, FLAT)
    both = flat[:, 1:] & flat[:, :-1]  # and the border between them is vertical
    step = np.abs(np.diff(error[:, : rows * block, : columns * block], axis=2)).mean(0)
    step = np.pad(step, ((0, 0), (0, 1))).reshape(rows, block, columns, block)
    across = step[:, :, :-1, block - 1].transpose(0, 2, 1)[both].mean()
    inside = step[:, :, :-1, : block - 1].transpose(0, 2, 1, 3)[both].mean()
    return float(across / max(inside, 1e-9)) if both.any() else 1.0


if __name__ == "__main__":
    sys.exit(main())
