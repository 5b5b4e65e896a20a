"""Fields of a tar's header blocks and PAX records: pure functions over bytes.

ustar, the tar of Unix V7, GNU (base-256 sizes, old sparse) and PAX.  A header counts only if its
checksum does, in either of the two ways in which tars have been summed; a size that no object can
have is a bad header.

A header block: name 0:100, size 124:136, checksum 148:156, type 156, magic 257:263, prefix 345:500.
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

BLOCK = 512
_MAX_SIZE_DIGITS = 19  # of a PAX size: below 2**63, what a seek can take
_PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=\n]+)=")
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"PK\x03\x04": "zip",
}


class Header(NamedTuple):
    """What a header block says of its member."""

    name: str
    size: int
    kind: bytes
    sparse_list: bool  # old GNU sparse: more of its block list follows


def parse_header(block: bytes) -> Header | None:
    """The fields of a header block; None if the checksum says that it is not one."""
    if len(block) < BLOCK:
        return None
    try:
        stored = _number(block[148:156])
        if not _checksum_is(stored, block[:148] + b" " * 8 + block[156:]):
            return None
        size = _number(block[124:136])
    except ValueError:
        return None
    if not 0 <= size < 1 << 63:
        return None
    kind = block[156:157]
    name = text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{text(block[345:500])}/{name}"
    if kind == b"\0" and name.endswith("/"):
        kind = b"5"  # a directory in the tar of Unix V7
    return Header(name, size, kind, sparse_list=block[482] != 0)


def _checksum_is(stored: int, block: bytes) -> bool:
    """Sum of the bytes, or of signed bytes as some old tars have it.

    The low half of adler32 is 1 + the sum, modulo 65521: ten times faster than ``sum``.
    """
    if zlib.adler32(block) & 0xFFFF == (stored + 1) % 65521:
        return True
    return stored == sum(byte - 256 if byte > 127 else byte for byte in block)


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256 where the first byte is 0x80 or 0xff.

    Raises:
        ValueError: neither.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] == 0xFF:
        return int.from_bytes(field, "big", signed=True)
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def text(field: bytes) -> str:
    """A name, up to its first NUL; bytes that are not UTF-8 become surrogate escapes."""
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def pax_records(data: bytes) -> dict[bytes, bytes] | None:
    """``length keyword=value\\n`` records; None if malformed or of a size that cannot be."""
    records = {}
    at = 0
    while at < len(data) and data[at]:
        match = _PAX_RECORD.match(data, at)
        if match is None:
            return None
        end = at + int(match[1])
        if end <= match.end() or data[end - 1 : end] != b"\n":
            return None
        records[match[2]] = data[match.end() : end - 1]
        at = end
    size = records.get(b"size", b"0")
    if not size.isdigit() or len(size) >= _MAX_SIZE_DIGITS:
        return None
    return records


def packed_format(start: bytes) -> str | None:
    """The compression that a file beginning like this has, or None."""
    return next((name for magic, name in _PACKED.items() if start.startswith(magic)), None)
