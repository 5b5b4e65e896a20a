"""Real tars and image files for tests, made from seeds: no downloads, the same bytes each time.

Used as ``from tests.corpus import make_tar, jpeg``.  Photographs are in ``examples/shards``; these
are smooth random pictures, which compress about as photographs do and are made in a millisecond.
"""

from __future__ import annotations

import base64
import io
import tarfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

BLOCK = 512

# `cjpeg | jpegtran -arithmetic` of a 16 x 16 picture: Pillow writes no arithmetic-coded JPEG.
ARITHMETIC_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwc"
    "KDcpLDAxNDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
    "MjIyMjIyMjIyMjIyMjIyMjIyMjL/yQARCAAQABADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ALLx"
    "JG6C736JL/4UJQcsGXangkaxCVeyIi/tQeEw/9k="
)


def make_tar(entries: Sequence[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of regular files in the order given, ended and padded as tarfile does."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def samples(count: int, size: int = 700, seed: int = 0) -> list[tuple[str, bytes]]:
    """``count`` samples of a ``.jpg`` (random bytes, not an image) and a small ``.json``."""
    rng = np.random.default_rng(seed)
    entries = []
    for i in range(count):
        entries.append((f"{i:06d}.jpg", rng.bytes(size)))
        entries.append((f"{i:06d}.json", b'{"label": %d}' % i))
    return entries


def header_offsets(tar: bytes) -> dict[str, int]:
    """Where the header block of each member is, by name."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {member.name: member.offset_data - BLOCK for member in archive}


def pixels(width: int, height: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Smooth random [H, W, channels] uint8 that spans the whole range."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3 + height // 24, 3 + width // 24, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(coarse[:, :, c]).resize((width, height), Image.Resampling.BICUBIC)
        for c in range(channels)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """:func:`pixels` as an image of mode 1, L, LA, P, RGB, RGBA, CMYK, YCbCr or I;16."""
    if mode == "I;16":
        fine = np.random.default_rng(seed).integers(0, 65536, (height, width), dtype=np.uint16)
        return Image.fromarray(fine)
    direct = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}
    if mode not in direct:
        return picture(width, height, seed).convert(mode)
    values = pixels(width, height, seed, direct[mode])
    return Image.frombytes(mode, (width, height), values.tobytes())


def encode(
    image: Image.Image, format: str, exif_orientation: int | None = None, **options: Any
) -> bytes:
    """The file's bytes; options are Pillow's."""
    if exif_orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = exif_orientation
        options["exif"] = exif.tobytes()
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(
    width: int,
    height: int,
    seed: int = 0,
    quality: int = 90,
    mode: str = "RGB",
    exif_orientation: int | None = None,
    **options: Any,
) -> bytes:
    """A JPEG file, baseline 4:2:0 unless the options say otherwise."""
    image = picture(width, height, seed, mode)
    return encode(image, "JPEG", exif_orientation, quality=quality, **options)


def png(width: int, height: int, seed: int = 0, mode: str = "RGB", **options: Any) -> bytes:
    """A PNG file."""
    return encode(picture(width, height, seed, mode), "PNG", **options)


def webp(width: int, height: int, seed: int = 0, mode: str = "RGB", **options: Any) -> bytes:
    """A WebP file, lossless unless the options say otherwise."""
    return encode(picture(width, height, seed, mode), "WEBP", **{"lossless": True, **options})


def bomb_png(width: int, height: int) -> bytes:
    """A few kilobytes that claim width x height pixels; only the header is true."""
    small = png(16, 16)
    header = small[12:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + small[24:29]
    crc = zlib.crc32(header).to_bytes(4, "big")
    return small[:12] + header + crc + small[33:]
