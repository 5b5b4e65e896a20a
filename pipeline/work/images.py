"""Bytes of one image file -> RGB pixels as the plan wants them, or the Status that says why not.

pqmim/pictures reads the file; this adds what the job has: the plan's limits, resize and crop, and
the memory that a picture will take.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.plan import Pictures, Status
from pqmim.pictures.picture import PILLOW_ERRORS, BadPicture, Rules
from pqmim.pictures.read import probe, read

warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow's, a picture each, in the job's log
_RESIZED_BYTES_A_PIXEL = 12  # peak memory of a resized picture and its padding, as a JPEG's


class BadImage(Exception):
    """This image has no pixels to encode; ``status`` says why."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(" ".join(message.split())[:200])
        self.status = status


@dataclass(frozen=True)
class Picture:
    """One decoded image; width and height are the source's, after EXIF rotation."""

    pixels: np.ndarray  # [3, H, W] uint8, C-contiguous; after resize and crop
    width: int
    height: int
    dropped: tuple[str, ...] = ()  # what the file had and the pixels do not hold
    note: str | None = None  # what may be wrong with the pixels


def decode(data: bytes, pictures: Pictures) -> Picture:
    """Decode, turn upright, resize and crop as the plan says.  Thread-safe.

    Raises:
        BadImage: DECODE_ERROR, TOO_LARGE or TOO_SMALL.
    """
    rules = Rules(pictures.icc, pictures.strict_images, pictures.max_pixels, pictures.min_side)
    try:
        found = read(data, rules)
    except BadPicture as error:
        raise BadImage(Status(error.status), str(error)) from error
    pixels = found.pixels.transpose(1, 2, 0)
    if pictures.resize is not None:
        pixels = resize(pixels, pictures.resize, pictures.max_pixels)
    if pictures.crop is not None:
        pixels = crop(pixels, pictures.crop)
    contiguous = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return Picture(contiguous, found.width, found.height, found.dropped, found.note)


def working_bytes(data: bytes, pictures: Pictures) -> int:
    """Memory that decoding and padding this picture takes, from its header alone; 0 if refused."""
    try:
        width, height, a_pixel = probe(data)
    except PILLOW_ERRORS:
        return 0  # decode says what is wrong
    if width * height > pictures.max_pixels or min(width, height) < pictures.min_side:
        return 0
    resized = 0
    if pictures.resize is not None:
        wide, high = _resized(width, height, pictures.resize)
        resized = min(wide * high, pictures.max_pixels)
    return width * height * a_pixel + resized * _RESIZED_BYTES_A_PIXEL


def encoded_size(width: int, height: int, pictures: Pictures) -> tuple[int, int]:
    """Width and height, after the plan's resize and crop, of a source of width x height."""
    if pictures.resize is not None:
        width, height = _resized(width, height, pictures.resize)
    return (pictures.crop, pictures.crop) if pictures.crop is not None else (width, height)


def _resized(width: int, height: int, side: int) -> tuple[int, int]:
    short = min(width, height)
    return (2 * width * side + short) // (2 * short), (2 * height * side + short) // (2 * short)


def resize(pixels: np.ndarray, side: int, max_pixels: int) -> np.ndarray:
    """Bicubic with antialiasing, up or down, so that the shorter side of [H, W, 3] is ``side``.

    Up as well, so that a run with ``resize`` has one shape whatever the source.  The longer side is
    rounded to the nearest pixel.

    Raises:
        BadImage: TOO_LARGE, a long thin picture would exceed ``max_pixels``.
    """
    height, width = pixels.shape[:2]
    size = _resized(width, height, side)[::-1]
    if size == (height, width):
        return pixels
    if size[0] * size[1] > max_pixels:
        message = f"{width} x {height} becomes {size[1]} x {size[0]} by resizing: over {max_pixels}"
        raise BadImage(Status.TOO_LARGE, f"{message} pixels")
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    resized = F.interpolate(image, size, mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def crop(pixels: np.ndarray, side: int) -> np.ndarray:
    """The centre square of [H, W, 3]; an odd margin leaves the extra line right and below.

    Raises:
        BadImage: TOO_SMALL.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < side:
        message = f"{width} x {height} is smaller than the crop of {side} x {side}"
        raise BadImage(Status.TOO_SMALL, message)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]
