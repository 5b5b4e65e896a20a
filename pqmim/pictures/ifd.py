"""Directories of tags as TIFF, EXIF and MPF have them, read no further than is needed.

Own code rather than Pillow's: a damaged directory is an empty answer here, not an exception or a
warning, since metadata must not cost a picture.  3 us for the orientation of a photograph.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

ORIENTATION = 0x0112
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")
MAX_PAGES = 10_000

Directory = dict[int, tuple[str, bytes]]  # tag -> (struct format of one number, bytes of the value)


def directories(data: bytes) -> Iterator[Directory]:
    """The chain of directories of a TIFF, an EXIF block or an MPF block.

    Ends where the chain ends, is damaged, or goes in a circle.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return
    big = struct.unpack(order + "H", data[2:4])[0] == 43
    head, entry, link = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    width, seen = struct.calcsize(order + entry) + struct.calcsize(order + link), set[int]()
    start = 8 if big else 4
    while len(seen) < MAX_PAGES:
        try:
            (at,) = struct.unpack_from(order + link, data, start)
            if at == 0 or at in seen:
                return
            seen.add(at)
            (count,) = struct.unpack_from(order + head, data, at)
            first = at + struct.calcsize(order + head)
            start = first + count * width
            if start > len(data):
                return
            yield {
                tag: (order + _NUMBERS.get(kind, "B"), value)
                for tag, kind, value in _entries(data, order, entry, link, first, count)
            }
        except struct.error:
            return


def _entries(
    data: bytes, order: str, entry: str, link: str, first: int, count: int
) -> Iterator[tuple[int, int, bytes]]:
    inline, head = struct.calcsize(order + link), struct.calcsize(order + entry)
    for at in range(first, first + count * (head + inline), head + inline):
        tag, kind, many = struct.unpack_from(order + entry, data, at)
        size, place = many * _SIZES.get(kind, 0), at + head
        if size > inline:
            (place,) = struct.unpack_from(order + link, data, place)
        yield tag, kind, data[place : place + size]


def numbers(directory: Directory, tag: int) -> tuple[int, ...]:
    """The numbers of a tag; none where it is not there."""
    form, value = directory.get(tag, ("<B", b""))
    count = len(value) // struct.calcsize(form)
    return struct.unpack(f"{form[0]}{count}{form[1]}", value[: count * struct.calcsize(form)])


def number(directory: Directory, tag: int, default: int = 0) -> int:
    """The first number of a tag."""
    return next(iter(numbers(directory, tag)), default)


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """EXIF orientation, 1..8, of an EXIF block, or else of the XMP; 1 where neither has one."""
    directory = next(directories(exif.removeprefix(b"Exif\0\0")), {})
    found = number(directory, ORIENTATION)
    if found == 0 and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found if found in range(1, 9) else 1
