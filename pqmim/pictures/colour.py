"""Embedded ICC profiles: pixels to sRGB by Pillow's ImageCms (Little CMS), perceptual intent.

A Display P3 photograph whose profile is ignored is 20 dB off.  A profile that does what sRGB does,
by trial, costs nothing: profiles are recognised by what they do to a grid of colours, once each,
whatever they are called.  A conversion goes through strips of the picture, so that its memory is
the result.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

from pqmim.pictures.picture import BadPicture, Rules

SAME = 2  # levels of 255; sRGB profiles in circulation differ from each other by up to that
STRIP = 1 << 17  # pixels that are converted at once
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of a profile -> Pillow's mode


def to_srgb(
    pixels: np.ndarray, mode: str, profile: bytes | None, rules: Rules
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Pixels of mode L [H, W], RGB [H, W, 3] or CMYK [H, W, 4] -> [H, W, 3]; dropped; notes.

    Raises:
        BadPicture: a profile that is not sRGB, and the rules refuse those.
    """
    if not profile:
        return _plain(pixels, mode), (), ()
    found = _transform(profile, mode)
    if isinstance(found, str):
        return _plain(pixels, mode), (), (f"{found}: colours taken as sRGB",)
    if found is None:
        return _plain(pixels, mode), (), ()
    if rules.icc == "refuse":
        raise BadPicture(f"ICC profile {_name(profile)!r} is not sRGB, and --icc refuse was given")
    if rules.icc == "ignore":
        return _plain(pixels, mode), ("icc",), ()
    transform, wanted = found
    return _strips(pixels, mode, wanted, transform), ("icc",), ()


def _plain(pixels: np.ndarray, mode: str) -> np.ndarray:
    """As if it were sRGB; CMYK by complement, as Pillow has it."""
    if mode == "RGB":
        return pixels
    if mode == "L":
        return np.repeat(pixels[..., None], 3, axis=2)
    return _strips(pixels, mode, mode, None)


def _strips(
    pixels: np.ndarray, mode: str, wanted: str, transform: ImageCms.ImageCmsTransform | None
) -> np.ndarray:
    height, width = pixels.shape[:2]
    out = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        part = Image.fromarray(np.ascontiguousarray(pixels[top : top + rows]), mode)
        part = part.convert(wanted) if wanted != mode else part
        if transform is None:
            part = part.convert("RGB")
        else:
            part = ImageCms.applyTransform(part, transform) or part  # in place: None
        out[top : top + rows] = np.asarray(part)
    return out


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform, str] | str | None:
    """The way to sRGB and the mode that it starts from; None: it is sRGB; or what is wrong."""
    try:
        opened = ImageCms.getOpenProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        wanted = _SPACES.get(space)
        if wanted is None or (wanted != mode and (mode, wanted) != ("L", "RGB")):
            return f"ICC profile of colour space {space} in a picture of {mode}"
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(opened, srgb, wanted, "RGB")
        return None if wanted != "CMYK" and _same(transform, wanted) else (transform, wanted)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return f"ICC profile that cannot be read ({' '.join(str(error).split())})"


def _same(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether nothing visible happens to a grid of colours."""
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    if mode == "L":
        grid = np.arange(256, dtype=np.uint8)[None]
    else:
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(16, 256, 3)
    done = ImageCms.applyTransform(Image.fromarray(grid), transform)
    before = _plain(grid, mode).astype(int)
    return int(np.abs(np.asarray(done).astype(int) - before).max()) <= SAME


def _name(profile: bytes) -> str:
    return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
