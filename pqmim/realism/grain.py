"""Grain: texture that a decoded picture lost, given back as noise of the power that was lost.

    codes [h,w,m] --active: how many say something------+
    picture --bands of its luma: power a position-------+--Shape--> missing power [S,h,w]
    codes --sha256--> noise of each band, brought to that power --> added to R, G and B alike

A decoder that was trained on squared error shows the mean of all pictures that have the same codes,
which is smoother than any of them.  What is missing has the power of the error, and that follows
from what is known of the place: texture was where many codes say something and where the bands that
were kept are strong.  ``Shape`` says how, in a few numbers that were fitted on photographs
(``pqmim/realism/fit.py``, ``python -m pqmim.training.grain``).  The phases are lost, so that noise
stands for them, as in AV1's film grain (Norkin and Birkbeck 2018), but shaped by the codes, at no
bits.

At strength s the grain has s^2 of the power that such places typically miss, so that the squared
error grows by a factor below 1 + s^2.  Equal codes give equal grain: the noise is seeded by them
and by nothing else.  Works on whole planes, about 100 bytes a pixel.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BANDS = 3  # periods of about 2 to 4, 4 to 8 and 8 to 16 pixels
FEATURES = 13
MOST = 400.0  # squared levels of a band: beyond what the photographs had lost anywhere
TAPS = ((-2, 1 / 16), (-1, 4 / 16), (0, 6 / 16), (1, 4 / 16), (2, 1 / 16))  # a cubic B-spline
MIDDLE, SPREAD = 510.0, np.sqrt(4 * (256**2 - 1) / 12)  # of the sum of four bytes
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
ROUNDING = 1 / 12  # squared levels that 8 bits make of any plane
STRENGTH = 0.5  # costs 0.6 to 0.8 dB on Kodak (docs/log.md)

Plane = NDArray[np.float32]  # [H, W]
Cells = NDArray[np.float64]  # [h, w], or [S, h, w]: one number a position of the codes


@dataclass(frozen=True)
class Shape:
    """Missing power by band, exp(weights . features): :func:`features` has their order."""

    weights: tuple[tuple[float, ...], ...]  # [BANDS, FEATURES]


def grained(
    pixels: NDArray[np.uint8], codes: NDArray[np.integer], stride: int,
    strength: float = STRENGTH, shape: Shape | None = None,
) -> NDArray[np.uint8]:  # fmt: skip
    """A decoded picture uint8 [3,H,W] with its grain, uint8 [3,H,W].

    Args:
        pixels: what the faithful decoder made of the codes.
        codes: integers [h,w,m] of the whole picture, h = ceil(H / stride).
        stride: pixels a side of a position.
        strength: 0 gives the picture back, 1 all of the power that such places typically miss.
        shape: how it is predicted; None: as fitted for the shipped weights.

    Raises:
        ValueError: codes that are not of such a picture, or a strength below 0.
    """
    if codes.ndim != 3 or codes.shape[:2] != tuple(-(-side // stride) for side in pixels.shape[1:]):
        raise ValueError(
            f"codes {codes.shape} are not [h, w, m] of {pixels.shape[1]} x {pixels.shape[2]} "
            f"pixels at stride {stride}"
        )
    if not strength >= 0:
        raise ValueError(f"a strength of grain is 0 or more, not {strength}")
    missing = predicted(features(luma(pixels), codes, stride), shape or SHAPE)
    missing *= smooth(active(codes)) > 0  # a place where no code says anything is no texture
    height, width = pixels.shape[1:]
    noise = strength * equalized(white(codes, (BANDS, height, width)), missing, stride)
    return (pixels + noise).round().clip(0, 255).astype(np.uint8)


def luma(pixels: NDArray[np.uint8]) -> Plane:
    """uint8 [3,H,W] -> levels [H,W] (BT.601)."""
    red, green, blue = pixels.astype(np.float32) * LUMA[:, None, None]
    return red + green + blue


def features(plane: Plane, codes: NDArray[np.integer], stride: int) -> Cells:
    """What the missing power is predicted from, [BANDS, FEATURES, h, w].

    Of each band: 1; active sub-codes of the position and of the picture; the power of the band and
    of the next coarser one in the decoded picture, by its mean and by the mean of its logarithm
    (which tells an edge from a texture).  All but the first as logarithms, then their squares.
    """
    own = active(codes)
    known = [np.log(smooth(own) + 1), np.full_like(own, np.log(own.mean() + 1))]
    squares = [np.square(band) for band in bands(plane, BANDS + 1)]
    mean = [np.log(smooth(_means(part, stride)) + ROUNDING) for part in squares]
    typical = [smooth(_means(np.log(part + np.float32(ROUNDING)), stride)) for part in squares]
    found = []
    for band in range(BANDS):
        near = slice(band, band + 2)
        terms = np.stack([*known, *mean[near], *typical[near]])
        found.append(np.concatenate([np.ones_like(own)[None], terms, np.square(terms)]))
    return np.stack(found)


def active(codes: NDArray[np.integer]) -> Cells:
    """Sub-codes of every position, [h,w], that have another value than the picture's commonest:
    that one says nothing is here, and costs next to no bits."""
    total = np.zeros(codes.shape[:2])
    for part in np.moveaxis(codes, 2, 0):
        values, counts = np.unique(part, return_counts=True)
        total += part != values[counts.argmax()]
    return total


def predicted(found: Cells, shape: Shape) -> Cells:
    """Features [S,F,h,w] -> missing power in squared levels, [S,h,w]."""
    return np.minimum(np.exp(np.einsum("sf,sfhw->shw", np.array(shape.weights), found)), MOST)


def powers(plane: Plane, count: int, stride: int) -> Cells:
    """Mean square of each band in each position, [count,h,w]."""
    return np.stack([_means(np.square(band), stride) for band in bands(plane, count)])


def bands(plane: Plane, count: int) -> list[Plane]:
    """Differences of ever smoother versions of a plane, finest first (a trous; Starck et al. 1998):
    with the smoothest version they sum up to the plane."""
    found = []
    for scale in range(count):
        smoother = _blurred(_blurred(plane, 2**scale, 0), 2**scale, 1)
        found.append(plane - smoother)
        plane = smoother
    return found


def white(codes: NDArray[np.integer], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Noise of a shape, of mean 0 and variance 1, that the codes choose.

    Sums of four random bytes, nearly normal: numpy promises the bits of a generator for ever, and
    the normal numbers that it makes of them not.
    """
    text = f"{codes.shape} {shape} ".encode() + codes.astype("<u2").tobytes()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")
    count = int(np.prod(shape))
    raw = np.random.Philox(key=seed).random_raw(-(-count // 2)).astype("<u8").view(np.uint8)
    sums = raw.reshape(-1, 4)[:count].sum(1, dtype=np.int32)
    return ((sums - MIDDLE) / SPREAD).astype(np.float32).reshape(shape)


def equalized(noise: NDArray[np.float32], missing: Cells, stride: int) -> Plane:
    """Independent white noises [S,H,W] -> one [H,W] whose bands have the power [S,h,w], which runs
    smoothly from one position to the next.

    Bands overlap, so each noise is a little of its neighbours' power: what the others leave to a
    band is found from that, and nothing where they leave nothing.
    """
    own = np.einsum("st,thw->shw", np.linalg.inv(_mixing()), missing).clip(0)
    total = np.zeros_like(noise[0])
    for band, power in enumerate(own):
        part = bands(noise[band], band + 1)[band]
        total += part * _spread(np.sqrt(power), total.shape, stride)
    return total


def smooth(cells: Cells) -> Cells:
    """Means of 3 x 3 positions, [h,w]."""
    for axis in (0, 1):
        before, after = _shifted(cells, -1, axis), _shifted(cells, 1, axis)
        cells = (before + cells + after) / 3
    return cells


@functools.cache
def _mixing() -> NDArray[np.float64]:
    """[S,S]: the power of band s of what band t makes of white noise of variance 1, the sum of its
    squared response."""
    impulse = np.zeros((127, 127), np.float32)
    impulse[63, 63] = 1
    made = [bands(part, BANDS) for part in bands(impulse, BANDS)]
    return np.array([[np.square(made[t][s]).sum() for t in range(BANDS)] for s in range(BANDS)])


def _blurred(plane: Plane, step: int, axis: int) -> Plane:
    total = np.zeros_like(plane)
    for shift, weight in TAPS:
        total += np.float32(weight) * _shifted(plane, shift * step, axis)
    return total


def _shifted(values: NDArray, shift: int, axis: int) -> NDArray:
    """What stands so many places further, the border's beyond the border."""
    places = np.clip(np.arange(values.shape[axis]) + shift, 0, values.shape[axis] - 1)
    return np.take(values, places, axis)


def _means(plane: Plane, stride: int) -> Cells:
    """Of each position the mean over its pixels, [h,w]; positions at the border may have fewer."""
    total = plane.astype(np.float64)
    for axis in (0, 1):
        starts = np.arange(0, plane.shape[axis], stride)
        counts = np.diff(np.append(starts, plane.shape[axis]))
        total = np.add.reduceat(total, starts, axis) / np.expand_dims(counts, 1 - axis)
    return total


def _spread(cells: Cells, size: tuple[int, ...], stride: int) -> Plane:
    """A number a position, [h,w] -> one a pixel, [H,W], linear between the middles of positions."""
    for axis in (0, 1):
        place = (np.arange(size[axis]) + 0.5) / stride - 0.5
        place = place.clip(0, cells.shape[axis] - 1)
        low = np.floor(place).astype(np.int64)
        share = np.expand_dims(place - low, 1 - axis)
        high = np.minimum(low + 1, cells.shape[axis] - 1)
        cells = np.take(cells, low, axis) * (1 - share) + np.take(cells, high, axis) * share
    return cells.astype(np.float32)


SHAPE = Shape((  # weights 8245a25b, python -m pqmim.training.grain train-000006.tar
    (8.9503, 0.0926, -3.7625, 0.4268, -0.6436, 0.9258, 0.7487,
     -0.1118, 0.6493, -0.0035, -0.0373, -0.0029, -0.1056),
    (5.695, -0.0393, -2.2669, -0.133, -0.0953, 1.2172, 0.1305,
     -0.1381, 0.344, 0.0321, -0.0376, -0.0845, -0.0401),
    (3.7725, -0.4495, -1.7114, -0.1481, 0.1813, 1.1582, -0.2983,
     -0.0228, 0.2509, 0.0098, -0.0337, -0.0963, 0.0139),
))  # fmt: skip
