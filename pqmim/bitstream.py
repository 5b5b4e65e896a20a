"""The single-image file ``.pqm``: 24 bytes of header, then the range coder's payload.

Little-endian.  The decoder is named by the hash of its weights, the stage schedule is data.

    offset  bytes  field
    0       2      magic, "PQ"
    2       1      version of the format, 1
    3       8      first 8 bytes of the model's fingerprint
    11      2      height in pixels, 1..65535
    13      2      width in pixels
    15      1      quality: sub-codes per position, minus 1
    16      1      stages sent, minus 1
    17      3      stage plan: 6 bits a group of sub-codes, lowest first; 0 after the last group
    20      4      crc32 over bytes 0..19, the payload, and the codes [h, w, quality], row-major
    24      4 n    payload: 32-bit words of the range coder, to the end of the file

Six bits of the plan are ``byte & 31 | byte >> 7 << 5`` of a plan byte (``pqmim.schedule``).  Codes
that were not sent count as 0 in the checksum.  The checksum covers the header because a changed
size need not change the codes, and the payload because a range coder cannot see its end.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from pqmim import entropy, schedule

MAGIC, VERSION = b"PQ", 1
FIELDS = struct.Struct("<2sB8sHHBB3s")
CHECKSUM = struct.Struct("<I")
HEADER_BYTES = FIELDS.size + CHECKSUM.size
MODEL_BYTES = 8
MAX_SIDE = 2**16 - 1
MAX_GROUPS = 4
MAX_PIXELS = 2**28  # what a reader accepts unless told otherwise
SLOT_BITS, HALVING_BIT = 6, 5


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
    crc32: int = 0  # filled in by :func:`pack`

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
        return FIELDS.pack(
            MAGIC, VERSION, self.model, self.height, self.width, self.quality - 1, self.stages - 1,
            pack_plan(self.plan),
        )  # fmt: skip

    def checksum(self, codes: bytes) -> int:
        """What ``crc32`` must be if these are the codes."""
        return zlib.crc32(codes, zlib.crc32(self.payload, zlib.crc32(self.fields())))


def pack_plan(plan: Sequence[int]) -> bytes:
    """Plan bytes -> the three bytes of the header.

    Raises:
        ValueError: more groups than there is room for.
    """
    if not 1 <= len(plan) <= MAX_GROUPS:
        raise ValueError(f"the file has room for {MAX_GROUPS} groups of sub-codes, not {len(plan)}")
    slots = [byte & 31 | byte >> 7 << HALVING_BIT for byte in plan]
    return sum(slot << SLOT_BITS * g for g, slot in enumerate(slots)).to_bytes(3, "little")


def unpack_plan(data: bytes) -> tuple[int, ...]:
    """Undo :func:`pack_plan`.

    Raises:
        BitstreamError: an unknown stage count, an empty plan, or a gap in it.
    """
    value = int.from_bytes(data, "little")
    slots = [value >> SLOT_BITS * g & 63 for g in range(MAX_GROUPS)]
    used = slots.index(0) if 0 in slots else MAX_GROUPS
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
    return stream.fields() + CHECKSUM.pack(stream.checksum(codes)) + stream.payload


def parse(data: bytes) -> Stream:
    """Read a file as far as that goes without the model; no allocation depends on its content.

    Raises:
        BitstreamError: foreign, cut within the header, of another version, or self-contradictory.
    """
    start = data[: len(MAGIC)]
    if start != MAGIC[: len(start)]:
        raise BitstreamError(f"not a .pqm file: it starts with {data[:4]!r}")
    if len(data) < HEADER_BYTES:
        raise BitstreamError(f"cut off: {len(data)} bytes, the header alone has {HEADER_BYTES}")
    _, version, model, height, width, quality, stages, plan = FIELDS.unpack_from(data)
    if version != VERSION:
        raise BitstreamError(f"version {version} of the format, this program reads {VERSION}")
    if min(height, width) < 1:
        raise BitstreamError(f"an image of {height} x {width} pixels")
    (crc32,) = CHECKSUM.unpack_from(data, FIELDS.size)
    stream = Stream(
        model, height, width, quality + 1, unpack_plan(plan), stages + 1, data[HEADER_BYTES:], crc32
    )
    if stream.stages > stream.planned:
        raise BitstreamError(
            f"{stream.stages} stages sent, but the plan {stream.plan} has {stream.planned}"
        )
    return stream


def check(
    stream: Stream, fingerprint: str, grid: tuple[int, int], alphabet: tuple[int, int, int],
    max_pixels: int, *, whole: bool = True,
) -> None:  # fmt: skip
    """Refuse a stream that this model cannot decode, before anything of its size is allocated.

    Args:
        stream: from :func:`parse`.
        fingerprint: of the model at hand, hex.
        grid: rows and columns of codes of an image of this size.
        alphabet: sub-codes, codewords and group size of the model.
        max_pixels: the largest image that is wanted.
        whole: whether the payload must be long enough for its codes.

    Raises:
        BitstreamError: another model, too large, or a plan that does not fit the quality.
    """
    subcodes, codewords, group = alphabet
    if stream.model.hex() != fingerprint[: 2 * MODEL_BYTES]:
        raise BitstreamError(
            f"made with model {stream.model.hex()}, the one at hand is "
            f"{fingerprint[: 2 * MODEL_BYTES]}"
        )
    if stream.height * stream.width > max_pixels:
        raise BitstreamError(
            f"{stream.height} x {stream.width} pixels are more than max_pixels = {max_pixels}"
        )
    if stream.quality > subcodes:
        raise BitstreamError(f"quality {stream.quality}, but the model has {subcodes} sub-codes")
    groups = schedule.groups_of(stream.quality, group)
    if len(stream.plan) != groups:
        raise BitstreamError(
            f"the plan {stream.plan} has {len(stream.plan)} groups, quality {stream.quality} in "
            f"groups of {group} has {groups}"
        )
    codes = grid[0] * grid[1] * stream.quality if stream.stages == stream.planned else 0
    least = entropy.least_bytes(codes, codewords)
    if whole and len(stream.payload) < least:
        raise BitstreamError(
            f"cut off: {len(stream.payload)} bytes of payload cannot hold {codes} codes"
        )
