"""How sharp a decoded picture is, and whether its texture is the original's, without a network.

Three distances, each 0 for equal pictures, over the luma of 8-bit RGB (BT.601):

    gradients  levels  how far the distribution of differences between neighbours is moved (the
                       1-Wasserstein distance of their absolute values).  Photographs have heavy
                       tails there (Huang and Mumford 1999), which blur takes away.
    wavelets   dB      energy of the details at four scales of the Haar transform (Mallat 1989), as
                       a ratio to the original's: the mean of the absolute logarithms.  ``detail``
                       is the mean with its sign: below 0 the picture is smoother than it was.
    spectra    dB      power in rings of frequency of patches of 32 x 32 pixels in their places: the
                       mean of the absolute logarithms of the ratios, patch by patch.  So texture
                       must be where it was, not only as much of it.

Energies have the noise of rounding to 8 bits added, 1/12 of a squared level, so that a flat sky is
not a matter of its last bit.  Noise of variance v has wavelet energy v at every scale and power v
in every ring; the tests hold these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SCALES = 4
PATCH, RINGS = 32, 12  # pixels a side; rings of 2 to 13 periods a patch, of 16
LUMA = np.array([0.299, 0.587, 0.114])
ROUNDING = 1 / 12  # squared levels
LEAST_SIDE = PATCH

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float64]


@dataclass(frozen=True)
class Texture:
    """Distances of a picture from its original."""

    gradients: float  # levels
    wavelets: float  # dB
    spectra: float  # dB
    detail: float  # dB, below 0: smoother


def texture(original: Pixels, shown: Pixels) -> Texture:
    """Of uint8 [3, H, W].

    Raises:
        ValueError: other shapes, or a side below 32 pixels.
    """
    if original.shape != shown.shape or min(original.shape[1:]) < LEAST_SIDE:
        raise ValueError(
            f"two pictures [3, H, W] with sides of {LEAST_SIDE} pixels or more, not "
            f"{original.shape} and {shown.shape}"
        )
    a, b = luma(original), luma(shown)
    ratios = _decibels(wavelet_energies(b), wavelet_energies(a))
    spectra = _decibels(local_spectra(b), local_spectra(a))
    return Texture(
        gradients=float(np.abs(gradients(a) - gradients(b)).mean()),
        wavelets=float(np.abs(ratios).mean()), spectra=float(np.abs(spectra).mean()),
        detail=float(ratios.mean()),
    )  # fmt: skip


def luma(pixels: Pixels) -> Plane:
    """uint8 [3, H, W] -> levels [H, W]."""
    return np.tensordot(LUMA, pixels.astype(np.float64), axes=1)


def gradients(plane: Plane) -> NDArray[np.float64]:
    """Absolute differences of all neighbours, sorted: of two pictures of one size the mean distance
    of these is the 1-Wasserstein distance."""
    across, down = np.abs(np.diff(plane, axis=1)), np.abs(np.diff(plane, axis=0))
    return np.sort(np.concatenate([across.ravel(), down.ravel()]))


def wavelet_energies(plane: Plane) -> NDArray[np.float64]:
    """Mean squared details of the orthonormal Haar transform at each scale, finest first, [S]."""
    energies = []
    for _ in range(SCALES):
        high, wide = (side - side % 2 for side in plane.shape)
        whole = plane[:high, :wide]
        a, b, c, d = whole[::2, ::2], whole[::2, 1::2], whole[1::2, ::2], whole[1::2, 1::2]
        details = (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2
        energies.append(np.mean([np.square(part).mean() for part in details]))
        plane = (a + b + c + d) / 2
    return np.array(energies)


def local_spectra(plane: Plane) -> NDArray[np.float64]:
    """Mean power in rings of frequency of each patch, [patches, rings], of noise its variance."""
    high, wide = (side - side % PATCH for side in plane.shape)
    grid = plane[:high, :wide].reshape(high // PATCH, PATCH, wide // PATCH, PATCH)
    patches = grid.transpose(0, 2, 1, 3).reshape(-1, PATCH, PATCH)
    window = np.outer(np.hanning(PATCH + 2)[1:-1], np.hanning(PATCH + 2)[1:-1])
    mean = (patches * window).sum((1, 2), keepdims=True) / window.sum()
    power = np.square(np.abs(np.fft.rfft2((patches - mean) * window))) / np.square(window).sum()
    rings = _rings()
    count = np.bincount(rings.ravel(), minlength=RINGS + 2)[1 : RINGS + 1]
    flat = power.reshape(len(power), -1)
    sums = [flat[:, rings.ravel() == ring].sum(1) for ring in range(1, RINGS + 1)]
    return np.stack(sums, 1) / count


def _rings() -> NDArray[np.int64]:
    """Of each frequency of a half spectrum the ring: 0 the mean's, the last one the corners'."""
    down, across = np.fft.fftfreq(PATCH) * PATCH, np.fft.rfftfreq(PATCH) * PATCH
    radius = np.hypot(down[:, None], across[None, :]).round().astype(np.int64)
    # Without the mean a patch has lost a part of its longest wave too: that ring is left out.
    return np.clip(radius - 1, 0, RINGS + 1)


def _decibels(shown: NDArray[np.float64], original: NDArray[np.float64]) -> NDArray[np.float64]:
    return 10 * np.log10((shown + ROUNDING) / (original + ROUNDING))
