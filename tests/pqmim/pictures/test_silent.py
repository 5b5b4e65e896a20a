"""What decoders say nothing of: pictures that end early, stand behind another, or have colours that
are not there.  Each is refused, noted or named."""

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
from tests.picture_files import (
    GREY,
    PALETTE,
    RGB,
    RGB_ALPHA,
    chunk,
    packed,
    png,
    ramp,
    tiff,
    tiff_page,
)
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


# ---- palettes


def gif(frames: list[tuple[int, int, np.ndarray]], palette: bytes, screen=(W, H)) -> bytes:
    """A GIF of frames at places; no LZW table grows, as it is cleared before."""
    bits = 4
    out = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80 | (len(palette) // 3).bit_length() - 2
                                  if palette else 0, 0, 0) + palette  # fmt: skip
    for left, top, indexes in frames:
        height, width = indexes.shape
        out += b"!\xfe\1c\0," + struct.pack("<HHHHB", left, top, width, height, 0)
        codes: list[int] = []
        for start in range(0, indexes.size, 12):
            codes += [1 << bits, *map(int, indexes.reshape(-1)[start : start + 12])]
        codes.append((1 << bits) + 1)
        packed_codes = sum(code << (bits + 1) * n for n, code in enumerate(codes))
        body = packed_codes.to_bytes((len(codes) * (bits + 1) + 7) // 8, "little")
        blocks = [body[n : n + 255] for n in range(0, len(body), 255)]
        out += bytes([bits]) + b"".join(bytes([len(b)]) + b for b in blocks) + b"\0"
    return out + b";"


def test_colours_beyond_a_palette_are_noted():
    indexes = ramp(H, W, 1, 4)
    for count in (1, 4, 15):
        palette = COLOURS[:count].tobytes()
        found = noted(png(indexes, 4, PALETTE, [(b"PLTE", palette)]), "beyond its palette")
        known = indexes[..., 0] < count
        assert np.array_equal(found[known], COLOURS[indexes[..., 0][known]])
    assert read(png(indexes, 4, PALETTE, [(b"PLTE", COLOURS.tobytes())])).note is None
    assert read(gif([(0, 0, indexes[..., 0])], COLOURS.tobytes())).note is None
    noted(gif([(0, 0, indexes[..., 0])], COLOURS[:8].tobytes()), "beyond its palette")
    image = Image.fromarray(indexes[..., 0].astype(np.uint8))
    image.putpalette(COLOURS.tobytes())
    data = bytearray(saved(image, "BMP"))
    assert read(bytes(data)).note is None
    used = int.from_bytes(data[46:50], "little") or 256
    data[46:50] = (used // 2 if used <= 16 else 8).to_bytes(4, "little")
    noted(bytes(data), "beyond its palette")


def test_a_gif_without_a_palette_is_noted():
    found = read(gif([(0, 0, ramp(H, W, 1, 4)[..., 0])], b""))
    assert found.note and "without a palette" in found.note


def test_canvas_that_the_first_frame_leaves_free_is_transparent():
    indexes = ramp(10, 12, 1, 4)[..., 0]
    expected = np.full((H, W, 3), 255)
    expected[5:15, 8:20] = COLOURS[indexes]
    found = read(gif([(8, 5, indexes), (0, 0, indexes)], COLOURS.tobytes()))
    assert np.array_equal(found.pixels.transpose(1, 2, 0), expected)
    assert found.dropped == ("alpha", "frames:2")
    small = SAMPLES[:10, :12].astype(np.uint8)
    body = saved(Image.fromarray(small), "WEBP", lossless=True)[12:]
    place = b"".join(n.to_bytes(3, "little") for n in (4, 2, 11, 9, 100)) + b"\0"
    frame = b"ANMF" + struct.pack("<I", len(place + body)) + place + body
    head = b"\2\0\0\0" + (W - 1).to_bytes(3, "little") + (H - 1).to_bytes(3, "little")
    parts = b"WEBPVP8X" + struct.pack("<I", 10) + head + b"ANIM" + struct.pack("<I", 6) + b"\0" * 6
    found = read(b"RIFF" + struct.pack("<I", len(parts + frame)) + parts + frame)
    expected = np.full((H, W, 3), 255)
    expected[4:14, 8:20] = small
    assert np.array_equal(found.pixels.transpose(1, 2, 0), expected)


# ---- TIFF


def test_strips_that_are_not_there_are_refused():
    tags, strips = tiff_page(SAMPLES, 8, 2)
    for change in ({278: (4, [H // 2])}, {257: (4, [2 * H])}):
        with pytest.raises(BadPicture, match="1 strips or tiles of 2"):
            read(tiff(({**tags, **change}, strips)))
    tags, strips = tiff_page(SAMPLES, 8, 2, planar=2, compress=True)
    with pytest.raises(BadPicture, match="2 strips or tiles of 3"):
        read(tiff((tags, strips[:2])))


def test_strips_with_fewer_bytes_than_their_rows_are_noted():
    tags, strips = tiff_page(SAMPLES, 8, 2)
    found = noted(tiff(({**tags, 279: (4, [99])}, strips)), "1 of 1 strips have fewer bytes")
    assert np.array_equal(found, SAMPLES)
    assert read(tiff((tags, strips))).note is None


@pytest.mark.parametrize("compression", ["group3", "group4"])
def test_fax_is_noted_for_its_decoder_goes_on_after_damage(compression):
    bits = ramp(H, W, 1, 1)
    image = Image.fromarray((bits[..., 0] * 255).astype(np.uint8)).convert("1")
    found = noted(saved(image, "TIFF", compression=compression), "fax")
    assert np.array_equal(found, three(bits * 255))


def test_tiffs_of_other_meaning_than_pillow_takes_them_for_are_refused():
    indexes = ramp(H, W, 1, 8)
    colours = np.random.default_rng(2).integers(0, 256, 768)
    page = tiff_page(indexes, 8, 3, tags={320: (3, [int(v) for v in colours])})
    with pytest.raises(BadPicture, match="colours have 8 bits"):
        read(tiff(page))
    page = tiff_page(indexes, 8, 3, tags={320: (3, [int(v) * 257 for v in colours])})
    assert np.array_equal(rgb(tiff(page)), colours.reshape(3, 256).T[indexes[..., 0]])
    with pytest.raises(BadPicture, match="fewer samples of colour, uncompressed"):
        read(tiff(tiff_page(SAMPLES, 8, 6, tags={530: (3, [2, 2])})))
    with pytest.raises(BadPicture, match="fewer samples of colour, uncompressed"):
        read(tiff(tiff_page(SAMPLES, 8, 6)))  # which 2, 2 is the default of
    values = Image.fromarray(SAMPLES.astype(np.uint8)).convert("YCbCr")
    whole = tiff(tiff_page(np.array(values).astype(int), 8, 6, tags={530: (3, [1, 1])}))
    assert np.abs(rgb(whole).astype(int) - SAMPLES).max() <= 3


# ---- the others


def test_jpeg_2000_of_colours_above_8_bits_is_refused_for_pillow_makes_white_black():
    data = saved(Image.fromarray(SAMPLES.astype(np.uint8)), "JPEG2000", no_jp2=True)
    assert np.array_equal(rgb(data), SAMPLES)
    at = data.index(b"\xff\x4f\xff\x51")
    deep = bytearray(data)
    for component in range(3):
        deep[at + 42 + 3 * component] = 11
    with pytest.raises(BadPicture, match="colours of 12 bits a sample is not converted"):
        read(bytes(deep))


def test_a_jp2_without_a_header_box_is_refused():
    with pytest.raises(BadPicture):
        read(b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 ")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"), (b"\0\0\0\x18ftypmp42", "a video"),
        (b"\xff\x0a\0\0", "JPEG XL"), (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"), (b"8BPS", "PSD"),
        (b"%PDF-1.4", "PDF"), (b"<!DOCTYPE html>", "a web page"), (b"\0\0\1\0\1\0", "ICO"),
        (b"<?xml version='1.0'?><svg/>", "SVG"), (b"P7\nWIDTH 2", "PAM"), (b"PF\n2 1\n", "PFM"),
    ],
)  # fmt: skip
def test_a_format_that_is_not_read_is_called_by_its_name(start, name):
    with pytest.raises(BadPicture, match=f"^{name} is not read"):
        read(start + b"\0" * 60)
