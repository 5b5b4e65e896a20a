"""The single-image file ``.pqm``: a header, then the range coder's payload; four versions.

Little-endian.  The decoder is named by the hash of its weights, the stage schedule is data.

    version 1: 24 bytes                        version 2: 15 bytes or more, for files of 200
    offset  bytes  field                       offset  bytes  field
    0       2      magic, "PQ"                 0       2      magic, "PQ"
    2       1      version, 1, 3 or 4          2       1      version, 2
    3       8      first of the fingerprint    3       3      first of the fingerprint
    11      2      height in pixels            6       2      low half of the crc32 that 1 has
    13      2      width in pixels             8              numbers of 7 bits a byte, low first,
    15      1      sub-codes, minus 1                         128 = goes on: height, width,
    16      1      stages sent, minus 1                       rows, columns, sub-codes - 1,
    17      3      stage plan                                 stages - 1, stage plan
    20      4      crc32                               n      payload: bytes, most significant first
    24      4 n    payload: 32-bit words

Version 3 is version 1 with 6 bytes of plan, 27 in all, for more than 4 groups of sub-codes, and
version 4 with 12 bytes, 33 in all, for more than 8.  The plan is 6 bits a group, lowest first, 0
after the last group: ``byte & 31 | byte >> 7 << 5`` of a plan byte (``pqmim.coding.schedule``).
The checksum is over the header without it, the payload and the codes [h, w, sub-codes], row-major,
where codes that were not sent are 0: over the header, because a changed size need not change the
codes, and over the payload, because a range coder cannot see its end.

Version 2 codes an image of any size as a grid of rows x columns, resized to fill it, and what it
does not send is filled (``pqmim.files.single``).  16 bits let one in 65,536 damaged files pass.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from pqmim.coding import range_coder, schedule

MAGIC = b"PQ"
WHOLE, COMPACT, LONG, LONGER = 1, 2, 3, 4  # the versions
FIELDS = {
    WHOLE: struct.Struct("<2sB8sHHBB3s"),
    LONG: struct.Struct("<2sB8sHHBB6s"),
    LONGER: struct.Struct("<2sB8sHHBB12s"),
}
CHECKSUM = struct.Struct("<I")
HEADER_BYTES = FIELDS[WHOLE].size + CHECKSUM.size
MODEL_BYTES = {WHOLE: 8, COMPACT: 3, LONG: 8, LONGER: 8}
MAX_GROUPS = {WHOLE: 4, COMPACT: 16, LONG: 8, LONGER: 16}
COMPACT_FIXED = struct.Struct("<2sB3s")
COMPACT_CHECKSUM = struct.Struct("<H")
COMPACT_BYTES = COMPACT_FIXED.size + COMPACT_CHECKSUM.size  # before the numbers
MAX_SIDE = 2**16 - 1
MAX_PIXELS = 2**28  # of a file that can be written
READ_PIXELS = (
    2**26
)  # what a reader accepts unless told otherwise: a file of 18 bytes can ask for it
SLOT_BITS, HALVING_BIT = 6, 5
NUMBER_BYTES, PLAN_BYTES = 7, 14  # of a number in version 2, and of its plan, at most


class BitstreamError(ValueError):
    """A file that is damaged, foreign, or made with another model."""


@dataclass(frozen=True)
class Stream:
    """A parsed file."""

    model: bytes  # first bytes of the fingerprint
    height: int
    width: int
    quality: int
    plan: tuple[int, ...]  # one byte a group that is in use
    stages: int  # sent
    payload: bytes
    crc32: int = 0  # filled in by :func:`pack`; 16 bits of it in version 2
    version: int = WHOLE
    rows: int = 0  # of the grid of codes, in version 2
    columns: int = 0

    @property
    def planned(self) -> int:
        """Stages of the whole plan."""
        return sum(schedule.spatial_stages(byte) for byte in self.plan)

    def fields(self) -> bytes:
        """The header without its checksum.

        Raises:
            ValueError: something that the format has no room for.
        """
        if not (1 <= self.height <= MAX_SIDE and 1 <= self.width <= MAX_SIDE):
            raise ValueError(f"{self.height} x {self.width} pixels; sides go from 1 to {MAX_SIDE}")
        if not 1 <= self.quality <= 256 or not 1 <= self.stages <= 256:
            raise ValueError(f"quality {self.quality} or stages {self.stages} are not in 1..256")
        plan = pack_plan(self.plan, MAX_GROUPS[self.version])
        if self.version in FIELDS:
            return FIELDS[self.version].pack(
                MAGIC, self.version, self.model, self.height, self.width, self.quality - 1,
                self.stages - 1, plan,
            )  # fmt: skip
        numbers = (
            self.height, self.width, self.rows, self.columns, self.quality - 1, self.stages - 1,
            int.from_bytes(plan, "little"),
        )  # fmt: skip
        fixed = COMPACT_FIXED.pack(MAGIC, COMPACT, self.model)
        return fixed + b"".join(pack_number(n) for n in numbers)

    def checksum(self, codes: bytes) -> int:
        """What ``crc32`` must be if these are the codes."""
        whole = zlib.crc32(codes, zlib.crc32(self.payload, zlib.crc32(self.fields())))
        return whole & 0xFFFF if self.version == COMPACT else whole


def pack_number(value: int) -> bytes:
    """7 bits a byte, low first, 128 on all but the last."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def unpack_number(data: bytes, at: int, most: int = NUMBER_BYTES) -> tuple[int, int]:
    """The number that begins at an offset, and the offset behind it.

    Raises:
        BitstreamError: it is cut off, longer than it need be, or of more than ``most`` bytes.
    """
    value = 0
    for i in range(most):
        if at + i >= len(data):
            raise BitstreamError(f"cut off: {len(data)} bytes end within the header")
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            if i and not data[at + i]:
                break
            return value, at + i + 1
    raise BitstreamError(f"a number of the header is malformed: {data[at : at + most].hex()}")


def version_for(groups: int) -> int:
    """The shortest version that has room for a plan of so many groups and a whole checksum."""
    return next((v for v in (WHOLE, LONG) if groups <= MAX_GROUPS[v]), LONGER)


def pack_plan(plan: Sequence[int], groups: int = MAX_GROUPS[WHOLE]) -> bytes:
    """Plan bytes -> the bytes of a header with room for so many groups.

    Raises:
        ValueError: more groups than there is room for.
    """
    if not 1 <= len(plan) <= groups:
        raise ValueError(f"the file has room for {groups} groups of sub-codes, not {len(plan)}")
    slots = [byte & 31 | byte >> 7 << HALVING_BIT for byte in plan]
    value = sum(slot << SLOT_BITS * g for g, slot in enumerate(slots))
    return value.to_bytes(groups * SLOT_BITS // 8, "little")


def unpack_plan(data: bytes) -> tuple[int, ...]:
    """Undo :func:`pack_plan`.

    Raises:
        BitstreamError: an unknown stage count, an empty plan, or a gap in it.
    """
    value, groups = int.from_bytes(data, "little"), 8 * len(data) // SLOT_BITS
    slots = [value >> SLOT_BITS * g & 63 for g in range(groups)]
    used = slots.index(0) if 0 in slots else groups
    if used == 0 or any(slots[used:]):
        raise BitstreamError(f"stage plan {data.hex()} is empty or has a gap")
    plan = tuple(slot & 31 | slot >> HALVING_BIT << 7 for slot in slots[:used])
    try:
        for byte in plan:
            schedule.spatial_stages(byte)
    except schedule.ScheduleError as error:
        raise BitstreamError(f"stage plan {data.hex()}: {error}") from error
    return plan


def pack(stream: Stream, codes: bytes) -> bytes:
    """The file of a stream whose codes are these."""
    fields, checksum = stream.fields(), stream.checksum(codes)
    if stream.version in FIELDS:
        return fields + CHECKSUM.pack(checksum) + stream.payload
    first = COMPACT_FIXED.size
    return fields[:first] + COMPACT_CHECKSUM.pack(checksum) + fields[first:] + stream.payload


def parse(data: bytes) -> Stream:
    """Read a file as far as that goes without the model; no allocation depends on its content.

    Raises:
        BitstreamError: foreign, cut within the header, of another version, or self-contradictory.
    """
    start = data[: len(MAGIC)]
    if start != MAGIC[: len(start)]:
        raise BitstreamError(f"not a .pqm file: it starts with {data[:4]!r}")
    version = data[len(MAGIC)] if len(data) > len(MAGIC) else WHOLE
    if version not in MODEL_BYTES:
        raise BitstreamError(f"version {version} of the format, this program reads 1 to 4")
    least = FIELDS[version].size + CHECKSUM.size if version in FIELDS else COMPACT_BYTES
    if len(data) < least:
        raise BitstreamError(f"cut off: {len(data)} bytes, the header alone has {least}")
    stream = _parse_compact(data) if version == COMPACT else _parse_whole(data, version)
    if min(stream.height, stream.width) < 1:
        raise BitstreamError(f"an image of {stream.height} x {stream.width} pixels")
    if stream.stages > stream.planned:
        raise BitstreamError(
            f"{stream.stages} stages sent, but the plan {stream.plan} has {stream.planned}"
        )
    return stream


def _parse_whole(data: bytes, version: int) -> Stream:
    """Versions 1, 3 and 4; their length is checked."""
    fields = FIELDS[version]
    _, _, model, height, width, quality, stages, plan = fields.unpack_from(data)
    (crc32,) = CHECKSUM.unpack_from(data, fields.size)
    payload = data[fields.size + CHECKSUM.size :]
    return Stream(
        model, height, width, quality + 1, unpack_plan(plan), stages + 1, payload, crc32, version
    )


def _parse_compact(data: bytes) -> Stream:
    """Version 2."""
    _, _, model = COMPACT_FIXED.unpack_from(data)
    (check,) = COMPACT_CHECKSUM.unpack_from(data, COMPACT_FIXED.size)
    at, numbers = COMPACT_BYTES, []
    for most in (*[NUMBER_BYTES] * 6, PLAN_BYTES):
        number, at = unpack_number(data, at, most)
        numbers.append(number)
    height, width, rows, columns, quality, stages, plan = numbers
    if max(height, width) > MAX_SIDE or max(quality, stages) > 255 or plan >> 96:
        raise BitstreamError("a number of the header is larger than an encoder writes")
    if min(rows, columns) < 1:
        raise BitstreamError(f"a grid of {rows} x {columns} codes")
    return Stream(
        model, height, width, quality + 1, unpack_plan(plan.to_bytes(12, "little")), stages + 1,
        data[at:], check, COMPACT, rows, columns,
    )  # fmt: skip


def check(
    stream: Stream, fingerprint: str, grid: tuple[int, int], alphabet: tuple[int, int, int],
    max_pixels: int, *, whole: bool = True,
) -> None:  # fmt: skip
    """Refuse a stream that this model cannot decode, before anything of its size is allocated.

    Args:
        stream: from :func:`parse`.
        fingerprint: of the model at hand, hex.
        grid: rows and columns of codes of an image of this size, not resized.
        alphabet: sub-codes, codewords and group size of the model.
        max_pixels: the largest image that is wanted.
        whole: whether the payload must be long enough for its codes.

    Raises:
        BitstreamError: another model, too large, or a plan that does not fit the quality.
    """
    subcodes, codewords, group = alphabet
    ours = fingerprint[: 2 * len(stream.model)]
    if stream.model.hex() != ours:
        raise BitstreamError(
            f"made with the weights {stream.model.hex()}, those at hand are {ours}: it decodes "
            f"with Codec.load({stream.model.hex()!r})"
        )
    if stream.height * stream.width > max_pixels:
        raise BitstreamError(
            f"{stream.height} x {stream.width} pixels are more than max_pixels = {max_pixels}, and "
            "take memory for all of them: raise it (--max-pixels) for a file that you trust"
        )
    if stream.quality > subcodes:
        raise BitstreamError(f"quality {stream.quality}, but the model has {subcodes} sub-codes")
    groups = schedule.groups_of(stream.quality, group)
    if len(stream.plan) != groups:
        raise BitstreamError(
            f"the plan {stream.plan} has {len(stream.plan)} groups, quality {stream.quality} in "
            f"groups of {group} has {groups}"
        )
    if stream.version == COMPACT:
        if stream.rows > grid[0] or stream.columns > grid[1]:
            raise BitstreamError(
                f"a grid of {stream.rows} x {stream.columns} codes, an image of "
                f"{stream.height} x {stream.width} pixels has {grid[0]} x {grid[1]} at most"
            )
        grid = (stream.rows, stream.columns)
    codes = grid[0] * grid[1] * stream.quality if stream.stages == stream.planned else 0
    least = range_coder.least_bytes(codes, codewords)
    if whole and len(stream.payload) < least:
        raise BitstreamError(
            f"cut off: {len(stream.payload)} bytes of payload cannot hold {codes} codes"
        )
