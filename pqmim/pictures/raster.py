"""The formats that Pillow decodes, opened by their own plug-ins.

No other plug-in is asked: not those that start another program (EPS), nor those that open files
named in a file.  Opening a plug-in by name leaves Pillow's limit on pixels to the process that
imports this: our own limit is checked by the header first.

Transparency is composited over white.  16-bit grey becomes round(v / 257), 16-bit colour its high
byte; samples without a white level (signed, 32 bits, floats) are refused.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import replace
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
from pqmim.pictures.facts import Facts, facts_of, loaded_facts, png_facts
from pqmim.pictures.picture import PILLOW_ERRORS, BadPicture, Decoded, Rules, check_size, doubt

PLUGINS = (
    PngImagePlugin, WebPImagePlugin, GifImagePlugin, BmpImagePlugin, TiffImagePlugin,
    Jpeg2KImagePlugin, AvifImagePlugin, PpmImagePlugin,
)  # fmt: skip  # each registers what it opens
FORMATS = ("PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "PPM")
OTHERS = tuple(
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        (rb".{4}ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", "HEIC"), (rb".{4}ftyp", "a video"),
        (rb"\xff\x0a|.{4}JXL ", "JPEG XL"), (rb"II\xbc", "JPEG XR"), (rb"8BPS", "PSD"),
        (rb"%PDF", "PDF"), (rb"%!PS", "PostScript"), (rb"\s*<(!DOCTYPE )?html", "a web page"),
        (rb"\s*<(\?xml[^>]*>\s*)?(<!--.*-->\s*)?<?svg", "SVG"), (rb"\0\0[\x01\x02]\0", "ICO"),
        (rb"P7\n", "PAM"), (rb"P[fF]\s", "PFM"), (rb"qoif", "QOI"), (rb"v/1\x01", "OpenEXR"),
    )
)  # fmt: skip
TIFF = tuple(TiffImagePlugin.PREFIXES)  # BigTIFF too


def decode(data: bytes, rules: Rules) -> Decoded:
    """Raises:
    BadPicture: a status for its size, or why its pixels cannot be stood by.
    """
    facts = layout = parts = None
    try:
        if data.startswith(png.SIGNATURE):
            parts = png.read(data)
            data, facts = parts.lean, png_facts(parts)
        layout = tiff.read(data, rules) if data.startswith(TIFF) else None
        with open_(data) as image:
            check_size(image.width, image.height, rules)
            if layout is not None:
                image.seek(layout.page)
                check_size(image.width, image.height, rules)
                tiff.check_jpeg(layout, data, rules)
            facts = facts or facts_of(image, data, layout)
            colours = _colours(image)
            image.load()
            notes = _checked(image, parts, colours, rules)
            facts = replace(facts, notes=(*facts.notes, *notes))
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
        facts = Facts(icc=image.info.get("icc_profile") or b"", orientation=turn, white=65535)
        if image.mode.startswith("I;16"):
            facts = loaded_facts(image, facts)
        return _pixels(image, facts, rules)
    except BadPicture:
        raise
    except PILLOW_ERRORS as error:
        raise BadPicture(f"{type(error).__name__}: {error}") from error


def _checked(image: Any, parts: png.Facts | None, colours: int, rules: Rules) -> tuple[str, ...]:
    """What Pillow says nothing of, once it has loaded a picture.

    Raises:
        BadPicture: a PNG whose pixels end early.
    """
    if parts is not None:
        last = image.crop((0, image.height - 1, image.width, image.height))
        png.check_rows(parts, not np.any(np.asarray(last)))
    said = []
    if 0 <= colours <= image.getextrema()[1]:
        said.append("pixels of a colour beyond its palette")
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # somebody else's setting, of the whole process
        said.append("Pillow fills in what is missing here (LOAD_TRUNCATED_IMAGES)")
    return tuple(doubt(f"{image.format}: {text}", rules) for text in said)


def _colours(image: Any) -> int:
    """Colours of the palette of a picture that has one; else -1."""
    if image.mode != "P" or image.palette is None:
        return -1
    return len(image.palette.palette) // (4 if image.palette.rawmode == "BGRX" else 3)


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
    named = next((f"{name} is not read; it " for start, name in OTHERS if start.match(data)), "")
    raise BadPicture(
        f"{named or 'no known image format, or a damaged header; '}begins with {data[:16]!r}"
    )


def _pixels(image: Any, facts: Facts, rules: Rules) -> Decoded:
    """The loaded picture in 8 bits, over white, in sRGB."""
    samples, mode, alpha = _layers(image, facts)
    if facts.covered is not None:
        alpha = _only(facts.covered, samples.shape[:2], alpha)
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
    if facts.unconverted:
        dropped += (f"colour:{facts.unconverted}",)
    if image.format == "TIFF" and turn in range(2, 9):
        dropped, turn = (*dropped, "rotated"), 1  # Pillow has turned it while loading
    return Decoded(pixels, dropped, (*facts.notes, *notes), turn)


def _only(
    box: tuple[int, int, int, int], shape: tuple[int, int], alpha: np.ndarray | None
) -> np.ndarray:
    """Alpha [H, W] that is 0 outside a box, where the first frame has nothing."""
    left, top, right, bottom = box
    inside = np.zeros(shape, np.uint8)
    inside[top:bottom, left:right] = 255 if alpha is None else alpha[top:bottom, left:right]
    return inside


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
