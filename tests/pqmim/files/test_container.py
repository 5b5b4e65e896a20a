"""The .pqm container: golden bytes, and an error that says what is wrong for everything else."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqmim.coding import schedule
from pqmim.files import container
from pqmim.files.container import BitstreamError, Stream

STREAM = Stream(bytes(range(8)), 300, 70, 6, (4, 130), 5, b"\x01\x02\x03\x04")
CODES = b"codes"
PLAN_BYTES = [*range(1, 17), *range(129, 138)]


def test_the_header_is_these_24_bytes():
    data = container.pack(STREAM, CODES)
    assert data[:20].hex() == "5051" + "01" + "0001020304050607" + "2c01" + "4600" + "05" + "04" + (
        "84" + "08" + "00"  # 4 | (2 + 32) << 6
    )
    assert len(data) == 24 + 4 == container.HEADER_BYTES + len(STREAM.payload)


def test_a_stream_comes_back_with_its_checksum():
    parsed = container.parse(container.pack(STREAM, CODES))
    assert dataclasses.replace(parsed, crc32=0) == STREAM
    assert parsed.checksum(CODES) == parsed.crc32
    assert parsed.checksum(b"other") != parsed.crc32
    assert dataclasses.replace(parsed, height=301).checksum(CODES) != parsed.crc32
    assert dataclasses.replace(parsed, payload=bytes(8)).checksum(CODES) != parsed.crc32


@given(st.lists(st.sampled_from(PLAN_BYTES), min_size=1, max_size=4))
def test_every_plan_comes_back(plan):
    assert container.unpack_plan(container.pack_plan(plan)) == tuple(plan)


@given(st.binary(min_size=3, max_size=3))
def test_three_bytes_are_one_plan_or_an_error(data):
    try:
        plan = container.unpack_plan(data)
    except BitstreamError:
        return
    assert container.pack_plan(plan) == data
    assert all(schedule.spatial_stages(byte) for byte in plan)


def changed(offset: int, value: bytes) -> bytes:
    data = bytearray(container.pack(STREAM, CODES))
    data[offset : offset + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut off: 0 bytes"),
        (b"P", "cut off: 1 bytes"),
        (container.pack(STREAM, CODES)[:23], "cut off: 23 bytes"),
        (b"\xff\xd8\xff\xe0", "not a .pqm file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not a .pqm file"),
        (changed(2, b"\x09"), "version 9 of the format, this program reads 1 to 4"),
        (changed(11, b"\0\0"), "0 x 70 pixels"),
        (changed(13, b"\0\0"), "300 x 0 pixels"),
        (changed(16, b"\x06"), "7 stages sent, but the plan .* has 6"),
        (changed(17, b"\0\0\0"), "empty or has a gap"),
        (changed(17, b"\x04\0\x04"), "empty or has a gap"),
        (changed(17, b"\x1f\0\0"), "plan byte 31"),
    ],
)
def test_what_is_wrong_is_said(data, says):
    with pytest.raises(BitstreamError, match=says):
        container.parse(data)


@pytest.mark.parametrize(("groups", "version"), [(4, 1), (5, 3), (8, 3), (9, 4), (16, 4)])
def test_the_shortest_header_that_has_room_for_the_plan(groups, version):
    plan = tuple([130, 16] * 8)[:groups]
    assert container.version_for(groups) == version
    compact = replace(STREAM, version=container.COMPACT, rows=3, columns=2, model=STREAM.model[:3])
    for stream in (replace(STREAM, version=version), compact):
        stream = replace(stream, plan=plan, quality=8 * groups)
        read = container.parse(container.pack(stream, CODES))
        assert read == replace(stream, crc32=read.crc32)
    with pytest.raises(ValueError, match="room for 16 groups of sub-codes, not 17"):
        container.pack(replace(compact, plan=(1,) * 17), CODES)


FINGERPRINT = bytes(range(32)).hex()


def check(stream: Stream, **changes: object) -> None:
    arguments = {
        "fingerprint": FINGERPRINT, "grid": (19, 5), "alphabet": (8, 256, 4), "max_pixels": 21_000,
        **changes,
    }  # fmt: skip
    container.check(stream, **arguments)


def test_a_stream_of_this_model_passes():
    check(STREAM)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"fingerprint": "ff" * 32},
            "weights 0001020304050607, those at hand are ffff",
        ),
        ({"max_pixels": 20_999}, "300 x 70 pixels are more than max_pixels = 20999"),
        ({"alphabet": (5, 256, 4)}, "quality 6, but the model has 5"),
        ({"alphabet": (8, 256, 2)}, "has 2 groups, quality 6 in groups of 2 has 3"),
        ({"alphabet": (8, 256, 8)}, "has 2 groups, quality 6 in groups of 8 has 1"),
    ],
)
def test_a_stream_that_the_model_cannot_decode_is_refused(changes, says):
    with pytest.raises(BitstreamError, match=says):
        check(STREAM, **changes)


def test_a_payload_too_short_for_its_size_is_refused_before_anything_is_allocated():
    huge = dataclasses.replace(STREAM, height=65535, width=65535, stages=6)
    with pytest.raises(BitstreamError, match="cut off: 4 bytes of payload cannot hold"):
        check(huge, grid=(4096, 4096), max_pixels=2**32)
    check(huge, grid=(4096, 4096), max_pixels=2**32, whole=False)


@pytest.mark.parametrize(
    "change",
    [{"height": 0}, {"width": 65536}, {"quality": 257}, {"stages": 0}, {"plan": (1,) * 5},
     {"plan": ()}],
)  # fmt: skip
def test_what_the_format_has_no_room_for_is_refused(change):
    with pytest.raises(ValueError, match="sides|quality|groups"):
        container.pack(dataclasses.replace(STREAM, **change), CODES)


SMALL = dataclasses.replace(
    STREAM, model=bytes(range(3)), version=container.COMPACT, rows=7, columns=200, plan=(2, 1),
    stages=3, payload=b"\x01\x02\x03",
)  # fmt: skip
LONG = dataclasses.replace(STREAM, version=container.LONG, plan=(2, 1, 1, 1, 1, 1, 1, 130))


def test_a_compact_header_is_these_bytes():
    data = container.pack(SMALL, CODES)
    check = SMALL.checksum(CODES).to_bytes(2, "little").hex()
    numbers = "ac02" + "46" + "07" + "c801" + "05" + "02" + "42"  # 2 | 1 << 6
    assert data.hex() == "5051" + "02" + "000102" + check + numbers + "010203"


def test_a_long_plan_has_27_bytes_before_the_payload():
    data = container.pack(LONG, CODES)
    assert data[:3] == b"PQ\x03" and len(data) == 27 + len(LONG.payload)
    assert container.version_for(4) == 1 and container.version_for(5) == 3


@pytest.mark.parametrize("stream", [SMALL, LONG])
def test_the_other_versions_come_back_with_their_checksum(stream):
    parsed = container.parse(container.pack(stream, CODES))
    assert dataclasses.replace(parsed, crc32=0) == stream
    assert parsed.checksum(CODES) == parsed.crc32 != parsed.checksum(b"other")
    for change in ({"height": 299}, {"stages": 2}, {"payload": b"\x01\x02\x03\x00"}):
        assert dataclasses.replace(parsed, **change).checksum(CODES) != parsed.crc32


@given(st.integers(0, 2**49 - 1), st.binary(max_size=3))
def test_numbers_come_back_in_their_shortest_form(value, rest):
    data = container.pack_number(value)
    assert container.unpack_number(data + rest, 0) == (value, len(data))
    assert len(data) == max(1, -(-value.bit_length() // 7))


def compact(**changes: bytes) -> bytes:
    """A compact file with the bytes from an offset replaced: ``at8=...``."""
    data = bytearray(container.pack(SMALL, CODES))
    for name, value in changes.items():
        data[int(name[2:]) : int(name[2:]) + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (compact()[:7], "cut off: 7 bytes"),
        (compact()[:12], "end within the header"),
        (compact(at8=b"\x80\x00"), "malformed"),
        (compact(at8=b"\xff" * 9), "malformed"),
        (compact(at10=b"\x00"), "300 x 0 pixels"),
        (compact(at11=b"\x00"), "a grid of 0 x 200"),
        (compact(at8=b"\xff\xff\x04"), "larger than|malformed|a grid"),
        (compact(at15=b"\x03"), "4 stages sent, but the plan .* has 3"),
        (compact(at16=b"\x00"), "empty or has a gap"),
    ],
)
def test_what_is_wrong_with_a_compact_file_is_said(data, says):
    with pytest.raises(BitstreamError, match=says):
        container.parse(data)


@given(st.binary(max_size=30))
def test_compact_noise_is_a_stream_or_an_error(noise):
    try:
        stream = container.parse(b"PQ\x02" + noise)
    except BitstreamError:
        return
    head = len(noise) + 3 - len(stream.payload)
    assert len(stream.fields()) + 2 == head, "one header has one form"


def test_a_grid_larger_than_the_image_is_refused():
    small = dataclasses.replace(SMALL, model=bytes(3), rows=5, columns=5, payload=bytes(20))
    alike = {"fingerprint": "00" * 32, "max_pixels": 10**6}
    check(small, grid=(5, 5), **alike)
    with pytest.raises(BitstreamError, match="a grid of 5 x 5 codes, .* has 4 x 5 at most"):
        check(small, grid=(4, 5), **alike)
    with pytest.raises(BitstreamError, match="cut off: 0 bytes of payload cannot hold"):
        check(dataclasses.replace(small, rows=300, columns=300, payload=b""), grid=(300, 300),
              **alike)  # fmt: skip
