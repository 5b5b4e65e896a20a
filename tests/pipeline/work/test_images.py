"""Every kind of file gives the right pixels, and bad files the right status, never grey pixels."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.plan import Plan, Status
from pipeline.work import images
from pipeline.work.images import BadImage, Picture, decode
from tests.corpus import ARITHMETIC_JPEG, bomb_png, encode, jpeg, picture, pixels, png, webp
from tests.properties import examples

PLAN = Plan(model="m", quality=1, stride=16, codewords=256, inputs=1, inputs_digest="d", min_side=1)


def plan(**changes) -> Plan:
    return dataclasses.replace(PLAN, **changes)


def rgb(data: bytes, **changes) -> np.ndarray:
    """Decoded pixels as [H, W, 3]; checks the contract of Picture on the way."""
    found = decode(data, plan(**changes))
    assert found.pixels.dtype == np.uint8 and found.pixels.flags.c_contiguous
    assert found.pixels.shape[0] == 3
    return found.pixels.transpose(1, 2, 0)


def refused(data: bytes, **changes) -> Status:
    with pytest.raises(BadImage) as caught:
        decode(data, plan(**changes))
    assert 0 < len(str(caught.value)) <= 200 and "\n" not in str(caught.value)
    return caught.value.status


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def over_white(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(float)[..., None] / 255
    return np.rint(values * share + 255 * (1 - share)).astype(np.uint8)


# ---- every kind of JPEG


@pytest.mark.parametrize("size", [(64, 48), (37, 53), (1, 1), (500, 375)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 1},
        {"restart_marker_blocks": 2},
        {"keep_rgb": True, "subsampling": 0},
        {"mode": "L"},
    ],
    ids=str,
)
def test_jpeg_has_the_pixels_of_pillow(size, options):
    data = jpeg(*size, **options)
    assert np.array_equal(rgb(data), by_pillow(data))
    found = decode(data, PLAN)
    assert (found.width, found.height) == size


def test_a_jpeg_is_close_to_its_source():
    source = pixels(200, 120, seed=4)
    assert (
        np.abs(rgb(jpeg(200, 120, seed=4, quality=98, subsampling=0)) - source.astype(int)).max()
        < 12
    )


def test_arithmetic_coded_jpeg():
    y, x = np.mgrid[0:16, 0:16]
    source = np.stack([x * 16, y * 16, (x + y) * 8], axis=2)
    assert np.abs(rgb(ARITHMETIC_JPEG) - source.astype(int)).mean() < 8
    assert refused(ARITHMETIC_JPEG[:-20]) is Status.DECODE_ERROR


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_jpeg_is_taken_as_inverted_with_and_without_the_adobe_marker(adobe):
    ink = np.zeros((32, 32, 4), np.uint8)
    ink[:, :16], ink[:, 16:] = (0, 200, 100, 50), (255, 0, 30, 0)
    data = encode(Image.frombytes("CMYK", (32, 32), ink.tobytes()), "JPEG", quality=100)
    if not adobe:
        at = data.index(b"\xff\xee")
        data = data[:at] + data[at + 16 :]
    cmy, key = ink[..., :3].astype(float), ink[..., 3:].astype(float)
    expected = (255 - cmy) * (255 - key) / 255
    assert np.abs(rgb(data) - expected).max() <= 3


def test_ycck_jpeg():
    # Adobe stores inverted ink, and libjpeg's YCCK inverts again: luma and chroma are the ink's.
    colour = np.zeros((32, 32, 3), np.uint8)
    colour[:, :16], colour[:, 16:] = (200, 40, 90), (10, 250, 120)
    luma = np.array(Image.fromarray(255 - colour).convert("YCbCr"))
    channels = np.concatenate([255 - luma, np.zeros((32, 32, 1), np.uint8)], axis=2)
    cmyk = encode(Image.frombytes("CMYK", (32, 32), channels.tobytes()), "JPEG", quality=100)
    at = cmyk.index(b"Adobe") + 11
    data = cmyk[:at] + b"\x02" + cmyk[at + 1 :]  # transform 2: YCCK
    assert np.abs(rgb(data).astype(int) - colour).max() <= 4
    assert not np.array_equal(rgb(data), rgb(cmyk))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_an_error_at_every_length(mode, progressive):
    data = jpeg(90, 60, mode=mode, progressive=progressive)
    for length in range(0, len(data), 23):
        assert refused(data[:length]) is Status.DECODE_ERROR, length
    assert refused(data[:-1]) is Status.DECODE_ERROR


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_scan_that_stops_early_is_an_error_though_the_file_is_whole(mode):
    data = jpeg(200, 150, mode=mode)
    half = data[: len(data) // 2] + b"\xff\xd9"
    assert by_pillow(half).shape == (150, 200, 3)  # Pillow fills with grey
    assert refused(half) is Status.DECODE_ERROR


@pytest.mark.parametrize("extra", [b"\0" * 100, b"\x12\x34" * 50, b"\x37"])
def test_padding_before_the_end_marker_or_after_it_costs_nothing(extra):
    data = jpeg(64, 48)
    assert data.endswith(b"\xff\xd9")
    whole = rgb(data)
    assert np.array_equal(rgb(data[:-2] + extra + b"\xff\xd9"), whole)
    assert np.array_equal(rgb(data + extra), whole)


def test_header_oddities_that_cost_no_pixel():
    data = jpeg(64, 48)
    whole = rgb(data)
    table, scan, jfif = data.index(b"\xff\xdb"), data.index(b"\xff\xda"), data.index(b"JFIF\0")
    for odd in (
        data[:table] + b"\0\0\0" + data[table:],
        data[: scan + 12] + b"\0" + data[scan + 13 :],  # spectral selection 0-0
        data[: jfif + 5] + b"\x03" + data[jfif + 6 :],
    ):
        assert np.array_equal(rgb(odd), whole)
        assert refused(odd[: len(odd) // 2]) is Status.DECODE_ERROR
        assert refused(odd, max_pixels=1000) is Status.TOO_LARGE


def test_twelve_bit_and_lossless_jpeg_are_refused():
    data = jpeg(64, 48)
    frame = data.index(b"\xff\xc0")
    assert refused(data[: frame + 4] + b"\x0c" + data[frame + 5 :]) is Status.DECODE_ERROR
    assert refused(data[: frame + 1] + b"\xc3" + data[frame + 2 :]) is Status.DECODE_ERROR


# ---- the other formats


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000"])
def test_lossless_formats_give_the_source(format, mode):
    source = picture(70, 50, seed=3, mode=mode)
    if format == "GIF":
        source = source.convert("RGB").quantize(16)
    if format == "JPEG2000" and mode in ("1", "P"):
        pytest.skip("not written by Pillow")
    data = encode(source, format, **({"lossless": True} if format == "WEBP" else {}))
    assert np.array_equal(rgb(data), np.array(source.convert("RGB")))


def test_avif():
    data = encode(picture(70, 50, seed=3), "AVIF", quality=95)
    assert np.abs(rgb(data) - pixels(70, 50, seed=3).astype(int)).mean() < 6


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_over_white(format):
    source = picture(60, 40, seed=5, mode="RGBA")
    values = np.array(source)
    data = encode(source, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    assert np.array_equal(rgb(data), over_white(values[..., :3], values[..., 3]))


def test_grey_with_alpha():
    source = picture(60, 40, seed=6, mode="LA")
    values = np.array(source)
    grey = np.repeat(values[..., :1], 3, axis=2)
    assert np.array_equal(rgb(encode(source, "PNG")), over_white(grey, values[..., 1]))


def test_a_palette_with_transparency():
    source = picture(60, 40, seed=7).quantize(8)
    opaque, index = np.array(source.convert("RGB")), np.array(source)
    one = encode(source, "PNG", transparency=3)
    assert np.array_equal(rgb(one), np.where((index == 3)[..., None], 255, opaque))
    alphas = np.array([0, 30, 60, 90, 120, 150, 200, 255], np.uint8)
    many = encode(source, "PNG", transparency=alphas.tobytes())
    assert np.array_equal(rgb(many), over_white(opaque, alphas[index]))
    gif = encode(source, "GIF", transparency=2)
    assert np.array_equal(rgb(gif), np.where((index == 2)[..., None], 255, opaque))


def test_a_transparent_colour_of_rgb_and_grey():
    values = np.full((20, 20, 3), (10, 20, 30), np.uint8)
    values[5:9] = (1, 2, 3)
    expected = values.copy()
    expected[5:9] = 255
    data = encode(Image.fromarray(values), "PNG", transparency=(1, 2, 3))
    assert np.array_equal(rgb(data), expected)
    grey = np.ascontiguousarray(values[..., 0])
    data = encode(Image.fromarray(grey), "PNG", transparency=1)
    assert np.array_equal(rgb(data)[..., 1], np.where(grey == 1, 255, grey))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bit_grey_is_scaled(format):
    source = np.arange(65536, dtype=np.uint32).reshape(256, 256).astype(np.uint16)
    expected = np.rint(source / 257).astype(np.uint8)
    found = rgb(encode(Image.fromarray(source), format))
    assert np.array_equal(found, np.repeat(expected[..., None], 3, axis=2))


def test_sixteen_bit_grey_with_a_transparent_value():
    source = np.full((20, 20), 1000, np.uint16)
    source[3] = 2000
    data = encode(Image.fromarray(source), "PNG", transparency=2000)
    assert rgb(data)[3].min() == 255 and rgb(data)[4].max() == 4


def test_sixteen_bit_colour_keeps_its_high_byte():
    header = b"P6 4 2 65535\n"
    values = np.arange(0, 24 * 2700, 2700, dtype=">u2").reshape(2, 4, 3)
    assert np.abs(rgb(header + values.tobytes()) - values / 257).max() <= 1


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_samples_without_a_white_level_are_refused(dtype):
    data = encode(Image.fromarray(np.full((20, 20), 70000, dtype)), "TIFF")
    assert refused(data) is Status.DECODE_ERROR


def test_cmyk_tiff():
    source = picture(30, 20, mode="CMYK")
    assert np.array_equal(rgb(encode(source, "TIFF")), np.array(source.convert("RGB")))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(format):
    frames = [picture(40, 30, seed=i).quantize(16).convert("RGB") for i in range(3)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(rgb(data), np.array(frames[0]))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF"])
def test_a_truncated_file_is_an_error_or_whole(format):
    source = picture(90, 60)
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(source, format, **options)
    whole = rgb(data)
    for length in range(0, len(data), max(1, len(data) // 60)):
        try:
            cut = rgb(data[:length])
        except BadImage as error:
            assert error.status is Status.DECODE_ERROR
        else:
            assert np.array_equal(cut, whole) and length > len(data) - 64
    assert refused(data[: len(data) // 2]) is Status.DECODE_ERROR


# ---- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation(format, orientation):
    source = picture(70, 40, seed=2)
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(source, format, exif_orientation=orientation, **options)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(rgb(data), upright)
    if format in ("PNG", "WEBP", "TIFF"):
        again = Image.fromarray(upright)
        assert (again.size == (40, 70)) == (orientation >= 5)
    found = decode(data, PLAN)
    assert (found.width, found.height) == ((40, 70) if orientation >= 5 else (70, 40))


def test_orientation_six_turns_clockwise():
    source = np.zeros((16, 32, 3), np.uint8)
    source[:, :8] = (255, 0, 0)  # red on the left: on top, once upright
    data = encode(Image.fromarray(source), "JPEG", exif_orientation=6, quality=95)
    assert rgb(data).shape == (32, 16, 3)
    assert rgb(data)[2, :, 0].min() > 200 and rgb(data)[20, :, 0].max() < 60


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(orientation):
    data = jpeg(70, 40, exif_orientation=orientation)
    assert np.array_equal(rgb(data), by_pillow(data))


def test_damaged_exif_is_ignored():
    data = jpeg(70, 40, exif_orientation=6)
    at = data.index(b"Exif\0\0") + 6
    damaged = data[:at] + b"\xff" * 12 + data[at + 12 :]
    assert np.array_equal(rgb(damaged), by_pillow(damaged))


# ---- refusals


def test_refusals_by_size_come_from_the_header_alone():
    frame = jpeg(64, 48)
    at = frame.index(b"\xff\xc0") + 5
    bomb_jpeg = frame[:at] + b"\xff\xdc\xff\xdc" + frame[at + 4 :]
    for bomb in (bomb_jpeg, bomb_png(60_000, 60_000), bomb_png(100_001, 1000)):
        assert refused(bomb) is Status.TOO_LARGE
    assert refused(bomb_png(30_000, 30_000), max_pixels=10**9) is Status.DECODE_ERROR


@pytest.mark.parametrize("make", [jpeg, png, webp])
def test_limits_are_inclusive(make):
    data = make(40, 20)
    assert decode(data, plan(max_pixels=800, min_side=20)).width == 40
    assert refused(data, max_pixels=799) is Status.TOO_LARGE
    assert refused(data, min_side=21) is Status.TOO_SMALL


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"hello, this is text\n" * 50,
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"\0" * 1000,
    ],
)
def test_what_is_no_image_is_a_decode_error(data):
    assert refused(data) is Status.DECODE_ERROR


@pytest.mark.filterwarnings("ignore")  # pytest undoes the module's filter
@settings(max_examples=examples(300), deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM"]),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=12),
    st.booleans(),
)
def test_random_bytes_in_a_file_give_a_picture_or_a_status(format, changes, header):
    data = bytearray(encode(picture(40, 30), format, exif_orientation=None))
    for at, value in changes:
        data[at % (min(200, len(data)) if header else len(data))] = value
    try:
        found = decode(bytes(data), plan(max_pixels=1 << 20))
    except BadImage as error:
        assert error.status in (Status.DECODE_ERROR, Status.TOO_LARGE)
    else:
        assert found.pixels.size <= 3 << 20


def test_nothing_is_printed_or_warned():
    script = """
import sys
sys.path.insert(0, {root!r})
from tests.corpus import *
from tests.pipeline.work.test_images import plan
from pipeline.work.images import BadImage, decode
exif = jpeg(70, 40, exif_orientation=6)
at = exif.index(b"Exif")
tiff = encode(picture(70, 40), "TIFF", compression="tiff_lzw")
for data in [bomb_png(9500, 9500), exif[:at + 6] + b"II*" + exif[at + 9:],
             tiff[:5000], tiff[:-40], tiff[:-3],
             encode(picture(60, 40).quantize(8), "PNG", transparency=bytes(range(8)))]:
    try:
        decode(data, plan())
    except BadImage:
        pass
"""
    root = str(Path(images.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", script.format(root=root)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert "PIL" not in done.stderr and "Bomb" not in done.stderr and "EXIF" not in done.stderr


# ---- memory


@pytest.mark.parametrize(
    ("data", "least", "most"),
    [
        (jpeg(200, 100), 12, 18), (jpeg(200, 100, progressive=True), 12, 18),
        (jpeg(200, 100, mode="CMYK"), 17, 30), (png(200, 100), 16, 30), (webp(200, 100), 25, 30),
    ],
)  # fmt: skip
def test_the_memory_that_a_picture_takes_is_known_from_its_header(data, least, most):
    assert least <= images.working_bytes(data, PLAN.pictures) / (200 * 100) <= most


def test_a_picture_that_is_refused_takes_no_memory():
    assert images.working_bytes(bomb_png(60_000, 60_000), PLAN.pictures) == 0
    assert (
        images.working_bytes(b"no picture", PLAN.pictures)
        == images.working_bytes(b"", PLAN.pictures)
        == 0
    )
    assert images.working_bytes(jpeg(8, 8), plan(min_side=9).pictures) == 0
    enlarged = images.working_bytes(jpeg(40, 40), plan(resize=400).pictures)
    assert enlarged >= 12 * 400 * 400


# ---- resize and crop


@pytest.mark.parametrize(
    ("source", "side", "expected"),
    [
        ((500, 375), 256, (341, 256)),
        ((375, 500), 256, (256, 341)),
        ((40, 30), 256, (341, 256)),
        ((256, 300), 256, (256, 300)),
        ((64, 64), 32, (32, 32)),
    ],
)
def test_resize_gives_the_shorter_side(source, side, expected):
    found = decode(png(*source), plan(resize=side))
    assert found.pixels.shape == (3, expected[1], expected[0])
    assert found.pixels.flags.c_contiguous
    assert (found.width, found.height) == source


@pytest.mark.parametrize("size", [(500, 375), (60, 45)])
def test_resize_is_bicubic_with_antialiasing(size):
    source = picture(*size, seed=1)
    found = rgb(png(*size, seed=1), resize=128).astype(int)
    pillow = np.array(source.resize((171, 128), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(found - pillow).max() <= 3


def test_a_picture_of_the_right_size_is_not_resampled():
    assert np.array_equal(rgb(png(100, 64), resize=64), pixels(100, 64))


def test_resize_of_a_rotated_picture():
    data = encode(picture(80, 40), "PNG", exif_orientation=6)
    assert rgb(data, resize=20).shape == (40, 20, 3)


def test_a_thin_picture_that_would_explode_is_too_large():
    data = encode(picture(20_000, 2), "PNG")
    assert refused(data, resize=512, max_pixels=1_000_000) is Status.TOO_LARGE


def test_crop_takes_the_centre():
    source = pixels(51, 40)
    assert np.array_equal(rgb(png(51, 40), crop=20), source[10:30, 15:35])
    assert np.array_equal(rgb(png(51, 40), crop=40), source[:, 5:45])
    assert refused(png(51, 40), crop=41) is Status.TOO_SMALL


def test_resize_then_crop():
    resized = rgb(png(300, 200), resize=64)
    found = decode(png(300, 200), plan(resize=64, crop=64))
    assert found.pixels.shape == (3, 64, 64) and found.pixels.flags.c_contiguous
    assert np.array_equal(found.pixels.transpose(1, 2, 0), resized[:, 16:80])


def test_threads_give_the_same_pixels():
    files = [jpeg(200, 150, seed=i) for i in range(4)] + [png(120, 90, seed=i) for i in range(4)]
    cropped = plan(resize=64, crop=64)
    alone = [decode(data, cropped).pixels for data in files]

    def again(data: bytes) -> Picture:
        return decode(data, cropped)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, expected in zip(pool.map(again, files), alone, strict=True):
                assert np.array_equal(found.pixels, expected)
