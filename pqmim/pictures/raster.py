"""The formats that Pillow decodes, opened by their own plug-ins.

No other plug-in is asked: not those that start another program (EPS), nor those that open files
named in a file.  Opening a plug-in by name leaves Pillow's limit on pixels to the process that
imports this: our own limit is checked by the header first.

Transparency is composited over white.  16-bit grey becomes round(v / 257), 16-bit colour its high
byte; samples without a white level (signed, 32 bits, floats) are refused.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pqmim.pictures import colour, ifd, png, tiff
from pqmim.pictures.picture import PILLOW_ERRORS, BadPicture, Decoded, Rules, check_size

PLUGINS = (
    PngImagePlugin, WebPImagePlugin, GifImagePlugin, BmpImagePlugin, TiffImagePlugin,
    Jpeg2KImagePlugin, AvifImagePlugin, PpmImagePlugin,
)  # fmt: skip  # each registers what it opens
FORMATS = ("PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "PPM")
TIFF = tuple(TiffImagePlugin.PREFIXES)  # BigTIFF too


@dataclass(frozen=True)
class Facts:
    """What a format's header says beyond what Pillow keeps."""

    bits: int = 8  # a sample
    frames: int = 1
    gain_map: bool = False
    inverted: bool = False  # 0 is white, and Pillow has not seen to it
    white: int = 255  # the sample that is white, where Pillow does not scale
    transparent: int | None = None  # a level of grey, in samples as Pillow gives them
    icc: bytes = b""
    orientation: int = 1
    notes: tuple[str, ...] = ()


def decode(data: bytes, rules: Rules) -> Decoded:
    """Raises:
    BadPicture: a status for its size, or why its pixels cannot be stood by.
    """
    facts = layout = None
    try:
        if data.startswith(png.SIGNATURE):
            parts = png.read(data)
            data, facts = parts.lean, _png_facts(parts)
        layout = tiff.read(data) if data.startswith(TIFF) else None
        with open_(data) as image:
            check_size(image.width, image.height, rules)
            if layout is not None:
                image.seek(layout.page)
                check_size(image.width, image.height, rules)
                tiff.check_jpeg(layout, data, rules)
            facts = facts or _facts(image, data, layout)
            image.load()
            return _pixels(image, facts, rules)
    except BadPicture:
        raise
    except PILLOW_ERRORS as error:
        if layout is not None and "unknown pixel mode" in str(error):
            raise BadPicture(f"TIFF of {layout.name} in this order is not converted") from error
        raise BadPicture(f"{type(error).__name__}: {error}") from error


def of_pillow(image: Image.Image, rules: Rules) -> Decoded:
    """A picture of Pillow's, whatever opened it; its frame is the one that it stands at.

    Raises:
        BadPicture: a status for its size, or why its pixels cannot be stood by.
    """
    check_size(image.width, image.height, rules)
    try:
        image.load()
        exif, xmp = image.info.get("exif") or b"", image.info.get("xmp") or b""
        turn = ifd.orientation(exif, xmp if isinstance(xmp, bytes) else b"")
        icc = image.info.get("icc_profile") or b""
        return _pixels(image, Facts(icc=icc, orientation=turn, white=65535), rules)
    except BadPicture:
        raise
    except PILLOW_ERRORS as error:
        raise BadPicture(f"{type(error).__name__}: {error}") from error


def size(data: bytes) -> tuple[int, int]:
    """Width and height as stored, from the header of the picture that ``decode`` would give.

    Raises:
        one of PILLOW_ERRORS: there is none.
    """
    if data.startswith(png.SIGNATURE):  # Pillow would read metadata on the way
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    if data.startswith(TIFF):
        layout = tiff.read(data)
        return layout.width, layout.height
    with open_(data) as image:
        return image.width, image.height


def open_(data: bytes) -> ImageFile.ImageFile:
    """The picture of one of the formats above, its header read.

    Raises:
        BadPicture: of no such format.
        one of PILLOW_ERRORS: a damaged header.
    """
    for name in FORMATS:
        if name not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(data[:16].ljust(16, b"\0")) is True:
            return factory(io.BytesIO(data), "")
    raise BadPicture(f"no known image format, or a damaged header; begins with {data[:16]!r}")


def _png_facts(parts: png.Facts) -> Facts:
    scale = {1: 255, 2: 85, 4: 17}.get(parts.depth, 1)  # Pillow gives samples of 8 or 16 bits
    return Facts(
        bits=parts.depth, frames=parts.frames, icc=parts.icc, notes=parts.notes,
        transparent=None if parts.transparent is None else parts.transparent * scale,
        white=65535 if parts.depth == 16 else 255,
        orientation=ifd.orientation(parts.exif, parts.xmp),
    )  # fmt: skip


def _facts(image: Any, data: bytes, layout: tiff.Layout | None) -> Facts:
    """Of the formats other than PNG; nothing here may cost the picture."""
    info = image.info
    xmp = info.get("xmp") or b""
    facts = Facts(icc=info.get("icc_profile") or b"")
    if layout is not None:
        return replace(
            facts, bits=layout.bits, frames=layout.pages, inverted=layout.inverted,
            white=(1 << layout.bits) - 1, orientation=layout.orientation,
        )  # fmt: skip
    facts = replace(facts, frames=_frames(image, data))
    if image.format == "JPEG2000":
        bits = _jpeg2000_bits(data)
        return replace(facts, bits=bits, white=((1 << bits) - 1) << max(0, 16 - bits))
    if image.format == "PPM":
        white = _pnm_white(data)
        return replace(facts, bits=max(8, white.bit_length()), white=65535)
    exif = info.get("exif") or b""
    facts = replace(facts, orientation=ifd.orientation(exif, xmp))
    if image.format == "AVIF":
        at = data.find(b"av1C")
        depth = data[at + 6] if 0 <= at < len(data) - 6 else 0
        bits = 8 if not depth & 0x40 else 12 if depth & 0x20 else 10
        return replace(facts, bits=bits, gain_map=b"tmap" in data[8:64])
    return facts


def _frames(image: Any, data: bytes) -> int:
    if image.format != "GIF":
        return int(getattr(image, "n_frames", 1))
    # Counting walks through the frames and may end anywhere: not in the picture that is loaded.
    with contextlib.suppress(*PILLOW_ERRORS), open_(data) as other:
        return int(getattr(other, "n_frames", 1))
    return 1


def _pnm_white(data: bytes) -> int:
    """The sample that is white, the third number of the header; bitmaps (P1, P4) have none."""
    header = re.sub(rb"#[^\n]*", b"", data[:4096]).split(None, 4)
    return int(header[3]) if data[1:2] in b"2356" else 255


def _jpeg2000_bits(data: bytes) -> int:
    """From the first component of the SIZ segment.

    Raises:
        BadPicture: signed, or below 8 bits, which Pillow does not scale.
    """
    at = data.find(b"\xff\x4f\xff\x51")
    depth = data[at + 42] if 0 <= at < len(data) - 42 else 7
    if depth & 0x80 or depth < 7 or depth > 15:
        what = "signed samples" if depth & 0x80 else f"{(depth & 0x7F) + 1} bits a sample"
        raise BadPicture(f"JPEG 2000 with {what} is not converted")
    return depth + 1


def _pixels(image: Any, facts: Facts, rules: Rules) -> Decoded:
    """The loaded picture in 8 bits, over white, in sRGB."""
    samples, mode, alpha = _layers(image, facts)
    pixels, dropped, notes = colour.to_srgb(samples, mode, facts.icc, rules)
    if alpha is not None and int(alpha.min()) < 255:
        pixels, dropped = _over_white(pixels, alpha), (*dropped, "alpha")
    turn = facts.orientation
    if facts.bits > 8:
        dropped += (f"bits:{facts.bits}",)
    if facts.frames > 1:
        dropped += (f"frames:{facts.frames}",)
    if facts.gain_map:
        dropped += ("gain_map",)
    if image.format == "TIFF" and turn in range(2, 9):
        dropped, turn = (*dropped, "rotated"), 1  # Pillow has turned it while loading
    return Decoded(pixels, dropped, (*facts.notes, *notes), turn)


def _over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """[H, W, 3] over white, a strip at a time: 3 bytes a pixel of memory rather than 15."""
    out = np.empty_like(pixels)
    rows = max(1, colour.STRIP // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        part = np.ascontiguousarray(pixels[top : top + rows])
        canvas = Image.new("RGB", (part.shape[1], part.shape[0]), "white")
        mask = Image.fromarray(np.ascontiguousarray(alpha[top : top + rows]))
        canvas.paste(Image.fromarray(part), mask=mask)
        out[top : top + rows] = np.asarray(canvas)
    return out


def _layers(image: Any, facts: Facts) -> tuple[np.ndarray, str, np.ndarray | None]:
    """Samples of 8 bits, their mode (L, RGB or CMYK), and alpha, 255 for opaque."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        values = np.asarray(image).astype(np.uint32)
        if facts.inverted:
            values = facts.white - values
        grey = np.minimum((2 * 255 * values + facts.white) // (2 * facts.white), 255)
        return grey.astype(np.uint8), "L", _level(values, facts)
    if image.mode in ("I", "F", "LAB", "HSV"):
        samples = "Lab samples" if image.mode == "LAB" else "32-bit samples: no defined white level"
        raise BadPicture(f"{image.format} with {samples}")
    if facts.transparent is not None:
        grey = np.asarray(image.convert("L"))
        return grey, "L", _level(grey, facts)
    if image.has_transparency_data:
        layers = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        alpha: np.ndarray | None = np.asarray(layers.getchannel("A"))
        if image.format in ("BMP", "DIB") and not np.any(alpha):
            alpha = None  # a field that nobody filled in: such pictures are shown opaque
        layers = layers.convert("RGB")
        return np.asarray(layers), "RGB", alpha
    if image.mode == "CMYK":
        return np.asarray(image), "CMYK", None
    grey_mode = image.mode in ("1", "L")
    return np.array(image.convert("L" if grey_mode else "RGB")), "L" if grey_mode else "RGB", None


def _level(samples: np.ndarray, facts: Facts) -> np.ndarray | None:
    if facts.transparent is None:
        return None
    return np.where(samples == facts.transparent, 0, 255).astype(np.uint8)
