"""What the entropy model saves, in real file bytes: the container counts.

Beside each quality stand the raw codes (8 bits each) and static tables: one table a codebook with
the frequencies of these very images, which is the best that any static table can do here.
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
from pqmim.evaluation import rd


@dataclass(frozen=True)
class Rate:
    """One quality: means over the images, in bits per pixel."""

    quality: int
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


def rates(codec: Codec, folder: Path, qualities: Sequence[int], plan: Sequence[int]) -> list[Rate]:
    """Compress every image of the folder at every quality."""
    found = [(image, codec.encode(image[None])) for _, image in rd.load_folder(folder)]
    jpeg = rd.mean([rd.jpeg_points(image) for image, _ in found])
    pixels = sum(image.shape[1] * image.shape[2] for image, _ in found)
    results = []
    for quality in qualities:
        begin, size = time.perf_counter(), 0
        kept = [codes[..., :quality] for _, codes in found]
        for (image, _), codes in zip(found, kept, strict=True):
            size += len(codec.compress_codes(codes, image.shape[1], image.shape[2], plan)[0])
        seconds = (time.perf_counter() - begin) / (pixels / 1e6)
        arrays = [codes[0].cpu().numpy() for codes in kept]
        static = static_bits(arrays, codec.config.codewords)
        raw = 8.0 * sum(a.nbytes for a in arrays)
        file = 8 * size / pixels
        psnr = float(np.mean([_psnr(codec, image, codes) for image, codes in _pairs(found, kept)]))
        results.append(
            Rate(quality, raw / pixels, static / pixels, file, psnr, rd.at_bpp(jpeg, file), seconds)
        )
    return results


def _pairs(
    found: Sequence[tuple[Tensor, Tensor]], kept: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    return [(image, codes) for (image, _), codes in zip(found, kept, strict=True)]


def _psnr(codec: Codec, image: Tensor, codes: Tensor) -> float:
    """dB of one image [3,H,W] decoded from codes [1,h,w,m]."""
    decoded = codec.decode(codes, image.shape[1], image.shape[2])[0]
    return metrics.psnr(image.numpy(), decoded.cpu().numpy())


def table(results: Sequence[Rate]) -> str:
    """The comparison as text."""
    lines = ["quality  raw bpp  static   .pqm     saving   PSNR   JPEG there  s/Mpx"]
    for r in results:
        lines.append(
            f"{r.quality:7d}  {r.raw:.4f}   {r.static:.4f}   {r.file:.4f}   {r.saving:6.1%}"
            f"  {r.psnr:.2f}  {f'{r.jpeg:.2f}' if r.jpeg else 'none':>10s}  {r.seconds:.2f}"
        )
    return "\n".join(lines) + "\n"


def default_qualities(codec: Codec) -> list[int]:
    """A spread of qualities up to the highest."""
    top = codec.config.subcodes
    return sorted({max(1, top * part // 16) for part in (1, 2, 4, 8, 12, 16)})
