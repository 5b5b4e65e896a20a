"""What decoders say nothing of: JPEG and PNG that end early, or have another picture behind them.

Each is refused, noted or named."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pqmim.pictures.picture import BadPicture, Rules
from pqmim.pictures.read import probe, read
from tests.corpus import jpeg
from tests.picture_files import GREY, PALETTE, RGB, RGB_ALPHA, chunk, packed, png, ramp
from tests.pqmim.pictures.test_formats import H, W, rgb, three

EOI = b"\xff\xd9"
SAMPLES = ramp(H, W, 3, 8)
COLOURS = np.random.default_rng(1).integers(1, 256, (16, 3), dtype=np.uint8)


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noted(data: bytes, match: str) -> np.ndarray:
    """The pixels of a file that is read with a note, and refused by --strict-images."""
    found = read(data)
    assert found.note and re.search(match, found.note)
    with pytest.raises(BadPicture, match=match):
        read(data, Rules(strict=True))
    return found.pixels.transpose(1, 2, 0)


# ---- JPEG


def scans(data: bytes) -> list[int]:
    """Where each scan begins, with its tables."""
    starts = [match.start() for match in re.finditer(b"\xff\xda", data)]
    tables = [data.rfind(b"\xff\xc4", a, b) for a, b in zip(starts, starts[1:], strict=False)]
    return [t if t >= 0 else s for t, s in zip(tables, starts[1:], strict=True)]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_progressive_jpeg_that_ends_between_two_scans_is_refused(mode):
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    values = ramp(120, 160, channels, 8).astype(np.uint8)
    image = Image.fromarray(values[..., 0] if mode == "L" else values, mode)
    data = saved(image, "JPEG", progressive=True, subsampling=0, quality=90)
    whole = read(data)
    assert whole.note is None and len(scans(data)) > 4
    for end in scans(data):
        early = data[:end] + EOI
        with Image.open(io.BytesIO(early)) as other:
            other.load()  # without a word
        with pytest.raises(BadPicture, match="its scans leave out part of component"):
            read(early)


def one_scan_each(parts: list[bytes]) -> bytes:
    """A JPEG of three grey ones: a scan for each colour."""
    tables = parts[0][parts[0].index(b"\xff\xdb") : parts[0].index(b"\xff\xc0")]
    frame = struct.pack(">BHHB", 8, H, W, 3) + b"".join(bytes([n, 0x11, 0]) for n in b"RGB")
    huffman = parts[0][parts[0].index(b"\xff\xc4") : parts[0].index(b"\xff\xda")]
    out = b"\xff\xd8" + tables + b"\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + huffman
    for number, part in zip(b"RGB", parts, strict=True):
        scan = part[part.index(b"\xff\xda") + 10 : -2]
        out += b"\xff\xda" + struct.pack(">HBBB", 8, 1, number, 0) + b"\0\x3f\0" + scan
    return out + EOI


def test_a_jpeg_with_a_scan_for_each_colour_is_whole_with_all_of_them():
    parts = [saved(Image.fromarray(SAMPLES[..., c].astype(np.uint8)), "JPEG") for c in range(3)]
    data = one_scan_each(parts)
    expected = np.stack([rgb(part)[..., 0] for part in parts], axis=2)
    assert read(data).note is None and np.array_equal(rgb(data), expected)
    first, second = (match.start() for match in [*re.finditer(b"\xff\xda", data)][1:])
    for end, missing in ((first, "2, 3"), (second, "3")):
        with pytest.raises(BadPicture, match=f"part of component {missing} of 3"):
            read(data[:end] + EOI)


def test_what_stands_behind_the_end_is_named():
    data = jpeg(64, 48, exif_orientation=1)
    video = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\0" * 99
    assert read(data + jpeg(40, 30)).dropped == ("frames:2",)
    assert read(data + b"\0" * 99 + png(SAMPLES, 8, RGB)).dropped == ("frames:2",)
    assert read(data + video).dropped == ("video",)
    plain = jpeg(64, 48)
    assert read(plain + video).dropped == ("video",)
    assert read(plain + jpeg(40, 30) + b"\0").dropped == ("frames:2",)
    for length in (1, 2, 1 << 17, (1 << 17) + 1, 300_001):  # at any place, over any piece
        for more in range(4):
            between = b"\0" * (length + more)
            assert read(data + between + jpeg(40, 30)).dropped == ("frames:2",)
    assert read(data + jpeg(40, 30) + video).dropped == ("frames:2", "video")
    assert read(data + b"\0\0\0\x18ftypheic" + b"\0" * 99).dropped == ("frames:2",)
    assert read(data + b"SEFT" + b"\xff\xd9\xff" * 99).dropped == ()
    assert read(png(SAMPLES, 8, RGB) * 2).dropped == ("frames:2",)
    assert read(png(SAMPLES, 8, RGB) + b"text" * 99).dropped == ()
    one = b"P6 %d %d 255\n" % (W, H) + SAMPLES.astype(np.uint8).tobytes()
    assert read(one).dropped == read(one + b"\n").dropped == ()
    assert read(one * 2).dropped == ("frames:2",)


# ---- PNG


def with_body(rows: bytes, bits: int, colour: int, interlaced: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", W, H, bits, colour, 0, 0, interlaced)
    parts = [chunk(b"IHDR", head), chunk(b"PLTE", COLOURS.tobytes())]
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("bits", "colour", "channels"),
    [(1, GREY, 1), (4, GREY, 1), (16, GREY, 1), (8, RGB, 3), (16, RGB, 3), (4, PALETTE, 1),
     (8, RGB_ALPHA, 4)],
)  # fmt: skip
def test_png_rows_that_end_early_under_right_checksums_are_refused(bits, colour, channels):
    rows = [b"\0" + row for row in packed(ramp(H, W, channels, bits), bits)]
    whole = with_body(b"".join(rows), bits, colour)
    assert read(whole).note is None
    for count in range(H):
        with pytest.raises(BadPicture):
            read(with_body(b"".join(rows[:count]), bits, colour))
    black = [*rows[:-3], *(b"\0" * len(row) for row in rows[-3:])]
    assert read(with_body(b"".join(black), bits, colour)).height == H


def test_interlaced_rows_that_end_early_are_refused():
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2)]  # fmt: skip
    rows = [b"\0" + row for left, top, right, down in passes
            for row in packed(SAMPLES[top::down, left::right], 8)]  # fmt: skip
    assert np.array_equal(rgb(with_body(b"".join(rows), 8, RGB, 1)), SAMPLES)
    for count in range(len(rows)):
        with pytest.raises(BadPicture):
            read(with_body(b"".join(rows[:count]), 8, RGB, 1))


@pytest.mark.parametrize(
    ("before", "match"),
    [
        ([(b"ABCD", b"x")], "chunk b'ABCD' without which"),
        ([(b"CgBI", b"\x50\0\x20\2")], "iPhone"),
        ([(b"PLTE", b"abc")] * 2, "two chunks PLTE"),
        ([(b"tRNS", b"\0\1\0\2\0\3")] * 2, "two chunks tRNS"),
        ([(b"IHDR", struct.pack(">IIBBBBB", W, H // 2, 8, RGB, 0, 0, 0))], "two chunks IHDR"),
    ],
)
def test_chunks_of_a_png_that_cannot_be_shown_are_refused(before, match):
    with pytest.raises(BadPicture, match=match):
        read(png(SAMPLES, 8, RGB, before))


def test_a_png_by_palette_without_a_palette_is_refused():
    with pytest.raises(BadPicture, match="without a palette"):
        read(png(ramp(H, W, 1, 4), 4, PALETTE))
    assert probe(png(ramp(H, W, 1, 4), 4, PALETTE))[:2] == (W, H)


def test_only_the_bits_of_the_depth_say_what_is_transparent():
    samples = ramp(H, W, 1, 8)
    level = int(samples[3, 4, 0])
    found = rgb(png(samples, 8, GREY, [(b"tRNS", struct.pack(">H", 256 + level))]))
    assert np.array_equal(found, np.where(samples == level, 255, three(samples)))
