"""Rate, distortion and time of image codecs on a folder of images.

bpp is real bytes over real pixels: whole files, container included.  PSNR and MS-SSIM are over RGB
of the 8-bit output.  A curve holds the means over the images at constant settings, the way the
field publishes them.  All codecs take turns on each image, so that seconds of one run compare: a
slow minute of the machine hits all of them.  Our own codec runs on torch's threads, the others on
one (AVIF's decoder chooses for itself).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from pqmim import metrics
from pqmim.evaluation.coders import Coder, OperatingPoint
from pqmim.pictures.picture import BadPicture
from pqmim.pictures.read import read

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Sample:
    """One image through one codec at one operating point."""

    codec: str
    point: OperatingPoint
    image: str
    width: int
    height: int
    size: int  # bytes
    psnr: float  # dB
    ms_ssim: float | None  # None: a side is below 161 pixels
    encode_s: float
    decode_s: float

    @property
    def bpp(self) -> float:
        """Bits per pixel of the file."""
        return 8 * self.size / self.pixels

    @property
    def pixels(self) -> int:
        """Of the image."""
        return self.width * self.height


@dataclass(frozen=True)
class Point:
    """Means over the images at one operating point."""

    label: str
    bpp: float
    psnr: float  # dB
    ms_ssim: float | None  # None: unknown, or an image was too small for it
    encode_s: float = 0.0  # an image
    decode_s: float = 0.0
    encode_s_per_mpx: float = 0.0
    decode_s_per_mpx: float = 0.0


@dataclass(frozen=True)
class Curve:
    """One codec over a folder, in the order of its operating points."""

    name: str
    description: str
    points: tuple[Point, ...]


def load_folder(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and uint8 [3,H,W] of every image in the folder, sorted.

    Raises:
        ValueError: there is none, or one that cannot be read.
    """
    for path in image_paths(folder):
        yield path.name, load_image(path)


def image_paths(folder: Path) -> list[Path]:
    """The images of a folder, sorted.

    Raises:
        ValueError: there is none.
    """
    paths = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES]
    if not paths:
        raise ValueError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    return paths


def load_image(path: Path) -> Tensor:
    """uint8 [3,H,W] of an image file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return read(path.read_bytes()).tensor()
    except (BadPicture, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}; remove it") from error


def measure(
    coders: Sequence[Coder], paths: Sequence[Path], progress: Callable[[str], None]
) -> list[Sample]:
    """Every image through every codec at every operating point.

    Raises:
        ValueError: an image that cannot be read, or an operating point that a codec does not have.
    """
    samples, warm = [], False
    for number, path in enumerate(paths, 1):
        image = load_image(path)
        if not warm:  # the first call loads models and plug-ins
            for coder in coders:
                coder.decode(coder.encode(image, coder.points[0]))
            warm = True
        for coder in coders:
            progress(f"{number}/{len(paths)} {path.name} {coder.name}")
            samples += [_sample(coder, point, path.name, image) for point in coder.points]
    return samples


def _sample(coder: Coder, point: OperatingPoint, name: str, image: Tensor) -> Sample:
    begin = time.perf_counter()
    data = coder.encode(image, point)
    middle = time.perf_counter()
    decoded = coder.decode(data)
    end = time.perf_counter()
    height, width = image.shape[1:]
    similarity = None
    if min(height, width) >= metrics.LEAST_SIDE:
        similarity = round(metrics.ms_ssim(image, decoded), 6)  # beyond lies float noise
    quality = metrics.psnr(image.numpy(), decoded.numpy())
    return Sample(
        coder.name, point, name, width, height, len(data), quality, similarity,
        middle - begin, end - middle,
    )  # fmt: skip


def curve(coder: Coder, samples: Sequence[Sample]) -> Curve:
    """The means of one codec."""
    points = []
    for point in coder.points:
        found = [s for s in samples if s.codec == coder.name and s.point == point]
        points.append(_mean(str(point), found))
    return Curve(coder.name, coder.description, tuple(points))


def _mean(label: str, found: Sequence[Sample]) -> Point:
    similar = [s.ms_ssim for s in found if s.ms_ssim is not None]
    megapixels = sum(s.pixels for s in found) / 1e6
    return Point(
        label,
        bpp=float(np.mean([s.bpp for s in found])),
        psnr=float(np.mean([s.psnr for s in found])),
        ms_ssim=float(np.mean(similar)) if len(similar) == len(found) else None,
        encode_s=float(np.mean([s.encode_s for s in found])),
        decode_s=float(np.mean([s.decode_s for s in found])),
        encode_s_per_mpx=sum(s.encode_s for s in found) / megapixels,
        decode_s_per_mpx=sum(s.decode_s for s in found) / megapixels,
    )
