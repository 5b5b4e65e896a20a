"""Distortion measures."""

import numpy as np
import pytest
import torch

from pqmim.metrics import SCALE_WEIGHTS, decibels, ms_ssim, psnr


def test_psnr_is_the_textbook_formula_without_overflow():
    flat = np.full((3, 4, 5), 7, np.uint8)
    assert psnr(flat, flat) == 99.0
    assert psnr(flat, flat + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(np.zeros((3, 2, 2), np.uint8), np.full((3, 2, 2), 255, np.uint8)) == 0.0


def pattern(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image of stripes and a disturbed copy, from integer arithmetic alone."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([(x * 3 + y) % 256, (x * y // 7) % 256, (y * 5) % 256])
    noise = (x * 1103515245 + y * 12345 + (x * y) * 2654435) // 97 % 61 - 30
    return image.to(torch.uint8), (image + noise).clamp(0, 255).to(torch.uint8)


# pytorch_msssim 1.0.0, ms_ssim(a, b, data_range=255), on these very images
@pytest.mark.parametrize(("height", "width", "published"), [
    (161, 161, 0.937347), (200, 333, 0.936091), (257, 181, 0.938124),
])  # fmt: skip
def test_ms_ssim_is_that_of_the_field(height, width, published):
    assert ms_ssim(*pattern(height, width)) == pytest.approx(published, abs=1e-5)


def test_ms_ssim_of_flat_images_is_the_luminance_term_of_the_last_scale():
    a, b = (torch.full((3, 176, 176), level, dtype=torch.uint8) for level in (100, 120))
    c1 = (0.01 * 255) ** 2
    luminance = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert ms_ssim(a, b) == pytest.approx(luminance ** SCALE_WEIGHTS[-1], abs=1e-4)
    assert ms_ssim(a, a) == pytest.approx(1, abs=1e-6)


def test_ms_ssim_does_not_exist_below_161_pixels_a_side():
    with pytest.raises(ValueError, match="needs 161 pixels a side"):
        ms_ssim(*pattern(160, 500))
    with pytest.raises(ValueError, match="uint8"):
        ms_ssim(torch.zeros(3, 200, 200), torch.zeros(3, 200, 200))


def test_decibels_stay_finite():
    assert decibels(0.9) == pytest.approx(10) and decibels(0.99) == pytest.approx(20)
    assert decibels(1.0) == 99.0
