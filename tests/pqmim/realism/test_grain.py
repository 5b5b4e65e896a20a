"""Grain: how much, where, of what spectrum, and the same for the same codes."""

from __future__ import annotations

import numpy as np
import pytest

from pqmim.evaluation import texture
from pqmim.metrics import psnr
from pqmim.realism import fit, grain
from pqmim.realism.grain import BANDS, FEATURES, Shape
from tests.models import tiny_codec
from tests.photos import photograph

STRIDE = 16


def constant(*powers: float) -> Shape:
    """A shape of the same power everywhere, by band."""
    return Shape(tuple((float(np.log(p)),) + (0.0,) * (FEATURES - 1) for p in powers))


def codes_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    size = -(-height // STRIDE), -(-width // STRIDE), 4
    return np.random.default_rng(seed).integers(0, 16, size, dtype=np.uint8)


def grey(height: int, width: int) -> np.ndarray:
    return np.full((3, height, width), 128, np.uint8)


def test_equal_codes_give_equal_grain_and_others_another():
    pixels, codes = photograph()[0].numpy(), codes_of(*photograph().shape[2:])
    once, again = (grain.grained(pixels, codes, STRIDE) for _ in range(2))
    assert np.array_equal(once, again) and once.dtype == np.uint8 and once.shape == pixels.shape
    other = codes.copy()
    other[0, 0, 0] ^= 1
    assert not np.array_equal(once, grain.grained(pixels, other, STRIDE))
    assert np.array_equal(grain.grained(pixels, codes.astype(np.int64), STRIDE), once)
    assert np.array_equal(grain.grained(pixels, codes, STRIDE, 0.0), pixels)


def test_the_noise_itself_is_promised():
    """Numpy's raw bits: other values here are another picture for every file there is."""
    noise = grain.white(np.zeros((1, 1, 1), np.uint8), (2, 3))
    sums = np.round(noise * grain.SPREAD + grain.MIDDLE).astype(int)
    assert sums.tolist() == [[651, 591, 245], [336, 545, 242]]
    large = grain.white(codes_of(512, 512), (512, 511))
    assert abs(large.mean()) < 0.01 and large.var() == pytest.approx(1, abs=0.02)


def noise_of(missing: np.ndarray) -> np.ndarray:
    """Grain of a power [S,h,w]."""
    height, width = (STRIDE * side for side in missing.shape[1:])
    noise = grain.white(codes_of(height, width), (BANDS, height, width))
    return grain.equalized(noise, missing, STRIDE)


@pytest.mark.parametrize("powers", [(30.0, 30.0, 20.0), (100.0, 20.0, 5.0), (10.0, 10.0, 10.0)])
def test_every_band_gets_its_power(powers):
    missing = np.ones((BANDS, 32, 32)) * np.array(powers)[:, None, None]
    noise = noise_of(missing)
    found = grain.powers(noise, BANDS, STRIDE).mean((1, 2))
    assert np.abs(found / powers - 1).max() < 0.1
    assert abs(noise.mean()) < 0.1


def test_grain_is_where_power_is_missing():
    missing = np.zeros((BANDS, 8, 16))
    missing[:, :, 8:] = 25.0
    noise = noise_of(missing)
    assert np.abs(noise[:, :120]).max() == 0 and noise[:, 136:].std() > 3


def test_strength_costs_what_its_square_says_and_no_colour():
    pixels, codes = grey(256, 256), codes_of(256, 256)
    errors = []
    for strength in (0.5, 1.0):
        shown = grain.grained(pixels, codes, STRIDE, strength, constant(40.0, 20.0, 10.0))
        error = shown.astype(np.float64) - pixels
        assert np.ptp(error, axis=0).max() == 0 and np.abs(error.mean()) < 0.2
        errors.append(np.square(error).mean() - grain.ROUNDING)
    assert errors[1] / errors[0] == pytest.approx(4, rel=0.03)


def test_a_flat_picture_keeps_still_and_a_blurred_photograph_gets_its_texture_back():
    flat = grain.grained(grey(128, 128), np.zeros((8, 8, 4), np.uint8), STRIDE)
    assert psnr(flat, grey(128, 128)) > 40
    sharp = photograph()[0].numpy()[:, :256, :256]
    plane = sharp.astype(np.float32)
    blurred = np.stack([p - sum(grain.bands(p, 1)) for p in plane]).round().astype(np.uint8)
    shown = grain.grained(blurred, codes_of(256, 256), STRIDE, 1.0)
    before, after = texture.texture(sharp, blurred), texture.texture(sharp, shown)
    assert before.detail < after.detail < 1 and after.wavelets < before.wavelets


def test_codes_of_another_picture_are_refused():
    with pytest.raises(ValueError, match=r"codes \(7, 8, 4\) are not .* of 128 x 128 pixels"):
        grain.grained(grey(128, 128), np.zeros((7, 8, 4), np.uint8), STRIDE)
    with pytest.raises(ValueError, match="strength"):
        grain.grained(grey(16, 16), np.zeros((1, 1, 4), np.uint8), STRIDE, -0.1)


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (16, 500)])
def test_any_size(size):
    shown = grain.grained(grey(*size), codes_of(*size), STRIDE)
    assert shown.shape == (3, *size)


def test_a_shape_that_is_known_is_found_again():
    """Missing power drawn from a shape: the fit finds its weights, and explains what it can."""
    random = np.random.default_rng(0)
    known = random.normal(0, 1, (BANDS, FEATURES, 5000))
    known[:, 0] = 1
    truth = random.normal(0, 0.2, (BANDS, FEATURES)) + np.eye(1, FEATURES) * 3
    typical = np.einsum("sf,sfn->sn", truth, known)
    levels = typical + random.normal(0, 0.5, typical.shape)
    seen = [fit.Seen(known, np.exp(levels) - grain.ROUNDING)]
    shape = fit.fit(seen)
    assert np.abs(np.array(shape.weights) - truth).max() < 0.03
    share = 1 - 0.5**2 / levels.var(1)
    assert fit.explained(seen, shape) == pytest.approx(share, abs=0.03)
    with pytest.raises(ValueError, match="there is none"):
        fit.fit([])


def test_what_is_seen_of_a_photograph_is_its_error_by_band():
    codec, image = tiny_codec(), photograph()[:, :, :64, :80]
    codes = codec.encode(image)
    shown = codec.decode(codes, 64, 80)[0].numpy()
    seen = fit.seen(image[0].numpy(), shown, codes[0].numpy(), STRIDE)
    assert seen.features.shape == (BANDS, FEATURES, 20) and seen.missing.shape == (BANDS, 20)
    error = grain.luma(image[0].numpy()) - grain.luma(shown)
    assert seen.missing[0].mean() == pytest.approx(np.square(grain.bands(error, 1)[0]).mean())
