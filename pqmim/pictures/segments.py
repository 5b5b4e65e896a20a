"""A JPEG's segments and scans: what its header says, whether the scans send all of the picture, and
what stands behind an end.

The walk over the markers before the first scan takes 5 us, and four times that between two
decodings, when the processor's caches hold pixels.

libjpeg says nothing of a progressive JPEG, or of one with a scan for each colour, that is cut
between two scans and closed with an end marker: what was not sent is smooth, or grey.  So it is
added up here what the headers of the scans say that they bring.  Only files of several scans are
walked through, by searches for their markers: less than 0.1 % of decoding.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0-15 without DHT, JPG, DAC
SEQUENTIAL = 0xC1  # the last frame marker of Huffman codes in one pass
BARE = {0x01, SOI, EOI, *range(0xD0, 0xD8)}  # markers without a length
_MARKER = re.compile(rb"\xff+[^\x00\xff]")
GAIN_MAP = re.compile(rb"hdrgm:|hdrgainmap|iso:ts:21496", re.IGNORECASE)
# What read_header does about a marker: a table, as the walk is most of what a small picture costs.
PASSED, FRAME, APPLICATION, ENDS, ODD = range(5)
KINDS = bytes(
    ODD if marker < 0xC0 or marker in BARE or marker == 0xFF
    else ENDS if marker == SOS
    else FRAME if marker in FRAMES
    else APPLICATION if marker in (0xE1, 0xE2)
    else PASSED
    for marker in range(256)
)  # fmt: skip
_MARKER_AND_LENGTH = struct.Struct(">BBH").unpack_from
_HEIGHT_WIDTH_COMPONENTS = struct.Struct(">xHHB").unpack_from  # of a frame header's parameters
SCAN, END = b"\xff\xda", b"\xff\xd9"
PIECE = 1 << 17  # bytes that are searched at once
_SOI = np.uint16(0xD8FF)  # of the beginning of a JPEG, its bytes as a little-endian number
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}  # frame markers
COEFFICIENTS = 64
_MEDIA = re.compile(rb"\0\0\0.ftyp(....)", re.DOTALL)  # the first box of an MP4, HEIC, AVIF
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_STILL = {b"heic", b"heix", b"mif1", b"avif", b"msf1", b"hevc"}  # brands that are no video


@dataclass(slots=True)
class Header:
    """What stands before the first scan."""

    width: int = 0
    height: int = 0
    components: int = 0
    exif: bytes = b""
    xmp: bytes = b""
    mpf: bytes = b""
    mpf_at: int = 0  # place of the MPF block, from which its offsets count
    icc: dict[int, bytes] = field(default_factory=dict)  # parts by number
    icc_parts: int = 0
    gain_map: bool = False
    frame: int = 0  # place of the frame header's marker
    scan: int = 0  # and of the first scan's


class Segment(NamedTuple):
    """A marker and its parameters: data[start:end] with the marker, body from ``body`` on."""

    marker: int
    start: int
    body: int
    end: int


def next_segment(data: bytes, at: int) -> Segment | None:
    """The next marker at or after ``at``, as libjpeg finds it; None where there is none."""
    if data[at : at + 1] == b"\xff" and b"\xbf" < data[at + 1 : at + 2] < b"\xff":  # as it should
        body = at + 2
    elif found := _MARKER.search(data, at):
        body = found.end()
    else:
        return None
    marker = data[body - 1]
    if marker in BARE:
        return Segment(marker, body - 2, body, body)
    length = int.from_bytes(data[body : body + 2], "big")
    return None if length < 2 else Segment(marker, body - 2, body + 2, body + length)


def plain(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG of three colours in one sequential scan that ends with the file
    and has neither EXIF, XMP, profile nor second picture: all is said by its pixels.  None of any
    other, of which :func:`read_header` and the rest of this module say what there is.

    Most pictures of a data set are such, and small: between two decodings Python's own code is out
    of the processor's caches, so what counts is how little of it is run.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] != END:
        return None
    at, size = 2, None
    try:
        while True:
            first, marker, length = _MARKER_AND_LENGTH(data, at)
            kind = KINDS[marker] if first == 0xFF and length > 1 else ODD
            if kind == FRAME and size is None and marker <= SEQUENTIAL and length > 7:
                height, width, components = _HEIGHT_WIDTH_COMPONENTS(data, at + 4)
                size = (height, width) if components == 3 else None
            elif kind != PASSED:
                return size if kind == ENDS and data[at + 4] >= 3 else None
            at += length + 2
    except (struct.error, IndexError):
        return None


def read_header(data: bytes) -> Header:
    """Size, and the metadata that concern the pixels."""
    header, at, size = Header(), 2, len(data) - 4
    while True:
        start, kind = at, ODD
        if at < size:  # nearly always a marker with a length stands here
            first, marker, length = _MARKER_AND_LENGTH(data, at)
            if first == 0xFF and length > 1:
                kind, body, at = KINDS[marker], at + 4, at + 2 + length
        if kind == PASSED:
            continue
        if kind == ODD:
            segment = next_segment(data, start)
            if segment is None:
                break
            marker, start, body, at = segment
            kind = ENDS if marker == EOI else KINDS[marker]
        if kind == ENDS:
            header.scan = start
            break
        if kind == FRAME and not header.components and at - body >= 6:
            header.height = int.from_bytes(data[body + 1 : body + 3], "big")
            header.width = int.from_bytes(data[body + 3 : body + 5], "big")
            header.components = data[body + 5] if body + 5 < len(data) else 0
            header.frame = start
        elif kind == APPLICATION:
            _application(data, body, at, header)
    return header


def _application(data: bytes, start: int, end: int, header: Header) -> None:
    """APP1 and APP2: EXIF, XMP, ICC parts, MPF, gain map."""
    if data.startswith(b"Exif\0", start):
        header.exif = header.exif or data[start + 6 : end]
    elif data.startswith(b"http://ns.adobe.com/xap/1.0/\0", start):
        header.xmp = data[start + 29 : end]
        header.gain_map |= bool(GAIN_MAP.search(header.xmp))
    elif data.startswith(b"ICC_PROFILE\0", start):
        if end - start > 14:
            header.icc.setdefault(data[start + 12], data[start + 14 : end])
            header.icc_parts = max(header.icc_parts, data[start + 13])
    elif data.startswith(b"MPF\0", start):
        header.mpf, header.mpf_at = data[start + 4 : end], start + 4
    elif data.startswith(b"urn:iso:std:iso:ts:21496", start):
        header.gain_map = True


def unsent(data: bytes, frame: int, first_scan: int) -> str:
    """What the scans do not bring of the frame; empty where they bring everything.

    ``frame`` is the place of the frame header's marker, ``first_scan`` that of the first scan's.
    """
    count, progressive = data[frame + 9], data[frame + 1] in PROGRESSIVE
    if not progressive and first_scan + 4 < len(data) and data[first_scan + 4] >= count:
        return ""
    missing = {data[frame + 10 + 3 * n]: [1] * COEFFICIENTS for n in range(count)}
    at = data.find(SCAN, first_scan)
    while at >= 0:
        _mark(data, at, progressive, missing)
        at = data.find(SCAN, at + 2)
    short = [number for number, bits in enumerate(missing.values(), 1) if any(bits)]
    named = ", ".join(map(str, short))
    return f"its scans leave out part of component {named} of {count}" if short else ""


def _mark(data: bytes, at: int, progressive: bool, missing: dict[int, list[int]]) -> None:
    """Note which coefficients a scan brings to their last bit."""
    many = data[at + 4 : at + 5]
    end = at + 5 + 2 * many[0] if many else len(data)
    first_last_bits = data[end : end + 3]
    if len(first_last_bits) < 3:
        return
    first, last, bits = first_last_bits if progressive else (0, COEFFICIENTS - 1, 0)
    for component in data[at + 5 : end : 2]:
        if component in missing and bits & 15 == 0:
            missing[component][first : last + 1] = [0] * len(missing[component][first : last + 1])


def behind(data: bytes, end: int) -> tuple[bool, bool]:
    """Whether another picture, and whether a video (a motion photo's), stands behind an end."""
    if not len(END) <= end < len(data):
        return False, False
    brands = set(_MEDIA.findall(data, end))
    picture = any(data.find(start, end) >= 0 for start in _PICTURES) or bool(brands & _STILL)
    return picture, bool(brands - _STILL)


def behind_jpeg(data: bytes, first_scan: int, metadata: bool) -> tuple[bool, bool]:
    """The same, of a JPEG, with or without EXIF or XMP.

    Of those without, only files that do not end with an end marker are looked at: cameras and
    phones, which put pictures behind pictures, write metadata, and the search takes 2 to 4 % of
    decoding a small picture.
    """
    if data.endswith(END) and not (metadata and _begins_again(data, first_scan + 2)):
        return False, False
    return behind(data, data.find(END, first_scan) + len(END))


def _begins_again(data: bytes, at: int) -> bool:
    """Whether the two bytes that begin a JPEG stand at or after a place: pairs at even and odd
    places, five times faster than a search."""
    found = np.empty(min(PIECE, len(data)) // 2, bool)
    for piece in range(at, len(data) - 1, PIECE):
        for start in (piece, piece + 1):
            pairs = np.frombuffer(data, "<u2", min(PIECE, len(data) - start) // 2, start)
            same = found[: pairs.size]
            np.equal(pairs, _SOI, same)
            if np.count_nonzero(same):
                return True
    return False
