"""Rate-distortion of a model on a folder of images, beside JPEG in the same run.

bpp is real bytes over real pixels: raw codes of the padded grid, JPEG files with their headers.
PSNR is over RGB of the 8-bit output.  Both are means over the images at a constant quality, and
JPEG's PSNR at a given bpp is interpolated (linear over log bpp) between its qualities; below its
smallest file there is no JPEG, and nothing is extrapolated.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pqmim.codec import Codec
from pqmim.metrics import psnr

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
JPEG_QUALITIES = (*range(1, 20), *range(20, 96, 5))


@dataclass(frozen=True)
class Point:
    """One quality of one codec: means over the images."""

    quality: int
    bpp: float
    psnr: float  # dB


def load_folder(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and uint8 [3,H,W] of every image in the folder, sorted.

    Raises:
        ValueError: there is none.
    """
    paths = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES]
    if not paths:
        raise ValueError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    for path in paths:
        with Image.open(path) as image:
            array = np.asarray(image.convert("RGB")).copy()
        yield path.name, torch.from_numpy(array).permute(2, 0, 1).contiguous()


def codec_points(codec: Codec, image: Tensor) -> list[Point]:
    """Every quality of the model on one image; nested sub-codes are encoded once."""
    height, width = image.shape[1:]
    codes = codec.encode(image[None])
    bits = 8 * codes.element_size()
    points = []
    for quality in range(1, codec.config.subcodes + 1):
        kept = codes[..., :quality]
        decoded = codec.decode(kept, height, width)[0].cpu()
        points.append(
            Point(
                quality,
                kept.numel() * bits / (height * width),
                psnr(image.numpy(), decoded.numpy()),
            )
        )
    return points


def jpeg_points(image: Tensor) -> list[Point]:
    """Pillow's JPEG as it comes, 4:2:0, on one image."""
    height, width = image.shape[1:]
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    points = []
    for quality in JPEG_QUALITIES:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, subsampling="4:2:0")
        decoded = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)
        bpp = 8 * len(file.getvalue()) / (height * width)
        points.append(Point(quality, bpp, psnr(image.numpy(), decoded.numpy())))
    return points


def mean(curves: list[list[Point]]) -> list[Point]:
    """Average the curves of several images, quality by quality."""
    return [
        Point(
            points[0].quality,
            float(np.mean([p.bpp for p in points])),
            float(np.mean([p.psnr for p in points])),
        )
        for points in zip(*curves, strict=True)
    ]


def at_bpp(curve: list[Point], bpp: float) -> float | None:
    """PSNR of a curve at a rate; None outside its range."""
    rates = [p.bpp for p in curve]
    if not rates[0] <= bpp <= rates[-1]:
        return None
    return float(np.interp(math.log(bpp), np.log(rates), [p.psnr for p in curve]))


def compare(codec: Codec, folder: Path) -> tuple[list[Point], list[Point], int]:
    """Mean curves of the model and of JPEG over a folder, and how many images it has."""
    ours, jpeg = [], []
    for _, image in load_folder(folder):
        ours.append(codec_points(codec, image))
        jpeg.append(jpeg_points(image))
    return mean(ours), mean(jpeg), len(ours)


def table(ours: list[Point], jpeg: list[Point]) -> str:
    """The comparison as text."""
    lines = ["quality  bpp     PSNR dB  JPEG at equal bpp"]
    for point in ours:
        other = at_bpp(jpeg, point.bpp)
        there = f"{other:.2f} ({point.psnr - other:+.2f})" if other else "-"
        if other is None and point.bpp < jpeg[0].bpp:
            there = f"none: its smallest is {jpeg[0].bpp:.3f} bpp at {jpeg[0].psnr:.2f} dB"
        lines.append(f"{point.quality:7d}  {point.bpp:.4f}  {point.psnr:7.2f}  {there}")
    return "\n".join(lines) + "\n"
