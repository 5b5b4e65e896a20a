"""Distortion measures on 8-bit RGB.

MS-SSIM is the five-scale form of Wang, Simoncelli and Bovik (2003) as the learned-compression field
computes it (the ``pytorch_msssim`` package): an 11 x 11 Gaussian window of sigma 1.5 without
padding, per channel, 2 x 2 means between the scales, the mean of the channels.  Sums are float32,
so the last digits depend on the machine: 1e-5 is what may be compared.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SAME = 99.0  # dB, stands for no difference at all
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # finest first; Wang et al., table 1
WINDOW, SIGMA = 11, 1.5  # pixels
LEAST_SIDE = (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1  # 161: a window fits the last scale
GREY = 128.0
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """PSNR in dB of two uint8 arrays of one shape, over all their values."""
    error = float(np.square(a.astype(np.float64) - b).mean())
    return SAME if error == 0 else float(10 * np.log10(255.0**2 / error))


def ms_ssim(a: Tensor, b: Tensor) -> float:
    """MS-SSIM of two uint8 images [3,H,W], 1 for equal ones.

    Raises:
        ValueError: other shapes, or a side below 161 pixels, where it is not defined.
    """
    if a.shape != b.shape or a.ndim != 3 or a.dtype != torch.uint8 or b.dtype != torch.uint8:
        raise ValueError(f"two uint8 images [3,H,W], not {tuple(a.shape)} and {tuple(b.shape)}")
    if min(a.shape[1:]) < LEAST_SIDE:
        raise ValueError(f"MS-SSIM needs {LEAST_SIDE} pixels a side, not {tuple(a.shape[1:])}")
    x, y = a[None].float(), b[None].float()
    scales = []
    for scale in range(len(SCALE_WEIGHTS)):
        if scale:  # an odd side is padded by zeros, as pytorch_msssim does
            odd = [side % 2 for side in x.shape[2:]]
            x, y = (F.avg_pool2d(v, 2, padding=odd) for v in (x, y))
        similarity, contrast = _ssim(x, y)
        scales.append(similarity if scale == len(SCALE_WEIGHTS) - 1 else contrast)
    weights = torch.tensor(SCALE_WEIGHTS)[:, None]
    return float((torch.stack(scales).clamp_min(0) ** weights).prod(0).mean())


def decibels(similarity: float) -> float:
    """MS-SSIM as -10 log10(1 - x), in which curves are drawn and compared."""
    return min(SAME, -10 * math.log10(max(1 - similarity, 1e-12)))


def _ssim(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure part of [1,C,H,W], a mean a channel."""
    x, y = x - GREY, y - GREY  # variances stay, and lose fewer digits to float32
    mean_x, mean_y, squares, product = _blur(torch.cat([x, y, x * x + y * y, x * y]))
    covariance = product - mean_x * mean_y
    variances = squares - mean_x.square() - mean_y.square()
    contrast = (2 * covariance + C2) / (variances + C2)
    mean_x, mean_y = mean_x + GREY, mean_y + GREY
    luminance = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
    similarity = contrast * luminance
    return similarity.mean((1, 2)), contrast.mean((1, 2))


def _blur(maps: Tensor) -> Tensor:
    """The Gaussian window over [N,C,H,W], where it fits whole."""
    window, count = _window(), maps.shape[0] * maps.shape[1]
    planes = maps.reshape(1, count, *maps.shape[2:])
    for shape in ((1, 1, WINDOW, 1), (1, 1, 1, WINDOW)):
        planes = F.conv2d(planes, window.reshape(shape).expand(count, -1, -1, -1), groups=count)
    return planes.reshape(*maps.shape[:2], *planes.shape[2:])


@functools.cache
def _window() -> Tensor:
    """The 11 weights of one axis; their sum is 1."""
    distance = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-distance.square() / (2 * SIGMA**2))
    return (weights / weights.sum()).float()
