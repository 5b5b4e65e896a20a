"""Embedded ICC profiles: to sRGB by default, against the colorimetry written out in NumPy."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from pqmim.metrics import psnr
from pqmim.pictures.picture import BadPicture, Rules
from pqmim.pictures.read import read
from tests.picture_files import P3, SRGB, icc, over_white, ramp

DISPLAY_P3 = icc(b"RGB ", P3)
SOURCE = ramp(40, 60, 3, 8).astype(np.uint8)


def encode(values: np.ndarray, format: str, profile: bytes, **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(values) if values.ndim == 2 or values.shape[2] != 2 else None
    assert image is not None
    image.save(buffer, format, icc_profile=profile, **options)
    return buffer.getvalue()


def rgb(data: bytes, **rules) -> np.ndarray:
    return read(data, Rules(**rules)).pixels.transpose(1, 2, 0)


def in_srgb(values: np.ndarray, colorants, gamma: float) -> np.ndarray:
    """Linear light by gamma and matrix to XYZ of D50, and from there to sRGB."""
    linear = (values / 255) ** gamma @ np.linalg.solve(np.array(SRGB), np.array(colorants)).T
    linear = np.clip(linear, 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * curve).astype(int)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "AVIF"])
def test_display_p3_becomes_srgb(format):
    options = {"lossless": True} if format == "WEBP" else {}
    options = {"quality": 100, "subsampling": "4:4:4"} if format == "AVIF" else options
    data = encode(SOURCE, format, DISPLAY_P3, **options)
    found = read(data)
    expected = in_srgb(SOURCE, P3, 2.2)
    wrong = np.abs(found.pixels.transpose(1, 2, 0).astype(int) - expected)
    assert wrong.max() <= (3 if format != "AVIF" else 255) and wrong.mean() < 1.5
    assert found.dropped == ("icc",) and found.note is None
    ignored = read(data, Rules(icc="ignore"))
    assert ignored.dropped == ("icc",)
    assert format == "AVIF" or np.array_equal(ignored.pixels.transpose(1, 2, 0), SOURCE)
    with pytest.raises(BadPicture, match="ICC profile 'test' is not sRGB"):
        read(data, Rules(icc="refuse"))


def test_display_p3_ignored_is_far_off():
    saturated = np.zeros((32, 32, 3), np.uint8)
    saturated[..., 1], saturated[..., 0] = 200, np.arange(32) * 4
    data = encode(saturated, "PNG", DISPLAY_P3)
    assert psnr(rgb(data, icc="ignore"), rgb(data)) < 25
    assert psnr(rgb(data), in_srgb(saturated, P3, 2.2).astype(np.uint8)) > 45


def test_profiles_that_do_what_srgb_does_cost_nothing():
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for rules in (Rules(), Rules(icc="ignore"), Rules(icc="refuse")):
        for values in (SOURCE, SOURCE[..., 0]):
            found = read(encode(values, "PNG", own), rules)
            assert found.dropped == () and found.note is None
            expected = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
            assert np.array_equal(found.pixels.transpose(1, 2, 0), expected)


def test_a_grey_profile():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    dark = rgb(encode(grey, "PNG", icc(b"GRAY", gamma=1.0)))
    linear = np.arange(256) / 255
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    expected = np.rint(255 * curve).reshape(16, 16, 1)
    assert np.abs(dark - expected).max() <= 2
    found = read(encode(grey, "PNG", icc(b"GRAY", gamma=1.0)))
    assert found.dropped == ("icc",)


@pytest.mark.parametrize("profile", [b"x" * 400, DISPLAY_P3[:200], icc(b"GRAY"), b"\0"])
def test_a_profile_that_cannot_be_used_is_a_note(profile):
    data = encode(SOURCE, "PNG", profile)
    for rules in (Rules(), Rules(icc="refuse"), Rules(icc="ignore"), Rules(strict=True)):
        found = read(data, rules)
        assert np.array_equal(found.pixels.transpose(1, 2, 0), SOURCE)
        assert found.dropped == () and found.note and "taken as sRGB" in found.note


def test_colour_is_converted_before_it_is_laid_over_white():
    values = ramp(40, 60, 4, 8).astype(np.uint8)
    found = read(encode(values, "PNG", DISPLAY_P3))
    expected = over_white(in_srgb(values[..., :3], P3, 2.2), values[..., 3])
    assert np.abs(found.pixels.transpose(1, 2, 0).astype(int) - expected).max() <= 3
    assert found.dropped == ("icc", "alpha")


def test_a_palette_with_a_profile():
    image = Image.fromarray(SOURCE).quantize(32)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=DISPLAY_P3)
    expected = in_srgb(np.array(image.convert("RGB")), P3, 2.2)
    assert np.abs(rgb(buffer.getvalue()).astype(int) - expected).max() <= 3


def test_cmyk_goes_through_its_own_profile():
    pyvips = pytest.importorskip("pyvips")
    profile = bytes(pyvips.Operation.call("profile_load", "cmyk"))
    values = ramp(40, 60, 4, 8).astype(np.uint8)
    image = Image.fromarray(values, "CMYK")
    direct = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )  # fmt: skip
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", icc_profile=profile)
    found = read(buffer.getvalue())
    assert found.dropped == ("icc",)
    assert np.array_equal(found.pixels.transpose(1, 2, 0), np.array(direct))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=100, subsampling=0, icc_profile=profile)
    found = read(buffer.getvalue())
    assert found.dropped == ("icc",)
    assert np.abs(found.pixels.transpose(1, 2, 0).astype(int) - np.array(direct)).mean() < 3


def test_threads_share_a_transform():
    data = [encode(np.roll(SOURCE, i, 0), "PNG", DISPLAY_P3) for i in range(8)]
    alone = [rgb(one) for one in data]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(map(np.array_equal, pool.map(rgb, data), alone))
