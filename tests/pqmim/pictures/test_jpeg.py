"""JPEG is decoded strictly whatever is odd about it, and metadata do not cost sound pixels.

The study at the end changes one byte of a file, everywhere, and counts what becomes of it.  JPEG
has no checksum: more than half of the damages to a scan decode to as many bits as there are,
silently, in every decoder.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pqmim.pictures import jpeg as long_way
from pqmim.pictures import segments
from pqmim.pictures.picture import BadPicture, Picture, Rules
from pqmim.pictures.read import _finished, read
from tests.corpus import jpeg, pixels
from tests.picture_files import P3, icc
from tests.properties import examples

EOI = b"\xff\xd9"
OWN_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WIDTH, HEIGHT = 160, 120
APPLICATIONS = range(0xE3, 0xF0)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def before_tables(data: bytes, extra: bytes) -> bytes:
    at = data.index(b"\xff\xdb")
    return data[:at] + extra + data[at:]


def changed(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


def part(number: int, of: int, body: bytes) -> bytes:
    return segment(0xE2, b"ICC_PROFILE\0" + bytes([number, of]) + body)


def exif(orientation: int) -> bytes:
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0MM\0\x2a" + struct.pack(">IH", 8, 1) + entry + b"\0" * 4


ODD = {  # what is odd -> (a file made from another, whether it leaves a note)
    "zeros between segments": (lambda d: before_tables(d, b"\0\0\0"), False),
    "text between segments": (lambda d: before_tables(d, b"between"), False),
    "stuffed bytes between segments": (lambda d: before_tables(d, b"\xff\0\xff\0"), False),
    "fill bytes": (lambda d: before_tables(d, b"\xff" * 9), False),
    "ICC part 0 of 1": (lambda d: before_tables(d, part(0, 1, b"x" * 100)), True),
    "ICC part 2 of 1": (lambda d: before_tables(d, part(2, 1, b"x" * 100)), True),
    "ICC part twice": (lambda d: before_tables(d, 2 * part(1, 1, OWN_SRGB)), False),
    "ICC part missing": (lambda d: before_tables(d, part(1, 2, OWN_SRGB)), True),
    "ICC that is none": (lambda d: before_tables(d, part(1, 1, b"x" * 500)), True),
    "ICC of no bytes": (lambda d: before_tables(d, part(1, 1, b"")), False),
    "EXIF that does not parse": (
        lambda d: before_tables(d, segment(0xE1, b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")), False),
    "EXIF of noise": (lambda d: before_tables(d, segment(0xE1, b"Exif\0\0" + b"?" * 99)), False),
    "MPF of noise": (lambda d: before_tables(d, segment(0xE2, b"MPF\0II*\0\xff\0\0\0")), False),
    "JFIF of revision 3": (lambda d: changed(d, d.index(b"JFIF\0") + 5, 3), False),
    "unknown Adobe transform": (
        lambda d: before_tables(d, segment(0xEE, b"Adobe\0\x64\0\0\0\0\x07")), False),
    "a comment of 64 kB": (lambda d: before_tables(d, segment(0xFE, b"c" * 65_000)), False),
    "applications": (
        lambda d: before_tables(d, b"".join(segment(m, b"?" * 40) for m in APPLICATIONS)), False),
    "restart markers in the header": (lambda d: before_tables(d, b"\xff\xd0\xff\xd7"), False),
    "several at once": (
        lambda d: before_tables(d, b"\0" + part(0, 1, b"x") + b"\0\0" + segment(0xFE, b"c")), None),
}  # fmt: skip


def same(found: Picture, whole: Picture) -> bool:
    return np.array_equal(found.pixels, whole.pixels)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_about_a_header_costs_no_pixel_and_hides_nothing(name, progressive):
    make, noted = ODD[name]
    data = jpeg(WIDTH, HEIGHT, progressive=progressive)
    whole, odd = read(data), make(data)
    found = read(odd)
    assert same(found, whole) and found.dropped == ()
    assert noted is None or (found.note is not None) == noted
    scan = odd.rindex(b"\xff\xda")
    for share in (0.1, 0.5, 0.9):
        early = odd[: scan + 14 + int(share * (len(odd) - scan - 16))] + EOI
        with Image.open(io.BytesIO(early)) as image:
            assert image.convert("RGB").size == (WIDTH, HEIGHT)  # Pillow fills in
        with pytest.raises(BadPicture, match="premature end|bad Huffman"):
            read(early)
    with pytest.raises(BadPicture):
        read(odd[:-2])
    with pytest.raises(BadPicture) as caught:
        read(odd, Rules(max_pixels=WIDTH * HEIGHT - 1))
    assert caught.value.status == "too_large"


def test_spectral_selection_of_a_sequential_scan_is_not_believed():
    data = jpeg(64, 48)
    scan = data.index(b"\xff\xda")
    odd = changed(data, scan + 12, 0)
    assert same(read(odd), read(data)) and read(odd).note is None
    with pytest.raises(BadPicture):
        read(odd[: len(odd) // 2] + EOI)


@pytest.mark.parametrize("extra", [b"\x12\x34" * 20, b"\x37" * 9, b"\xff\0" * 30])
def test_bytes_too_many_at_the_end_are_noted_or_refused(extra):
    data = jpeg(WIDTH, HEIGHT)
    odd = data[:-2] + extra + EOI
    for file in (odd, before_tables(odd, b"\0\0\0")):  # also where something else comes first
        found = read(file)
        assert same(found, read(data))
        assert found.note and "extraneous bytes" in found.note and "may be wrong" in found.note
        with pytest.raises(BadPicture, match="refused by --strict-images"):
            read(file, Rules(strict=True))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("count", [1, 5, 100, 5000])
def test_zeros_at_the_end_of_a_scan_are_padding(count, progressive):
    data = jpeg(WIDTH, HEIGHT, progressive=progressive)
    odd = data[:-2] + b"\0" * count + EOI
    found = read(odd, Rules(strict=True))
    assert same(found, read(data)) and found.note is None
    if progressive:
        scan = data.rindex(b"\xff\xc4")
        between = data[:scan] + b"\0" * count + data[scan:]
        assert same(read(between, Rules(strict=True)), read(data))


def test_bytes_too_many_between_scans_are_refused_for_they_hide_what_comes_after():
    data = jpeg(WIDTH, HEIGHT, progressive=True)
    scan = data.rindex(b"\xff\xc4")
    with pytest.raises(BadPicture, match="extraneous bytes before marker"):
        read(data[:scan] + b"\x12\x34" * 20 + data[scan:])


def test_bytes_too_many_before_a_restart_are_refused():
    image = Image.fromarray(pixels(WIDTH, HEIGHT))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", restart_marker_blocks=4)
    data = buffer.getvalue()
    restart = data.index(b"\xff\xd3")
    with pytest.raises(BadPicture):
        read(data[:restart] + b"\x12\x34" * 20 + data[restart:])
    assert read(data).note is None


# ---- second pictures


def index(entries: list[tuple[int, int, int]]) -> bytes:
    """An MPF segment: (type, size, offset) of each picture."""
    body = b"".join(struct.pack(">IIIHH", *entry, 0, 0) for entry in entries)
    tags = struct.pack(">HHI4s", 0xB000, 7, 4, b"0100")
    tags += struct.pack(">HHII", 0xB001, 4, 1, len(entries))
    tags += struct.pack(">HHII", 0xB002, 7, len(body), 8 + 2 + 36 + 4)
    return segment(0xE2, b"MPF\0MM\0\x2a" + struct.pack(">IH", 8, 3) + tags + b"\0" * 4 + body)


def with_second(kind: int, second: bytes) -> bytes:
    first = jpeg(WIDTH, HEIGHT)
    size = len(index([(0, 0, 0)] * 2))
    at = first.index(b"\xff\xdb") + 8  # of the byte order mark
    place = len(first) + size - at
    mpf = index([(0x30000, len(first) + size, 0), (kind, len(second), place)])
    return before_tables(first, mpf) + second


def test_a_second_picture_is_named():
    other = jpeg(40, 30, seed=1)
    assert read(with_second(0x20002, other)).dropped == ("frames:2",)  # stereo
    assert read(with_second(0x10001, other)).dropped == ()  # a smaller copy
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version='1.0'/>")
    gain = before_tables(other, xmp)
    assert read(with_second(0, gain)).dropped == ("gain_map",)
    assert read(before_tables(jpeg(40, 30), xmp)).dropped == ("gain_map",)
    iso = segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0\0\0\0\0")
    assert read(before_tables(jpeg(40, 30), iso)).dropped == ("gain_map",)


def test_pillows_multi_picture_files():
    pictures = [Image.fromarray(pixels(40, 30, seed=i)) for i in range(3)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "MPO", save_all=True, append_images=pictures[1:])
    assert read(buffer.getvalue()).dropped == ("frames:3",)


def test_orientation_is_recorded_and_damaged_exif_is_not_followed():
    data = jpeg(WIDTH, HEIGHT)
    for orientation in range(2, 9):
        found = read(before_tables(data, segment(0xE1, exif(orientation))))
        assert found.dropped == ("rotated",)
        assert (found.width, found.height) == (
            (HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT)
        )
    for orientation in (0, 1, 9, 65535):
        assert same(read(before_tables(data, segment(0xE1, exif(orientation)))), read(data))


# ---- one byte changed


def study(data: bytes, value: int, places: range) -> dict[str, int]:
    """What becomes of a file with one byte changed, at each place."""
    whole, counts = read(data).pixels, dict.fromkeys(("refused", "noted", "same", "silent"), 0)
    for at in places:
        damaged = bytearray(data)
        damaged[at] ^= value
        try:
            found = read(bytes(damaged), Rules(max_pixels=1 << 20))
        except BadPicture:
            counts["refused"] += 1
            continue
        if np.array_equal(found.pixels, whole):
            counts["same"] += 1
        else:
            counts["noted" if found.note else "silent"] += 1
    return counts


def test_one_changed_byte_in_metadata_never_costs_the_pixels():
    profile = part(1, 1, OWN_SRGB)
    data = jpeg(WIDTH, HEIGHT)
    comment = segment(0xFE, b"c" * 99)
    whole = before_tables(data, segment(0xE1, exif(1)) + profile + comment)
    for block in (profile, comment):
        start = whole.index(block) + 4  # after marker and length
        if block is profile:
            start += 14
        found = study(whole, 0x55, range(start, start + len(block) - 18))
        assert found["refused"] == 0
    found = study(before_tables(data, comment), 0x55, range(24, 24 + 99))
    assert found == {"refused": 0, "noted": 0, "same": 99, "silent": 0}


@pytest.mark.parametrize("progressive", [False, True])
def test_one_changed_byte_of_a_scan(progressive):
    noise = np.random.default_rng(1).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=90, progressive=progressive)
    data = buffer.getvalue()
    start = data.index(b"\xff\xda") + 14
    found = study(data, 0x55, range(start, len(data) - 2, 3))
    total = sum(found.values())
    assert found["noted"] > 0 and found["refused"] + found["noted"] > 0.3 * total, found
    strict = 0
    for at in range(start, len(data) - 2, 3):
        damaged = changed(data, at, data[at] ^ 0x55)
        try:
            strict += read(damaged, Rules(strict=True)).note is not None
        except BadPicture:
            continue
    assert strict == 0


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(sorted({*ODD} - {"fill bytes"})), min_size=1, max_size=4),
    st.binary(max_size=40).filter(lambda b: b"\xff" not in b),
)
def test_oddities_in_any_number_hide_no_early_end(names, between):
    data = jpeg(64, 48, seed=2)
    whole = read(data).pixels
    for name in names:
        data = ODD[name][0](data)
    data = before_tables(data, between)
    found = read(data)
    assert np.array_equal(found.pixels, whole)
    with pytest.raises(BadPicture):
        read(data[: len(data) - 200] + EOI)


def test_display_p3_in_two_parts():
    profile = icc(b"RGB ", P3)
    data = before_tables(jpeg(64, 48), part(2, 2, profile[200:]) + part(1, 2, profile[:200]))
    whole = before_tables(jpeg(64, 48), part(1, 1, profile))
    assert read(data).dropped == ("icc",) and same(read(data), read(whole))
    assert not same(read(data), read(jpeg(64, 48)))


def outcome(call: Callable[[], Picture]) -> tuple[object, ...]:
    """What a way of reading gives, or what it says."""
    try:
        found = call()
    except BadPicture as error:
        return str(error), error.status
    return found.pixels.tobytes(), found.pixels.shape, found.dropped, found.note


def test_the_short_way_of_plain_files_says_what_the_long_way_says() -> None:
    """Of files as they are, and with any byte of the header changed."""
    random, short = np.random.default_rng(0), 0
    for options in ({}, {"subsampling": 0}, {"optimize": True}, {"restart_marker_blocks": 2},
                    {"progressive": True}, {"exif": b"Exif\0\0"}, {"comment": b"x"}):  # fmt: skip
        buffer = io.BytesIO()
        Image.fromarray(pixels(40, 56)).save(buffer, "JPEG", **options)
        whole = buffer.getvalue()
        short += segments.plain(whole) is not None
        scan = segments.read_header(whole).scan
        for number in range(examples(600)):
            data = bytearray(whole)
            if number:
                data[random.integers(2, scan + 14)] = random.integers(0, 256)
            for rules in (Rules(), Rules(strict=True, max_pixels=2000)):
                one = outcome(lambda d=bytes(data), r=rules: read(d, r))
                other = outcome(lambda d=bytes(data), r=rules: _finished(long_way.decode(d, r)))
                assert one == other, (options, number)
    assert short == 5  # all but the progressive one and the one with EXIF
