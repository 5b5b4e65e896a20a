"""Colour that is declared in other places than a profile of RGB: numbers of PNG, AVIF and BMP,
profiles of grey JPEG, JPEG 2000 and BMP, an EXIF word.  Converted, or named."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from pqmim.pictures import declared
from pqmim.pictures.picture import BadPicture, Rules
from pqmim.pictures.read import read
from tests.corpus import jpeg
from tests.picture_files import GREY, P3, RGB, SRGB, chunk, icc, png, ramp, shown
from tests.pqmim.pictures.test_colour import DISPLAY_P3, in_srgb
from tests.pqmim.pictures.test_jpeg import before_tables, segment

SAMPLES = ramp(24, 37, 3, 8)
P3_POINTS = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
SRGB_POINTS = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


def saved(values: np.ndarray, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, format, **options)
    return buffer.getvalue()


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def srgb_curve(linear: np.ndarray) -> np.ndarray:
    linear = np.clip(linear, 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * curve)


def p3_to_srgb(values: np.ndarray) -> np.ndarray:
    """Of Display P3 itself, whose curve is sRGB's."""
    share = values / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return srgb_curve(linear @ np.linalg.solve(np.array(SRGB), np.array(P3)).T)


def far(data: bytes, expected: np.ndarray) -> int:
    """Levels of 255 at most between a file's pixels and others."""
    return int(np.abs(read(data).pixels.transpose(1, 2, 0) - expected).max())


@pytest.mark.parametrize(
    ("chunks", "expected", "dropped"),
    [
        ({b"gAMA": number(45455)}, SAMPLES, ()),
        ({b"gAMA": number(45455), b"cHRM": SRGB_POINTS}, SAMPLES, ()),
        ({b"gAMA": number(100_000)}, srgb_curve(SAMPLES / 255), ("icc",)),
        ({b"gAMA": number(55_556)}, in_srgb(SAMPLES, SRGB, 1.8), ("icc",)),
        ({b"cHRM": P3_POINTS}, p3_to_srgb(SAMPLES), ("icc",)),
        ({b"gAMA": number(100_000), b"sRGB": b"\0"}, SAMPLES, ()),
        ({b"cICP": bytes([1, 13, 0, 1])}, SAMPLES, ()),
        ({b"cICP": bytes([12, 13, 0, 1])}, p3_to_srgb(SAMPLES), ("icc",)),
        ({b"cICP": bytes([12, 13, 0, 1]), b"sRGB": b"\0"}, p3_to_srgb(SAMPLES), ("icc",)),
        ({b"cICP": bytes([1, 8, 0, 1])}, srgb_curve(SAMPLES / 255), ("icc",)),
        ({b"cICP": bytes([9, 16, 0, 1])}, SAMPLES, ("colour:pq",)),
        ({b"cICP": bytes([9, 18, 0, 1])}, SAMPLES, ("colour:hlg",)),
        ({b"cICP": bytes([1, 13, 0, 0])}, SAMPLES, ("colour:cicp-yuv-or-narrow",)),
        ({b"cICP": bytes([77, 13, 0, 1])}, SAMPLES, ("colour:cicp-77-13",)),
        ({b"cHRM": b"\0" * 32}, SAMPLES, ("colour:chrm",)),
        ({b"gAMA": b"", b"cHRM": b"short", b"cICP": b"12"}, SAMPLES, ()),
        ({b"gAMA": number(0)}, SAMPLES, ()),
    ],
)
def test_colour_by_the_numbers_of_a_png(chunks, expected, dropped):
    data = png(SAMPLES, 8, RGB, [*chunks.items()])
    assert far(data, expected) <= 2
    assert read(data).dropped == dropped and read(data).note is None
    plain = png(SAMPLES, 8, RGB)
    damaged = plain[:33] + b"".join(chunk(*c)[:-1] + b"?" for c in chunks.items()) + plain[33:]
    assert far(damaged, SAMPLES) == 0 and read(damaged).dropped == ()


def test_numbers_follow_the_rules_of_profiles():
    data = png(SAMPLES, 8, RGB, [(b"cICP", bytes([12, 13, 0, 1]))])
    assert read(data, Rules(icc="ignore")).dropped == ("icc",)
    assert np.array_equal(read(data, Rules(icc="ignore")).pixels.transpose(1, 2, 0), SAMPLES)
    with pytest.raises(BadPicture, match="'declared space' is not sRGB"):
        read(data, Rules(icc="refuse"))


def test_linear_grey_of_16_bits():
    samples = ramp(24, 37, 1, 16)
    data = png(samples, 16, GREY, [(b"gAMA", number(100_000))])
    expected = srgb_curve(shown(samples, 16) / 255).repeat(3, axis=2)
    assert far(data, expected) <= 2
    assert read(data).dropped == ("icc", "bits:16")


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
def test_a_grey_jpeg_goes_through_its_grey_profile(gamma):
    data = saved(SAMPLES[..., 0], "JPEG", quality=95, icc_profile=icc(b"GRAY", gamma=gamma))
    plain = read(data, Rules(icc="ignore")).pixels.transpose(1, 2, 0)
    assert far(data, srgb_curve((plain / 255) ** gamma)) <= 2
    assert read(data).dropped == ("icc",) and read(data).note is None
    with pytest.raises(BadPicture, match="is not sRGB"):
        read(data, Rules(icc="refuse"))


def test_a_grey_jpeg_with_a_profile_of_rgb():
    data = saved(SAMPLES[..., 0], "JPEG", quality=95, icc_profile=DISPLAY_P3)
    plain = read(data, Rules(icc="ignore")).pixels.transpose(1, 2, 0)
    assert far(data, in_srgb(plain, P3, 2.2)) <= 2 and read(data).dropped == ("icc",)


def test_the_numbers_of_an_avif():
    data = saved(SAMPLES, "AVIF", quality=100, subsampling="4:4:4")
    at = data.index(b"colrnclx") + 8
    plain = read(data).pixels.transpose(1, 2, 0)
    assert read(data).dropped == ()

    def with_points(primaries: int, transfer: int) -> bytes:
        return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]

    assert far(with_points(12, 13), p3_to_srgb(plain)) <= 2
    assert read(with_points(12, 13)).dropped == ("icc",)
    assert far(with_points(1, 1), plain) == far(with_points(2, 2), plain) == 0
    assert read(with_points(9, 16)).dropped == ("colour:pq",)


def test_the_profile_of_a_jp2():
    data = saved(SAMPLES, "JPEG2000")
    at, header = data.index(b"colr") - 4, data.index(b"jp2h") - 4
    old = int.from_bytes(data[at : at + 4], "big")
    length = int.from_bytes(data[header : header + 4], "big")

    def with_box(body: bytes) -> bytes:
        box = number(len(body) + 8) + b"colr" + body
        return (data[:header] + number(length - old + len(box)) + data[header + 4 : at] + box
                + data[at + old :])  # fmt: skip

    assert far(with_box(b"\2\0\0" + DISPLAY_P3), in_srgb(SAMPLES, P3, 2.2)) <= 3
    assert read(with_box(b"\2\0\0" + DISPLAY_P3)).dropped == ("icc",)
    assert far(with_box(b"\1\0\0" + number(16)), SAMPLES) == 0
    with pytest.raises(BadPicture, match="colour space 14 is not converted"):
        read(with_box(b"\1\0\0" + number(14)))
    values = np.array(Image.fromarray(SAMPLES.astype(np.uint8)).convert("YCbCr"))
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG2000", mct=0)
    data = buffer.getvalue()
    at, header = data.index(b"colr") - 4, data.index(b"jp2h") - 4
    assert far(with_box(b"\1\0\0" + number(18)), SAMPLES) <= 3


def bmp(header: bytes, behind: bytes = b"") -> bytes:
    rows = [row[:, ::-1].astype(np.uint8).tobytes() for row in SAMPLES[::-1]]
    body = b"".join(row + b"\0" * (-len(row) % 4) for row in rows)
    height, width = SAMPLES.shape[:2]
    size = 40 + len(header)
    head = struct.pack("<IiiHHIIiiII", size, width, height, 1, 24, 0, len(body), 0, 0, 0, 0)
    start = 14 + size
    return (b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + header + body
            + behind)  # fmt: skip


def test_the_profile_of_a_bmp():
    height, width = SAMPLES.shape[:2]
    place = 124 + height * (width * 3 + (-width * 3) % 4)
    tail = struct.pack("<IIII", 4, place, len(DISPLAY_P3), 0)
    own = bmp(b"\0" * 16 + b"DEBM" + b"\0" * 48 + tail, DISPLAY_P3)
    assert far(own, in_srgb(SAMPLES, P3, 2.2)) <= 3 and read(own).dropped == ("icc",)
    assert far(bmp(b"\0" * 16 + b"BGRs" + b"\0" * 64), SAMPLES) == 0
    calibrated = bmp(b"\0" * 16 + b"\0" * 40 + struct.pack("<3I", *[2 << 16] * 3))
    assert read(calibrated).dropped == ("colour:calibrated",)
    assert read(bmp(b"\0" * 68)).dropped == ()  # calibrated, by nothing


def test_adobe_rgb_by_an_exif_word_is_named():
    exif = (
        b"Exif\0\0MM\0\x2a"
        + struct.pack(">IH", 8, 1)
        + struct.pack(">HHI4sI", 1, 2, 4, b"R03\0", 0)
    )
    data = before_tables(jpeg(64, 48), segment(0xE1, exif))
    assert read(data).dropped == ("colour:adobe-rgb",)
    assert np.array_equal(read(data).pixels, read(jpeg(64, 48)).pixels)


def test_the_matrices_of_declared_primaries():
    for number_, matrix in ((1, SRGB), (12, P3)):
        points = declared.PRIMARIES[number_]
        assert np.abs(declared._matrix(points) - np.array(matrix)).max() < 3e-4
    for points in declared.PRIMARIES.values():
        white = declared._matrix(points) @ np.ones(3)
        assert np.abs(white - declared.D50).max() < 1e-9
        profile = declared.profile(points, 2.2)
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        assert ImageCms.getProfileDescription(opened).strip() == "declared space"
