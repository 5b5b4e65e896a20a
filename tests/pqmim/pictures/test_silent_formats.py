"""What Pillow says nothing of in GIF, BMP, TIFF, JPEG 2000 and palettes; formats that are not read.

The right pixels, a refusal by name, or a note that --strict-images makes a refusal."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, ImageFile

from pqmim.pictures.picture import BadPicture
from pqmim.pictures.read import read
from tests.corpus import jpeg
from tests.picture_files import PALETTE, png, ramp, tiff, tiff_page
from tests.pqmim.pictures.test_formats import H, W, rgb, three
from tests.pqmim.pictures.test_silent import COLOURS, EOI, SAMPLES, noted, saved

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


def test_a_compression_that_is_not_read_is_named():
    tags, strips = tiff_page(SAMPLES, 8, 2)
    for number in (50001, 34712):  # WebP, JPEG 2000
        with pytest.raises(BadPicture, match=f"of compression {number} is not read"):
            read(tiff(({**tags, 259: (3, [number])}, strips)))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"])
def test_compressions_that_are_read(compression):
    data = saved(Image.fromarray(SAMPLES.astype(np.uint8)), "TIFF", compression=compression)
    assert np.array_equal(rgb(data), SAMPLES) and read(data).note is None


def test_a_process_in_which_pillow_fills_in_is_noted(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = saved(Image.fromarray(SAMPLES.astype(np.uint8)), "BMP")
    noted(data, "fills in what is missing")
    noted(data[:-500], "fills in what is missing")
    with pytest.raises(BadPicture):
        read(jpeg(64, 48)[:-200] + EOI)  # none of Pillow's business


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


def test_a_jp2_whose_palette_has_more_than_8_bits_is_refused():
    data = saved(Image.fromarray(SAMPLES[..., 0].astype(np.uint8)), "JPEG2000")
    at = data.index(b"jp2h") - 4
    length = int.from_bytes(data[at : at + 4], "big")
    for depth in (7, 11):
        entries = b"".join(bytes([0] * (depth > 7) + [n]) for n in range(256) for _ in range(3))
        palette = struct.pack(">HB", 256, 3) + bytes([depth] * 3) + entries
        mapping = b"".join(struct.pack(">HBB", 0, 1, n) for n in range(3))
        boxes = b"".join(struct.pack(">I", len(b) + 8) + k + b
                         for k, b in ((b"pclr", palette), (b"cmap", mapping)))  # fmt: skip
        # Where the colour space is grey Pillow looks for no palette: sRGB.
        head = data[at + 4 : at + length].replace(struct.pack(">I", 17), struct.pack(">I", 16))
        file = data[:at] + struct.pack(">I", length + len(boxes)) + head + boxes
        file += data[at + length :]
        if depth == 7:
            assert np.array_equal(rgb(file), three(SAMPLES[..., 0]))
        else:
            with pytest.raises(BadPicture, match="a palette of more than 8 bits"):
                read(file)


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
