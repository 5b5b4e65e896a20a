"""Formats other than JPEG and TIFF: samples of every depth and layout become the right pixels, or a
refusal by name; what the file had beyond is named."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from pqmim.pictures.picture import BadPicture, Picture, Rules
from pqmim.pictures.read import read
from tests.corpus import jpeg
from tests.picture_files import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGB_ALPHA,
    bmp32,
    over_white,
    packed,
    png,
    ramp,
    shown,
)

H, W = 24, 37


def rgb(data: bytes, **rules) -> np.ndarray:
    return read(data, Rules(**rules)).pixels.transpose(1, 2, 0)


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.reshape(H, W, 1), 3, axis=2)


def close(found: Picture, expected: np.ndarray, levels: int) -> None:
    """Equal but for rounding of so many levels."""
    pixels = found.pixels.transpose(1, 2, 0).astype(int)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= levels


# ---- PNG


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_of_every_depth_with_and_without_a_transparent_level(bits):
    samples = ramp(H, W, 1, bits)
    plain = three(shown(samples, bits))
    found = read(png(samples, bits, GREY))
    close(found, plain, 0)
    assert found.dropped == (("bits:16",) if bits == 16 else ())
    level = int(samples[H // 2, W // 2, 0])
    found = read(png(samples, bits, GREY, [(b"tRNS", struct.pack(">H", level))]))
    close(found, np.where(samples == level, 255, plain), 0)
    assert "alpha" in found.dropped


@pytest.mark.parametrize("bits", [8, 16])
def test_colour_png_of_every_depth(bits):
    for colour, channels in ((RGB, 3), (RGB_ALPHA, 4), (GREY_ALPHA, 2)):
        samples = ramp(H, W, channels, bits)
        values = shown(samples, bits)
        base = values[..., :3] if channels > 2 else three(values[..., 0])
        expected = base if channels == 3 else over_white(base, values[..., -1])
        found = read(png(samples, bits, colour))
        close(found, expected, 0 if bits == 8 else 2)  # the high byte, not the nearest
        assert found.dropped == (("alpha",) if channels != 3 else ()) + (
            ("bits:16",) if bits == 16 else ()
        )


def test_a_transparent_colour_of_16_bits_is_refused_by_name():
    samples = ramp(H, W, 3, 16)
    with pytest.raises(BadPicture, match="16-bit colour with one transparent colour"):
        read(png(samples, 16, RGB, [(b"tRNS", struct.pack(">HHH", 1, 2, 3))]))
    ramp8 = ramp(H, W, 3, 8)
    colour = [int(v) for v in ramp8[3, 4]]
    found = read(png(ramp8, 8, RGB, [(b"tRNS", struct.pack(">HHH", *colour))]))
    close(found, np.where((ramp8 == colour).all(2, keepdims=True), 255, ramp8), 0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_png_of_every_depth(bits):
    rng = np.random.default_rng(bits)
    samples, count = ramp(H, W, 1, bits), 1 << bits
    colours = rng.integers(0, 256, (count, 3), dtype=np.uint8)
    alphas = rng.integers(0, 256, count, dtype=np.uint8)
    before = [(b"PLTE", colours.tobytes())]
    close(read(png(samples, bits, PALETTE, before)), colours[samples[..., 0]], 0)
    found = read(png(samples, bits, PALETTE, [*before, (b"tRNS", alphas.tobytes())]))
    close(found, over_white(colours[samples[..., 0]], alphas[samples[..., 0]]), 1)
    assert found.dropped == ("alpha",)


def test_an_opaque_alpha_loses_nothing():
    samples = ramp(H, W, 4, 8)
    samples[..., 3] = 255
    assert read(png(samples, 8, RGB_ALPHA)).dropped == ()


@pytest.mark.parametrize(
    "extra",
    [
        (b"zTXt", b"workflow\0\0" + zlib.compress(b'{"node": 1}' * 200_000)),
        (b"tEXt", b"parameters\0" + b"x" * 3_000_000),
        (b"iTXt", b"no zeros at all"),
        (b"iCCP", b"broken\0\0not deflated"),
        (b"eXIf", b"MM\0\x2a\xff\xff\xff\xff"),
        (b"pHYs", b"cut"),
        (b"gAMA", b""),
        (b"sPLT", b"\xff" * 9),
        (b"acTL", b"\0\0\0\x05"),
        (b"fcTL", b"short"),
        (b"tIME", b"\xff" * 7),
    ],
)
def test_metadata_do_not_cost_a_picture(extra):
    samples = ramp(H, W, 3, 8)
    for before, after in (([extra], []), ([], [extra]), ([extra] * 3, [])):
        found = read(png(samples, 8, RGB, before, after))
        close(found, samples, 0)
        assert (found.note is not None) == (extra[0] == b"iCCP")
    wrong = png(samples, 8, RGB, [extra]).replace(
        struct.pack(">I", zlib.crc32(b"".join(extra))), b"\1\2\3\4"
    )
    close(read(wrong), samples, 0)


def test_a_changed_byte_of_what_decides_pixels_is_an_error_in_png():
    samples = ramp(H, W, 1, 4)
    data = png(samples, 4, GREY, [(b"tRNS", struct.pack(">H", 5))])
    whole, refused, same = rgb(data), 0, 0
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        try:
            assert np.array_equal(rgb(bytes(damaged)), whole), at
            same += 1
        except BadPicture:
            refused += 1
    assert (refused, same) == (len(data) - same, same) and same <= 24  # IDAT's checksum, IEND


def test_apng_counts_its_frames():
    samples, control = ramp(H, W, 3, 8), struct.pack(">II", 3, 0)
    frame = struct.pack(">IIIIIHHBB", 0, W, H, 0, 0, 1, 10, 0, 0)
    animated = png(samples, 8, RGB, [(b"acTL", control), (b"fcTL", frame)], [(b"fcTL", frame)])
    assert read(animated).dropped == ("frames:3",)
    hidden = png(samples, 8, RGB, [(b"acTL", control)], [(b"fcTL", frame)])
    assert read(hidden).dropped == ("frames:4",)  # the first is no part of the animation
    close(read(hidden), samples, 0)


def test_orientation_in_png_by_exif_xmp_and_by_imagemagick():
    samples = ramp(H, W, 3, 8)
    exif = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='6'/>"
    raw = b"Raw profile type exif\0\0" + zlib.compress(
        f"\nexif\n      {len(exif)}\n{exif.hex()}\n".encode()
    )
    for extra in ((b"eXIf", exif), (b"iTXt", xmp), (b"zTXt", raw)):
        found = read(png(samples, 8, RGB, [extra]))
        close(found, np.rot90(samples, -1), 0)
        assert found.dropped == ("rotated",)


# ---- the others


def test_bmp_whose_alpha_nobody_filled_in_is_opaque():
    values = ramp(H, W, 4, 8).astype(np.uint8)
    found = read(bmp32(values))
    close(found, over_white(values[..., :3], values[..., 3]), 1)
    assert found.dropped == ("alpha",)
    values[..., 3] = 0
    found = read(bmp32(values))
    close(found, values[..., :3], 0)
    assert found.dropped == ()


@pytest.mark.parametrize("white", [1, 15, 255, 1023, 65535])
@pytest.mark.parametrize("kind", [5, 6])
def test_pnm_of_every_white(kind, white):
    samples = ramp(H, W, 1 if kind == 5 else 3, 16) * white // 65535
    form = "u1" if white < 256 else ">u2"
    found = read(b"P%d %d %d %d\n" % (kind, W, H, white) + samples.astype(form).tobytes())
    expected = (samples * 510 + white) // (2 * white)
    close(found, three(expected) if kind == 5 else expected, 1)
    assert found.dropped == ((f"bits:{white.bit_length()}",) if white > 255 else ())


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "AVIF"])
def test_the_other_frames_are_counted(format):
    frames = [Image.fromarray(ramp(H, W, 3, 8, i).astype(np.uint8)) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
    assert read(buffer.getvalue()).dropped == ("frames:3",)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_of_an_avif_by_its_own_boxes(turn):
    values, buffer = ramp(H, W, 3, 8).astype(np.uint8), io.BytesIO()
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, turn, 0)
    exif = b"MM\0\x2a" + struct.pack(">IH", 8, 1) + entry + b"\0" * 4
    image = Image.fromarray(values)
    image.save(buffer, "AVIF", quality=100, subsampling="4:4:4", exif=exif)
    assert turn == 1 or b"irot" in buffer.getvalue() or b"imir" in buffer.getvalue()
    found = read(buffer.getvalue())
    image.getexif()[0x0112] = turn
    close(found, np.asarray(ImageOps.exif_transpose(image)), 4)
    assert found.dropped == (("rotated",) if turn > 1 else ())


def test_nothing_of_pillow_is_switched_off():
    before = Image.MAX_IMAGE_PIXELS
    wide = png(np.zeros((100, 100, 1), np.int64), 1, GREY)
    read(wide), read(jpeg(40, 30))
    assert before == Image.MAX_IMAGE_PIXELS and before is not None
    huge = struct.pack(">IIBBBBB", 20_000, 20_000, 1, GREY, 0, 0, 0)
    rows = zlib.compress(b"\0" * 2501 * 20_000)
    parts = [chunk for chunk in (b"IHDR" + huge, b"IDAT" + rows, b"IEND")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts
    )
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    with pytest.raises(BadPicture) as caught:
        read(data)
    assert caught.value.status == "too_large"
    assert read(data, Rules(max_pixels=400_000_000)).width == 20_000


@pytest.mark.parametrize(
    "data",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", b"\0" * 99, b"P", b"BM", b"\x0a\x05"],
)
def test_no_other_plug_in_is_asked(data):
    with pytest.raises(BadPicture):
        read(data)


def test_rows_are_packed_as_they_are_read():
    assert packed(np.array([[[1], [0], [1]]]), 1) == [b"\xa0"]
    assert packed(np.array([[[1], [2], [3]]]), 4) == [b"\x12\x30"]
    assert packed(np.array([[[0x123], [0x456]]]), 12) == [b"\x12\x34\x56"]


def test_damage_after_the_first_frame_does_not_change_which_is_shown():
    frames = [Image.fromarray(ramp(H, W, 3, 8, i).astype(np.uint8)).quantize(16) for i in range(4)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    data = buffer.getvalue()
    whole, first = rgb(data), np.array(frames[0].convert("RGB"))
    assert np.array_equal(whole, first)
    for length in range(len(data) // 2, len(data), 97):
        assert np.array_equal(rgb(data[:length]), first)
