"""What the headers of the formats other than JPEG say beyond what Pillow keeps.

Read from the bytes: depth, frames, where the first frame stands, colour that is declared, the
other picture behind the end.  Nothing here may cost the picture, unless it decides pixels.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
from dataclasses import dataclass, replace
from typing import Any

from PIL import GifImagePlugin

from pqmim.pictures import declared, ifd, png, tiff
from pqmim.pictures.picture import PILLOW_ERRORS, BadPicture

JP2_SPACES = {0, 12, 15, 16, 17, 18}  # bilevel, CMYK, sRGB, grey, sYCC: that Pillow takes rightly
_MASTER = b"DEBM"  # a BMP's own profile, the letters of a little-endian number


@dataclass(frozen=True)
class Facts:
    """Of one picture."""

    bits: int = 8  # a sample
    frames: int = 1
    gain_map: bool = False
    inverted: bool = False  # 0 is white, and Pillow has not seen to it
    white: int = 255  # the sample that is white, where Pillow does not scale
    transparent: int | None = None  # a level of grey, in samples as Pillow gives them
    icc: bytes = b""
    unconverted: str = ""  # a colour space that is not converted
    covered: tuple[int, int, int, int] | None = None  # of the canvas by the first frame, if not all
    orientation: int = 1
    notes: tuple[str, ...] = ()


def png_facts(parts: png.Facts) -> Facts:
    """Of a PNG that was taken apart."""
    scale = {1: 255, 2: 85, 4: 17}.get(parts.depth, 1)  # Pillow gives samples of 8 or 16 bits
    icc, unconverted = png.colours(parts)
    return Facts(
        bits=parts.depth, frames=parts.frames, icc=icc, unconverted=unconverted, notes=parts.notes,
        transparent=None if parts.transparent is None else parts.transparent * scale,
        white=65535 if parts.depth == 16 else 255,
        orientation=ifd.orientation(parts.exif, parts.xmp),
    )  # fmt: skip


def facts_of(image: Any, data: bytes, layout: tiff.Layout | None) -> Facts:
    """Of the formats other than PNG, opened and not yet loaded.

    Raises:
        BadPicture: samples or colours that Pillow takes wrongly.
    """
    info = image.info
    xmp = info.get("xmp") or b""
    facts = Facts(icc=info.get("icc_profile") or b"")
    if layout is not None:
        return replace(
            facts, bits=layout.bits, frames=layout.pages, inverted=layout.inverted,
            white=(1 << layout.bits) - 1, orientation=layout.orientation, notes=layout.notes,
        )  # fmt: skip
    if image.format == "JPEG2000":
        return _jpeg2000(facts, image, data)
    if image.format == "PPM":
        white, frames = _pnm(data)
        return replace(facts, bits=max(8, white.bit_length()), white=65535, frames=frames)
    if image.format in ("BMP", "DIB"):
        return _bmp(facts, data)
    if image.format == "GIF" and _without_palette(data):
        facts = replace(facts, notes=("GIF without a palette: its colours are not known",))
    exif = info.get("exif") or b""
    facts = replace(
        facts, orientation=ifd.orientation(exif, xmp), frames=_frames(image, data),
        covered=_covered(image, data),
    )  # fmt: skip
    return _avif(facts, data) if image.format == "AVIF" else facts


def loaded_facts(image: Any, facts: Facts) -> Facts:
    """Of deep grey that Pillow has loaded: what it keeps of the file, and has not seen to."""
    level, tags = image.info.get("transparency"), getattr(image, "tag_v2", {})
    bits = max(9, *tags.get(tiff.BITS, (16,)))
    return replace(
        facts, white=(1 << bits) - 1, transparent=level if isinstance(level, int) else None,
        inverted=tags.get(tiff.PHOTOMETRIC) == tiff.WHITE_IS_ZERO,
    )  # fmt: skip


def _frames(image: Any, data: bytes) -> int:
    if image.format != "GIF":
        return int(getattr(image, "n_frames", 1))
    # Counting walks through the frames and may end anywhere: not in the picture that is loaded.
    with contextlib.suppress(*PILLOW_ERRORS), GifImagePlugin.GifImageFile(io.BytesIO(data)) as gif:
        return int(gif.n_frames)
    return 1


def _without_palette(gif: bytes) -> bool:
    """Whether neither the file nor its first frame, behind some blocks, has a palette."""
    at, own = 13, gif[10:11] >= b"\x80"
    while not own and gif[at : at + 1] == b"!":
        at += 2
        while size := next(iter(gif[at : at + 1]), 0):
            at += 1 + size
        at += 1
    return not own and gif[at : at + 1] == b"," and gif[at + 9 : at + 10] < b"\x80"


def _covered(image: Any, data: bytes) -> tuple[int, int, int, int] | None:
    """Where a GIF's or an animated WebP's first frame stands, if it leaves some canvas free.

    That part is transparent, whatever the background colour, as in every browser.
    """
    box = (0, 0, image.width, image.height)
    if image.format == "GIF" and image.tile:
        box = image.tile[0][1]
    elif image.format == "WEBP" and (at := data.find(b"ANMF", 12)) >= 0:
        left, top, width, height = (
            int.from_bytes(data[at + 8 + 3 * n : at + 11 + 3 * n], "little") for n in range(4)
        )
        box = (2 * left, 2 * top, 2 * left + width + 1, 2 * top + height + 1)
    whole = box[0] <= 0 and box[1] <= 0 and box[2] >= image.width and box[3] >= image.height
    return None if whole else box


def _bmp(facts: Facts, data: bytes) -> Facts:
    """A profile of its own stands in the file; calibrated colours are numbers in its header."""
    start = 14 if data.startswith(b"BM") else 0
    size, space = int.from_bytes(data[start : start + 4], "little"), data[start + 56 : start + 60]
    if size >= 124 and space == _MASTER and len(data) >= start + 120:
        at, length = struct.unpack_from("<II", data, start + 112)
        return replace(facts, icc=data[start + at : start + at + length])
    calibrated = size >= 108 and space == b"\0" * 4 and any(data[start + 96 : start + 108])
    return replace(facts, unconverted="calibrated" if calibrated else "")


def _avif(facts: Facts, data: bytes) -> Facts:
    """Depth from the first AV1 configuration, colour from the first nclx box."""
    at = data.find(b"av1C")
    depth = data[at + 6] if 0 <= at < len(data) - 6 else 0
    bits = 8 if not depth & 0x40 else 12 if depth & 0x20 else 10
    facts = replace(facts, bits=bits, gain_map=b"tmap" in data[8:64])
    if re.search(rb"\0\0\0\x28clap", data):
        what = "AVIF with a clean aperture, which is not cut out: more is shown than it says"
        facts = replace(facts, notes=(*facts.notes, what))
    at = data.find(b"colrnclx")
    if facts.icc or not 0 <= at <= len(data) - 12:
        return facts
    icc, unconverted = declared.by_code_points(*struct.unpack_from(">HH", data, at + 8))
    return replace(facts, icc=icc, unconverted=unconverted)


def _pnm(data: bytes) -> tuple[int, int]:
    """The sample that is white, the third number of the header (bitmaps have none: 255), and 2
    pictures where another one stands behind the first."""
    kind, bitmap = data[1:2], data[1:2] in b"14"
    pattern = rb"P\d" + (rb"(?:\s|#[^\n]*\n)+(\d+)" * (2 if bitmap else 3)) + rb"\s"
    header = re.match(pattern, data)
    if header is None:
        return 255, 1
    width, height, *white = (int(number) for number in header.groups())
    if kind not in b"456":
        return (white or [255])[0], 1
    row = (width + 7) // 8 if bitmap else width * (3 if kind == b"6" else 1)
    end = header.end() + height * row * (2 if not bitmap and white[0] > 255 else 1)
    return (white or [255])[0], 1 + bool(re.match(rb"\s*P[1-6]\s", data[end : end + 64]))


def _jpeg2000(facts: Facts, image: Any, data: bytes) -> Facts:
    """Depth from the first component of the SIZ segment; colour from the colr box.

    Raises:
        BadPicture: signed; below 8 bits, which Pillow does not scale; colour of more than 8, whose
            white Pillow makes black; a colour space that it does not know.
    """
    at = data.find(b"\xff\x4f\xff\x51")
    depth = data[at + 42] if 0 <= at < len(data) - 42 else 7
    bits, what = (depth & 0x7F) + 1, ""
    if depth & 0x80 or not 8 <= bits <= 16:
        what = "signed samples" if depth & 0x80 else f"{bits} bits a sample"
    elif bits > 8 and not image.mode.startswith("I;16"):
        what = f"colours of {bits} bits a sample"
    header = data.find(b"jp2h")
    at = data.find(b"colr", header) if header >= 0 else -1
    length = int.from_bytes(data[at - 4 : at], "big") if at >= 4 else 0
    method, number = data[at + 4 : at + 5], int.from_bytes(data[at + 7 : at + 11], "big")
    if at >= 0 and method == b"\1" and number not in JP2_SPACES:
        what = what or f"colour space {number}"
    if at >= 0 and method in (b"\2", b"\3"):
        facts = replace(facts, icc=data[at + 7 : at - 4 + length])
        if facts.icc[16:20] == b"CMYK" and image.mode != "CMYK":
            what = what or "four inks of a profile"
    if header >= 0 and b"pclr" in data[header : header + 4096] and image.mode not in ("P", "PA"):
        what = what or "a palette of more than 8 bits"  # whose indexes Pillow would show
    if what:
        raise BadPicture(f"JPEG 2000 with {what} is not converted")
    return replace(facts, bits=bits, white=((1 << bits) - 1) << max(0, 16 - bits))
