"""Bytes of one image file -> RGB pixels, or the Status that says why not.

JPEG goes through simplejpeg in strict mode: it is 1.3 times faster than Pillow, decodes to the same
pixels, and reports a scan that stops early where Pillow fills the rest with grey.  Everything else,
CMYK and YCCK JPEG included, goes through Pillow, restricted to the formats below: no plug-in that
starts another program.  The header is read first; nothing is decoded that is over ``max_pixels``.

Conversions, part of what an archive holds: EXIF orientation is applied; of an animation the first
frame counts; transparency is composited over white; 16-bit grey becomes round(v / 257), 16-bit
colour its high byte (Pillow); CMYK is converted without a profile, and in JPEG taken as
inverted (Adobe) whatever the markers say.  Embedded ICC profiles are ignored, as img2dataset and
clip-retrieval do, so wide-gamut photographs come out slightly duller.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.plan import Plan, Status

# Pillow's own pixel limit and its warnings are process-wide and would contradict plan.max_pixels,
# which is checked before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # or two threads that open their first picture at once miss a format
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "PPM")
# What Pillow raises on bad data, found by reading and by fuzzing; the source is memory, so an
# OSError here is never a storage error.
_PILLOW_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error),
    *(IndexError, KeyError, TypeError, OverflowError, RuntimeError, ZeroDivisionError),
)
# libjpeg warnings that cost no pixel.  Extraneous bytes inside a scan (before RST0-7) are damage;
# before EOI the warning comes last, when every row has been decoded without another one.
_HARMLESS = re.compile(
    r"extraneous bytes before marker 0x(?!d[0-7])"
    r"|Invalid SOS parameters|unknown JFIF revision|Unknown Adobe color transform"
)
_ORIENTATION_TAG = 0x0112
# Peak memory of decode and of padding the picture, measured at 16 megapixels: JPEG 12.0 to 13.0,
# other formats 15.6 (PNG) to 25.2 (WebP), CMYK JPEG 17.7; of a resized picture 12, as a JPEG's.
_BYTES_A_PIXEL, _JPEG_BYTES_A_PIXEL, _RESIZED_BYTES_A_PIXEL = 26, 14, 12


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


def decode(data: bytes, plan: Plan) -> Picture:
    """Decode, turn upright, resize and crop as the plan says.  Thread-safe.

    Raises:
        BadImage: DECODE_ERROR, TOO_LARGE or TOO_SMALL.
    """
    if not data:
        raise BadImage(Status.DECODE_ERROR, "empty file")
    pixels = _decode_jpeg(data, plan) if data.startswith(b"\xff\xd8") else None
    if pixels is not None:
        orientation = _jpeg_orientation(data)
    else:
        pixels, orientation = _decode_pillow(data, plan)
    pixels = _upright(pixels, orientation)
    height, width = pixels.shape[:2]
    if plan.resize is not None:
        pixels = resize(pixels, plan.resize, plan.max_pixels)
    if plan.crop is not None:
        pixels = crop(pixels, plan.crop)
    return Picture(np.ascontiguousarray(pixels.transpose(2, 0, 1)), width, height)


def working_bytes(data: bytes, plan: Plan) -> int:
    """Memory that decoding and padding this picture takes, from its header alone; 0 if refused."""
    try:
        width, height, a_pixel = _probe(data)
    except _PILLOW_ERRORS:
        return 0  # decode says what is wrong
    if width * height > plan.max_pixels or min(width, height) < plan.min_side:
        return 0
    resized = 0
    if plan.resize is not None:
        wide, high = _resized(width, height, plan.resize)
        resized = min(wide * high, plan.max_pixels)
    return width * height * a_pixel + resized * _RESIZED_BYTES_A_PIXEL


def _probe(data: bytes) -> tuple[int, int, int]:
    """Width, height, and bytes of memory that decoding takes a pixel."""
    if data.startswith(b"\xff\xd8"):
        with contextlib.suppress(ValueError, KeyError):
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
            cmyk = colorspace in ("CMYK", "YCCK")
            return width, height, _BYTES_A_PIXEL if cmyk else _JPEG_BYTES_A_PIXEL
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return *image.size, _BYTES_A_PIXEL


def encoded_size(width: int, height: int, plan: Plan) -> tuple[int, int]:
    """Width and height, after the plan's resize and crop, of a source of width x height."""
    if plan.resize is not None:
        width, height = _resized(width, height, plan.resize)
    return (plan.crop, plan.crop) if plan.crop is not None else (width, height)


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


def _check_size(width: int, height: int, plan: Plan) -> None:
    if width * height > plan.max_pixels:
        message = f"{width} x {height} is over the limit of {plan.max_pixels} pixels"
        raise BadImage(Status.TOO_LARGE, message)
    if min(width, height) < plan.min_side:
        message = f"{width} x {height}: the shorter side is below {plan.min_side} pixels"
        raise BadImage(Status.TOO_SMALL, message)


def _decode_jpeg(data: bytes, plan: Plan) -> np.ndarray | None:
    """[H, W, 3], or None for an intact JPEG whose pixels Pillow must convert."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, plan)
        if colorspace in ("CMYK", "YCCK"):
            simplejpeg.decode_jpeg(data, "CMYK")  # strict, which Pillow is not
            return None
        return simplejpeg.decode_jpeg(data, "RGB")
    except (ValueError, KeyError) as error:
        if _HARMLESS.search(str(error)):
            return None
        raise BadImage(Status.DECODE_ERROR, f"JPEG: {error}") from error


def _jpeg_orientation(data: bytes) -> int:
    if b"Exif\0\0" not in data and b"tiff:Orientation" not in data:
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return _orientation(image)
    except _PILLOW_ERRORS:
        return 1  # the pixels are good; unreadable metadata does not turn them


def _decode_pillow(data: bytes, plan: Plan) -> tuple[np.ndarray, int]:
    """[H, W, 3] and the EXIF orientation."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, plan)
            image.load()
            return _to_rgb(image), _orientation(image)
    except Image.UnidentifiedImageError as error:
        message = f"no known image format, or a damaged header; begins with {data[:16]!r}"
        raise BadImage(Status.DECODE_ERROR, message) from error
    except _PILLOW_ERRORS as error:
        raise BadImage(Status.DECODE_ERROR, f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        values = np.array(image).astype(np.uint32)
        grey = ((values + 128) // 257).astype(np.uint8)
        if isinstance(image.info.get("transparency"), int):
            grey[values == image.info["transparency"]] = 255
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        message = f"{image.format} with 32-bit samples: no defined white level"
        raise BadImage(Status.DECODE_ERROR, message)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(layers, mask=layers.getchannel("A"))
        return np.array(canvas)
    return np.array(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _PILLOW_ERRORS:
        return 1
    return value if value in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo EXIF orientation 1-8: 5-8 are stored transposed, the rest is mirroring."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
