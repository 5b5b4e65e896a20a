"""Distortion measures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAME = 99.0  # dB, stands for no difference at all


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """PSNR in dB of two uint8 arrays of one shape, over all their values."""
    error = float(np.square(a.astype(np.float64) - b).mean())
    return SAME if error == 0 else float(10 * np.log10(255.0**2 / error))
