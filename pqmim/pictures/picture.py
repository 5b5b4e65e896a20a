"""What a reader is asked for and gives: Rules, Picture, BadPicture."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

# What Pillow raises on bad data, found by reading and by fuzzing; the source is memory, so an
# OSError here is never a storage error.
PILLOW_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError),
    *(IndexError, KeyError, TypeError, OverflowError, RuntimeError, ZeroDivisionError),
    *(AssertionError, AttributeError),
)
DECODE_ERROR, TOO_LARGE, TOO_SMALL = "decode_error", "too_large", "too_small"


@dataclass(frozen=True)
class Rules:
    """How a file is to be read."""

    icc: str = "convert"  # or "ignore", "refuse": what is done about profiles that are not sRGB
    strict: bool = False  # a warning that may have cost pixels is an error, not a note
    max_pixels: int = 1 << 28  # more is refused by the header, before anything is decoded
    min_side: int = 1  # pixels


class BadPicture(ValueError):
    """This file has no pixels that can be stood by; ``status`` says of which kind it is."""

    def __init__(self, message: str, status: str = DECODE_ERROR) -> None:
        super().__init__(" ".join(message.split())[:200])
        self.status = status


@dataclass(slots=True)
class Picture:
    """One decoded image.

    ``dropped`` names what the file had and the pixels do not hold: ``icc`` (a profile that is not
    sRGB, or colour declared by numbers), ``colour:X`` (colour of kind X, taken as sRGB), ``bits:N``
    (N > 8 bits a sample), ``alpha`` (composited over white), ``frames:N`` (the first of N
    pictures), ``video`` (a motion photo's), ``gain_map``, ``rotated`` (turned or mirrored upright).
    """

    pixels: np.ndarray  # [3, H, W] uint8, sRGB, upright; a view, mostly of interleaved memory
    dropped: tuple[str, ...] = ()
    note: str | None = None  # what may be wrong with the pixels

    @property
    def width(self) -> int:
        return int(self.pixels.shape[2])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[1])

    def tensor(self) -> torch.Tensor:
        """uint8 [3, H, W], contiguous."""
        return torch.from_numpy(np.ascontiguousarray(self.pixels))


@dataclass(slots=True)
class Decoded:
    """A picture before it is turned upright: what a format's reader gives."""

    pixels: np.ndarray  # [H, W, 3] uint8
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    orientation: int = 1  # EXIF, 1..8


def check_size(width: int, height: int, rules: Rules) -> None:
    """Raises:
    BadPicture: outside the limits.
    """
    if width < 1 or height < 1:
        raise BadPicture(f"a size of {width} x {height} in its header")
    if width * height > rules.max_pixels:
        message = f"{width} x {height} is over the limit of {rules.max_pixels} pixels"
        raise BadPicture(message, TOO_LARGE)
    if min(width, height) < rules.min_side:
        message = f"{width} x {height}: the shorter side is below {rules.min_side} pixels"
        raise BadPicture(message, TOO_SMALL)


def doubt(said: str, rules: Rules) -> str:
    """A note that some pixels may be wrong.

    Raises:
        BadPicture: the rules refuse such pictures.
    """
    note = f"{said}: some pixels may be wrong"
    if rules.strict:
        raise BadPicture(f"{note}; refused by --strict-images")
    return note
