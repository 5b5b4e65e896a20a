"""A PNG taken apart: what Pillow is to decode, and what the rest of the file says about it.

Pillow is given the chunks that decide pixels and no others, so that a text of more than 1 MB, a
cut profile or a wrong checksum of a comment cannot cost the picture; its process-wide limits stay
as they are.  The transparent level of grey pictures is kept from it as well: below 8 bits it
compares the level with scaled samples (Pillow #9281).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pqmim.pictures import declared, segments
from pqmim.pictures.picture import BadPicture

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types
MAX_METADATA = 16 << 20  # bytes of a decompressed profile; its largest known kind has 4 MB
_KNOWN = {  # chunks without which the pixels are the same; a damaged name may have been tRNS
    *(b"sBIT", b"mDCV", b"cLLI", b"bKGD", b"hIST", b"pHYs", b"sPLT", b"tIME", b"fdAT", b"fcTL"),
    *(b"acTL", b"oFFs", b"pCAL", b"sCAL", b"sTER"),
}
_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_ONCE = {b"IHDR", b"PLTE", b"tRNS"}
_PASSES = (  # Adam7: first column, first row, steps
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # fmt: skip
_RAW_EXIF = re.compile(rb"Raw profile type (?:exif|APP1)\0")  # ImageMagick's, in hexadecimal


@dataclass(frozen=True)
class Facts:
    """A PNG without what Pillow need not see."""

    lean: bytes
    size: tuple[int, int] = (0, 0)  # width, height
    interlaced: bool = False
    depth: int = 8  # bits a sample
    colour_type: int = RGB
    transparent: int | None = None  # the transparent level of a grey picture, of ``depth`` bits
    frames: int = 1
    icc: bytes = b""
    declared: dict[bytes, bytes] = field(default_factory=dict)  # colour by numbers: chunk -> body
    exif: bytes = b""
    xmp: bytes = b""
    notes: tuple[str, ...] = ()


def read(data: bytes) -> Facts:
    """Raises:
    BadPicture: damage where it decides pixels, or 16-bit colour with one transparent colour.
    """
    facts, parts, seen, animated, before, last = Facts(b""), [SIGNATURE], set[bytes](), 0, 0, 0
    for kind, start, last in chunks(data):
        body, checked = data[start + 8 : last - 4], data[start + 4 : last]
        _check(kind, seen, checked)
        if kind == b"acTL" and len(body) == 8:
            animated = struct.unpack(">I", body[:4])[0]
        elif kind == b"fcTL" and b"IDAT" not in seen:
            before = 1
        elif kind in _METADATA:
            facts = _METADATA[kind](facts, checked, body)
        if kind[:1].isupper() or (kind == b"tRNS" and facts.transparent is None):
            parts.append(data[start:last])
        seen.add(kind)
    if facts.colour_type == PALETTE and b"PLTE" not in seen:
        raise BadPicture("PNG: a picture by palette, without a palette")
    another, _ = segments.behind(data, last)
    frames = max(1, animated + (1 - before if animated else 0)) + another
    return replace(facts, lean=b"".join(parts), frames=frames)


def _check(kind: bytes, seen: set[bytes], checked: bytes) -> None:
    """Raises:
    BadPicture: a chunk without which, or twice with which, the pixels are not known.
    """
    if kind in _ONCE and kind in seen:
        raise BadPicture(f"PNG: two chunks {kind.decode()}")
    if kind == b"CgBI":
        raise BadPicture("PNG in the form that Xcode makes of it for an iPhone: convert it")
    if kind[:1].isupper() and kind not in _CRITICAL:
        raise BadPicture(f"PNG: a chunk {kind!r} without which it cannot be shown")
    if not (kind[:1].isupper() or kind in _KNOWN or kind in _METADATA or _sound(checked)):
        raise BadPicture(f"PNG: a damaged chunk of unknown kind {kind!r}")


def _header(facts: Facts, checked: bytes, body: bytes) -> Facts:
    if len(body) != 13 or body[10]:
        raise BadPicture("PNG: a header that is not one of PNG")
    width, height, depth, colour_type, _, _, interlace = struct.unpack(">IIBBBBB", body)
    return replace(
        facts, size=(width, height), depth=depth, colour_type=colour_type,
        interlaced=bool(interlace),
    )  # fmt: skip


def colours(facts: Facts) -> tuple[bytes, str]:
    """The ICC profile, or what stands for one; or a colour space that is not converted.

    Which of them counts is in the PNG standard, third edition, 4.3: cICP, iCCP, sRGB, gAMA.
    """
    found, problem = facts.declared, ""
    if len(found.get(b"cICP", b"")) == 4:
        primaries, transfer, matrix, whole = found[b"cICP"]
        icc, problem = declared.by_code_points(primaries, transfer)
        if not problem and matrix == 0 and whole == 1:
            return icc, ""
        problem = problem or "cicp-yuv-or-narrow"
    if facts.icc or b"sRGB" in found or problem:
        return facts.icc, problem
    return declared.by_png(found.get(b"gAMA", b""), found.get(b"cHRM", b""))


def check_rows(facts: Facts, suspicious: bool) -> None:
    """Make sure that there are pixels for every row: Pillow leaves black what ends between two.

    ``suspicious``: the last row is all zeros; another one has been decoded, as have all before it,
    unless the rows are interlaced.

    Raises:
        BadPicture: the pixels end early.
    """
    if not suspicious and not facts.interlaced:
        return
    expected, have, inflate = _bytes(facts), 0, zlib.decompressobj()
    for kind, start, end in chunks(facts.lean):
        left = facts.lean[start + 8 : end - 4] if kind == b"IDAT" else b""
        while left and have < expected:
            have += len(inflate.decompress(left, 1 << 20))
            left = inflate.unconsumed_tail
    if have < expected:
        raise BadPicture(f"PNG: its pixels end after {have} of {expected} bytes")


def _bytes(facts: Facts) -> int:
    """Of all rows, each with its filter's number."""
    width, height = facts.size
    bits = facts.depth * {RGB: 3, GREY_ALPHA: 2, RGB_ALPHA: 4}.get(facts.colour_type, 1)
    passes = _PASSES if facts.interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, right, down in passes:
        across, rows = -((left - width) // right), -((top - height) // down)
        total += rows * (1 + (across * bits + 7) // 8) if across > 0 and rows > 0 else 0
    return total


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk; of a cut one, what there is."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        kind = data[at + 4 : at + 8]
        yield kind, at, min(end, len(data))
        if kind == b"IEND":
            return
        at = end


def _sound(checked: bytes) -> bool:
    """Whether kind and body of a chunk are those that its checksum is of."""
    return zlib.crc32(checked[:-4]).to_bytes(4, "big") == checked[-4:]


def _transparency(facts: Facts, checked: bytes, body: bytes) -> Facts:
    if facts.colour_type not in (GREY, RGB):
        return facts
    if not _sound(checked):
        raise BadPicture("PNG: the checksum of tRNS, which says what is transparent, is wrong")
    if facts.colour_type == GREY and len(body) >= 2:
        return replace(
            facts, transparent=struct.unpack(">H", body[:2])[0] & ((1 << facts.depth) - 1)
        )
    if facts.depth == 16:
        raise BadPicture("PNG: 16-bit colour with one transparent colour is not converted")
    return facts


def _icc(facts: Facts, checked: bytes, body: bytes) -> Facts:
    _, _, packed = body.partition(b"\0")
    try:
        found = zlib.decompressobj().decompress(packed[1:], MAX_METADATA)
    except zlib.error as error:
        return replace(facts, notes=(f"ICC profile that cannot be read ({error}): taken as sRGB",))
    return replace(facts, icc=found)


def _exif(facts: Facts, checked: bytes, body: bytes) -> Facts:
    return replace(facts, exif=body)


def _international(facts: Facts, checked: bytes, body: bytes) -> Facts:
    return replace(facts, xmp=body) if body.startswith(b"XML:com.adobe.xmp\0") else facts


def _text(facts: Facts, checked: bytes, body: bytes) -> Facts:
    """ImageMagick's EXIF block."""
    match = _RAW_EXIF.match(body)
    if match is None or facts.exif:
        return facts
    text = body[match.end() :]
    try:
        if text[:1] == b"\0":
            text = zlib.decompressobj().decompress(text[1:], MAX_METADATA)
        found = bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
    except (zlib.error, ValueError):
        return facts
    return replace(facts, exif=found)


def _by_numbers(facts: Facts, checked: bytes, body: bytes) -> Facts:
    if _sound(checked):
        facts.declared.setdefault(checked[:4], body)
    return facts


_METADATA = {
    b"IHDR": _header, b"tRNS": _transparency, b"cICP": _by_numbers, b"gAMA": _by_numbers,
    b"cHRM": _by_numbers, b"sRGB": _by_numbers, b"iCCP": _icc, b"eXIf": _exif,
    b"iTXt": _international, b"tEXt": _text, b"zTXt": _text,
}  # fmt: skip
