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
from dataclasses import dataclass, replace

from pqmim.pictures.picture import BadPicture

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2  # colour types
MAX_METADATA = 16 << 20  # bytes of a decompressed profile; its largest known kind has 4 MB
_KNOWN = {  # chunks without which the pixels are the same; a damaged name may have been tRNS
    *(b"cHRM", b"gAMA", b"sBIT", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"bKGD", b"hIST", b"pHYs"),
    *(b"sPLT", b"tIME", b"fdAT", b"fcTL", b"acTL", b"oFFs", b"pCAL", b"sCAL", b"sTER", b"tRNS"),
}
_RAW_EXIF = re.compile(rb"Raw profile type (?:exif|APP1)\0")  # ImageMagick's, in hexadecimal


@dataclass(frozen=True)
class Facts:
    """A PNG without what Pillow need not see."""

    lean: bytes
    depth: int = 8  # bits a sample
    colour_type: int = RGB
    transparent: int | None = None  # the transparent level of a grey picture, of ``depth`` bits
    frames: int = 1
    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""
    notes: tuple[str, ...] = ()


def read(data: bytes) -> Facts:
    """Raises:
    BadPicture: damage where it decides pixels, or 16-bit colour with one transparent colour.
    """
    facts, parts, animated, before = Facts(b""), [SIGNATURE], 0, 0
    for kind, start, end in chunks(data):
        body = data[start + 8 : end - 4]
        if kind == b"IHDR" and len(body) == 13:
            facts = replace(facts, depth=body[8], colour_type=body[9])
        if kind == b"tRNS" and facts.colour_type in (GREY, RGB):
            facts = _transparency(facts, data[start + 4 : end], body)
        elif kind == b"acTL" and len(body) == 8:
            animated = struct.unpack(">I", body[:4])[0]
        elif kind == b"fcTL" and b"IDAT" not in {part[4:8] for part in parts}:
            before = 1
        elif kind in _METADATA:
            facts = _METADATA[kind](facts, body)
        elif kind not in _KNOWN and not kind[:1].isupper() and not _sound(data[start + 4 : end]):
            raise BadPicture(f"PNG: a damaged chunk of unknown kind {kind!r}")
        if kind[:1].isupper() or (kind == b"tRNS" and facts.transparent is None):
            parts.append(data[start:end])
    frames = max(1, animated + (1 - before if animated else 0))
    return replace(facts, lean=b"".join(parts), frames=frames)


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
    if not _sound(checked):
        raise BadPicture("PNG: the checksum of tRNS, which says what is transparent, is wrong")
    if facts.colour_type == GREY and len(body) >= 2:
        return replace(facts, transparent=struct.unpack(">H", body[:2])[0])
    if facts.depth == 16:
        raise BadPicture("PNG: 16-bit colour with one transparent colour is not converted")
    return facts


def _icc(facts: Facts, body: bytes) -> Facts:
    _, _, packed = body.partition(b"\0")
    try:
        found = zlib.decompressobj().decompress(packed[1:], MAX_METADATA)
    except zlib.error as error:
        return replace(facts, notes=(f"ICC profile that cannot be read ({error}): taken as sRGB",))
    return replace(facts, icc=found)


def _exif(facts: Facts, body: bytes) -> Facts:
    return replace(facts, exif=body)


def _international(facts: Facts, body: bytes) -> Facts:
    return replace(facts, xmp=body) if body.startswith(b"XML:com.adobe.xmp\0") else facts


def _text(facts: Facts, body: bytes) -> Facts:
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


_METADATA = {
    b"iCCP": _icc, b"eXIf": _exif, b"iTXt": _international, b"tEXt": _text, b"zTXt": _text,
}  # fmt: skip
