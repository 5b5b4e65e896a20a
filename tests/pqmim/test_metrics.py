"""Distortion measures."""

import numpy as np
import pytest

from pqmim.metrics import psnr


def test_psnr_is_the_textbook_formula_without_overflow():
    flat = np.full((3, 4, 5), 7, np.uint8)
    assert psnr(flat, flat) == 99.0
    assert psnr(flat, flat + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(np.zeros((3, 2, 2), np.uint8), np.full((3, 2, 2), 255, np.uint8)) == 0.0
