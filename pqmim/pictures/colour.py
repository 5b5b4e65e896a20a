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
_Way = ImageCms.ImageCmsTransform | np.ndarray  # of grey: the 256 levels, uint8 [256, 3]


def to_srgb(
    pixels: np.ndarray, mode: str, profile: bytes | None, rules: Rules
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Pixels of mode L [H, W], RGB [H, W, 3] or CMYK [H, W, 4] -> [H, W, 3]; dropped; notes.

    Raises:
        BadPicture: a profile that is not sRGB, and the rules refuse those.
    """
    way = _way(profile, mode) if profile else None
    if isinstance(way, str):
        return _plain(pixels, mode), (), (f"{way}: colours taken as sRGB",)
    if profile is None or way is None:
        return _plain(pixels, mode), (), ()
    if rules.icc == "refuse":
        raise BadPicture(f"ICC profile {_name(profile)!r} is not sRGB, and --icc refuse was given")
    if rules.icc == "ignore":
        return _plain(pixels, mode), ("icc",), ()
    if isinstance(way, np.ndarray):
        return way[pixels], ("icc",), ()
    return _strips(pixels, mode, way), ("icc",), ()


def _plain(pixels: np.ndarray, mode: str) -> np.ndarray:
    """As if it were sRGB; CMYK by complement, as Pillow has it."""
    if mode == "L":
        return np.repeat(pixels[..., None], 3, axis=2)
    return pixels if mode == "RGB" else _strips(pixels, mode, None)


def _strips(pixels: np.ndarray, mode: str, way: ImageCms.ImageCmsTransform | None) -> np.ndarray:
    height, width = pixels.shape[:2]
    out = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        part = Image.fromarray(np.ascontiguousarray(pixels[top : top + rows]), mode)
        done = np.asarray(part.convert("RGB")) if way is None else _apply(part, way)
        out[top : top + rows] = done
    return out


def _apply(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> np.ndarray:
    """uint8 [H, W, 3] of an image in sRGB."""
    return np.asarray(ImageCms.applyTransform(image, transform))


@functools.lru_cache(maxsize=32)
def _way(profile: bytes, mode: str) -> _Way | str | None:
    """How pixels of that mode come to sRGB; None: they are there; or what is wrong."""
    try:
        opened = ImageCms.getOpenProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        wanted = _SPACES.get(space, "")
        if wanted != mode and (mode, wanted) != ("L", "RGB"):
            return f"ICC profile of colour space {space} in a picture of {mode}"
        # Little CMS shortens the way by tables: 10 levels off in the darks of linear grey.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(opened, srgb, wanted, "RGB", flags=flags)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return f"ICC profile that cannot be read ({' '.join(str(error).split())})"
    if mode == "CMYK":
        return transform
    if mode == "L":
        levels = Image.fromarray(np.arange(256, dtype=np.uint8)[None]).convert(wanted)
        table = _apply(levels, transform)[0]
        return None if _same(table, np.asarray(levels.convert("RGB"))[0]) else table
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(16, 256, 3)
    return None if _same(_apply(Image.fromarray(grid), transform), grid) else transform


def _same(after: np.ndarray, before: np.ndarray) -> bool:
    """Whether nothing visible has happened to some colours."""
    return int(np.abs(after.astype(int) - before).max()) <= SAME


def _name(profile: bytes) -> str:
    return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
