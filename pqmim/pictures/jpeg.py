"""JPEG to pixels through simplejpeg (libjpeg-turbo), every warning heard.

libjpeg goes on after damage and *warns*; simplejpeg's strict mode turns that into an error.  But
only the first warning of a file is reported, so that one about metadata or stray bytes between
segments would hide the others.  Such a file is copied without what causes it (``_lean``: segments
that decide pixels, and the scans) and decoded strictly again: what is then said is about pixels.

    bytes too many in a scan, at the end of the file   a note, or an error with Rules.strict: every
                                                       row was decoded, but some may be wrong
    zeros too many at the end of a scan                padding: sound if it decodes without them
    components sampled in a way that TurboJPEG has     a note, or an error with Rules.strict:
    no name for (CMYK of 4:2:0)                        Pillow decodes it, which says nothing
    everything else that is said of a scan             an error: the rest is guessed

The note is not an error because whole files of some cameras end so.  A damaged byte that still
decodes to exactly as many bits is beyond any JPEG decoder; tests/pqmim/pictures/test_jpeg.py
counts how often.
"""

from __future__ import annotations

import contextlib
import io
import re

import numpy as np
import simplejpeg
from PIL import JpegImagePlugin

from pqmim.pictures import colour, ifd
from pqmim.pictures.picture import (
    PILLOW_ERRORS,
    BadPicture,
    Decoded,
    Picture,
    Rules,
    check_size,
    doubt,
)
from pqmim.pictures.segments import (
    BARE,
    EOI,
    FRAMES,
    GAIN_MAP,
    SOS,
    Header,
    Segment,
    behind_jpeg,
    next_segment,
    read_header,
    unsent,
)

UNHEARD = "sampling for which the decoder's warnings are not heard"
_AT_END = re.compile("extraneous bytes before marker 0xd9")
_SCAN_ENDS = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
ADOBE_RGB = b"R03\0"  # of EXIF's interoperability: a camera's other colour space
_THUMBNAIL = 0x010000  # class of MPF pictures that are smaller copies of the first
_HEAD = 1 << 16  # bytes of a second picture in which its metadata are


def decode(data: bytes, rules: Rules) -> Decoded:
    """Raises:
    BadPicture: a status for its size, or an error in its scans.
    """
    header = read_header(data)
    if not header.components:
        raise BadPicture("JPEG: no frame header before its first scan")
    check_size(header.width, header.height, rules)
    mode = "CMYK" if header.components == 4 else "RGB"
    pixels, notes = _decode_strictly(data, mode, rules)
    if pixels.shape[:2] != (header.height, header.width):
        raise BadPicture("JPEG: two frame headers that do not agree")
    if said := unsent(data, header.frame, header.scan):
        raise BadPicture(f"JPEG: {said}")
    if mode == "CMYK":  # Adobe's convention, which all CMYK JPEG follows: 255 is no ink
        np.subtract(255, pixels, out=pixels)
    profile, problem = _profile(header)
    if profile and header.components == 1:
        pixels, mode = pixels[..., 0], "L"  # a profile of grey says nothing of three channels
    pixels, dropped, of_profile = colour.to_srgb(pixels, mode, profile, rules)
    if not header.icc and ADOBE_RGB in header.exif:
        dropped += ("colour:adobe-rgb",)
    dropped += _others(data, header)
    turn = ifd.orientation(header.exif, header.xmp) if header.exif or header.xmp else 1
    return Decoded(pixels, dropped, (*notes, *problem, *of_profile), turn)


def of_plain(data: bytes, height: int, width: int, rules: Rules) -> Picture | None:
    """The pixels of what :func:`pqmim.pictures.segments.plain` has found, None if libjpeg has
    something to say of them.

    Raises:
        BadPicture: for its size.
    """
    check_size(width, height, rules)
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data)
    except (ValueError, KeyError):
        return None
    same = pixels.shape[0] == height and pixels.shape[1] == width
    return Picture(pixels.transpose(2, 0, 1)) if same else None


def strict(data: bytes, mode: str = "RGB") -> np.ndarray:
    """[H, W, 3 or 4] of a JPEG about which libjpeg has nothing to say.

    Raises:
        ValueError: the first thing that it has to say.
    """
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, mode)
    except KeyError as error:
        raise ValueError(f"colour space {error} is not known") from error
    return pixels


def _decode_strictly(data: bytes, mode: str, rules: Rules) -> tuple[np.ndarray, tuple[str, ...]]:
    """Pixels, and what may be wrong with them.

    Raises:
        BadPicture: a scan is not whole, or there is none.
    """
    try:
        return strict(data, mode), ()
    except ValueError:
        lean = _lean(data)  # what is said of this is about pixels
    try:
        return strict(lean, mode), ()
    except ValueError as error:
        said = str(error)
    if "extraneous" in said:
        with contextlib.suppress(ValueError):
            return strict(_lean(data, padding=False), mode), ()
    unheard = "subsampling" in said
    if not unheard and not _AT_END.search(said):
        raise BadPicture(f"JPEG: {said}")
    note = doubt(f"JPEG: {UNHEARD if unheard else said}", rules)
    return _by_pillow(lean, mode) if unheard else _leniently(lean, mode), (note,)


def _leniently(data: bytes, mode: str) -> np.ndarray:
    """What strict decoding has thrown away; called where the warning comes after the last row."""
    pixels: np.ndarray = simplejpeg.decode_jpeg(data, mode, strict=False)
    return pixels


def _by_pillow(data: bytes, mode: str) -> np.ndarray:
    """Of a JPEG whose components are sampled as TurboJPEG has no name for."""
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            pixels = np.array(image if mode == "CMYK" else image.convert("RGB"))
            return 255 - pixels if mode == "CMYK" else pixels  # Pillow has inverted it
    except PILLOW_ERRORS as error:
        raise BadPicture(f"JPEG: {type(error).__name__}: {error}") from error


def _lean(data: bytes, padding: bool = True) -> bytes:
    """The segments and scans that decide pixels, and nothing between them.

    Without ``padding``, zeros at the end of a scan are left out.
    """
    parts, at, components, progressive = [b"\xff\xd8"], 2, 3, False
    while (segment := next_segment(data, at)) is not None:
        at = segment.end
        if segment.marker in FRAMES and segment.body + 5 < len(data):
            components = data[segment.body + 5]
            progressive = segment.marker not in (0xC0, 0xC1, 0xC9)
        parts.append(_needed(data, segment, components, progressive))
        if segment.marker == EOI:
            break
        if segment.marker == SOS:
            ends = _SCAN_ENDS.search(data, at)
            scan = data[at : ends.start() if ends else len(data)]
            if not padding:
                kept = scan.rstrip(b"\0")
                scan = kept + b"\0" if kept.endswith(b"\xff") else kept
            parts.append(scan)
            at = ends.start() if ends else len(data)
    return b"".join(parts)


def _needed(data: bytes, segment: Segment, components: int, progressive: bool) -> bytes:
    """What a decoder needs of a segment, in a form that it does not warn about."""
    marker, whole = segment.marker, bytearray(data[segment.start : segment.end])
    body = segment.body - segment.start
    if marker == 0xE0 and data.startswith(b"JFIF\0", segment.body) and len(whole) > body + 5:
        whole[body + 5] = 1  # revision: another one is read alike
        return bytes(whole)
    if marker == 0xEE and data.startswith(b"Adobe", segment.body) and len(whole) >= body + 12:
        if whole[body + 11] > 2:  # colour transform: what libjpeg takes an unknown one for
            whole[body + 11] = 1 if components == 3 else 2
        return bytes(whole)
    if marker == SOS and not progressive and len(whole) > body + 3:
        whole[-3:] = b"\0\x3f\0"  # all coefficients: the only choice, whatever it says
        return bytes(whole)
    if 0xE0 <= marker <= 0xEF or marker == 0xFE or marker in BARE - {EOI}:
        return b""
    return bytes(whole)


def _profile(header: Header) -> tuple[bytes | None, tuple[str, ...]]:
    """The ICC profile, put together; a note where that is not possible."""
    if not header.icc:
        return None, ()
    if sorted(header.icc) != [*range(1, header.icc_parts + 1)]:
        return None, ("ICC profile whose parts are not numbered 1 to n: colours taken as sRGB",)
    return b"".join(header.icc[n] for n in sorted(header.icc)), ()


def _others(data: bytes, header: Header) -> tuple[str, ...]:
    """Second pictures of the file: gain maps, what a multi-picture index (MPF) lists, and what
    stands behind the end of the first."""
    metadata = bool(header.exif or header.xmp or header.mpf)
    another, video = behind_jpeg(data, header.scan, metadata)
    if not (another or video or header.mpf):
        return ("gain_map",) if header.gain_map else ()
    gain_map, pictures = header.gain_map, 1
    directory = next(ifd.directories(header.mpf), {}) if header.mpf else {}
    entries = directory.get(0xB002, ("", b""))[1]
    order = "little" if header.mpf.startswith(b"II") else "big"
    for at in range(16, len(entries) - 15, 16):  # after the first, which is this one
        kind = int.from_bytes(entries[at : at + 4], order) & 0xFFFFFF  # type: ignore[arg-type]
        place = int.from_bytes(entries[at + 8 : at + 12], order)  # type: ignore[arg-type]
        place += header.mpf_at
        if GAIN_MAP.search(data[place : place + _HEAD]):
            gain_map = True
        elif kind & 0xFF0000 != _THUMBNAIL:
            pictures += 1
    if another and not entries and not gain_map:
        pictures = 2
    found = (f"frames:{pictures}",) if pictures > 1 and not header.gain_map else ()
    return (*found, *(("gain_map",) if gain_map else ()), *(("video",) if video else ()))
