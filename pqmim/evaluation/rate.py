"""What the entropy model saves, in real file bytes: the container counts.

Beside each operating point stand the raw codes (8 bits each) and static tables: one table a
codebook with the frequencies of these very images, the best that any static table can do here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pqmim import metrics
from pqmim.codec import Codec
from pqmim.evaluation import bd, coders, rd, report
from pqmim.evaluation.coders import OperatingPoint


@dataclass(frozen=True)
class Rate:
    """One operating point: means over the images, in bits per pixel."""

    point: OperatingPoint
    raw: float
    static: float
    file: float
    psnr: float  # dB
    jpeg: float | None  # dB, at the files' rate; None: JPEG has no file so small
    seconds: float  # of entropy coding, per megapixel

    @property
    def saving(self) -> float:
        """Share of the raw codes that the file does without."""
        return 1 - self.file / self.raw


def static_bits(images: Sequence[NDArray[np.uint8]], codewords: int) -> float:
    """Zeroth-order entropy of the codes [h, w, m] with one table a codebook, bits in total."""
    flat = np.concatenate([codes.reshape(-1, codes.shape[2]) for codes in images])
    total = 0.0
    for column in flat.T:
        counts = np.bincount(column, minlength=codewords)
        used = counts[counts > 0]
        total -= float((used * np.log2(used / used.sum())).sum())
    return total


def rates(
    codec: Codec, folder: Path, points: Sequence[OperatingPoint], plan: Sequence[int]
) -> list[Rate]:
    """Compress every image of the folder at every operating point."""
    images = [image for _, image in rd.load_folder(folder)]
    jpeg = _jpeg(folder)
    pixels = sum(image.shape[1] * image.shape[2] for image in images)
    results = []
    for point in points:
        codes = [_codes(codec, image, point, plan) for image in images]
        begin, size = time.perf_counter(), 0
        for image, own in zip(images, codes, strict=True):
            size += len(codec.compress_codes(own, image.shape[1], image.shape[2], plan)[0])
        seconds = (time.perf_counter() - begin) / (pixels / 1e6)
        arrays = [own[0].cpu().numpy() for own in codes]
        file = 8 * size / pixels
        pairs = zip(images, codes, strict=True)
        results.append(
            Rate(
                point, 8.0 * sum(a.nbytes for a in arrays) / pixels,
                static_bits(arrays, codec.config.codewords) / pixels, file,
                float(np.mean([_psnr(codec, image, own) for image, own in pairs])),
                bd.quality_at(jpeg, file), seconds,
            )
        )  # fmt: skip
    return results


def _codes(codec: Codec, image: Tensor, point: OperatingPoint, plan: Sequence[int]) -> Tensor:
    """[1,h,w,m] of an image [3,H,W], by their worth where bits have a price."""
    if point.price > 0:
        return codec.search(image[None], point.quality, point.price, plan)[0]
    return codec.encode(image[None], point.quality)


def _jpeg(folder: Path) -> list[tuple[float, float]]:
    """(bpp, dB) of JPEG on the folder."""
    (jpeg,) = coders.classical(["jpeg"])
    samples = rd.measure([jpeg], rd.image_paths(folder), lambda _: None)
    return report.knots(rd.curve(jpeg, samples), "psnr")


def _psnr(codec: Codec, image: Tensor, codes: Tensor) -> float:
    """dB of one image [3,H,W] decoded from codes [1,h,w,m]."""
    decoded = codec.decode(codes, image.shape[1], image.shape[2])[0]
    return metrics.psnr(image.numpy(), decoded.cpu().numpy())


def table(results: Sequence[Rate]) -> str:
    """The comparison as text."""
    lines = ["  point  raw bpp  static   .pqm     saving   PSNR   JPEG there  s/Mpx"]
    for r in results:
        lines.append(
            f"{r.point!s:>7s}  {r.raw:.4f}   {r.static:.4f}   "
            f"{r.file:.4f}   {r.saving:6.1%}  {r.psnr:.2f}  {_or_dash(r.jpeg, 2):>10s}"
            f"  {r.seconds:.2f}"
        )
    return "\n".join(lines) + "\n"


def _or_dash(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def default_points(codec: Codec) -> list[OperatingPoint]:
    """Nearest codewords of some qualities, then the highest with prices of a bit."""
    top = codec.config.subcodes
    qualities = sorted({max(1, top * part // 16) for part in (2, 8, 16)})
    prices = (0.03, 0.06, 0.12)
    return [*map(OperatingPoint, qualities), *(OperatingPoint(top, price) for price in prices)]
