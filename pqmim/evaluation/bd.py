"""Bjontegaard rate difference: how many bits one codec needs more than another at equal quality.

The logarithm of the rate is interpolated over quality by PCHIP (Fritsch and Carlson's monotone
cubic, which does not swing between few points) and the difference averaged over the qualities that
both curves reach.  Nothing is extrapolated: without common qualities there is no figure.  Points
that another point beats in rate and quality at once are left out, so that the curve is a function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.interpolate import PchipInterpolator

Array = NDArray[np.float64]
Knots = Sequence[tuple[float, float]]  # (bits per pixel, quality in dB)


@dataclass(frozen=True)
class Rate:
    """The difference, and over which qualities it was found."""

    percent: float | None  # negative: fewer bits than the reference; None: no common qualities
    low: float | None  # dB
    high: float | None


NONE = Rate(None, None, None)


def bd_rate(reference: Knots, test: Knots, within: tuple[float, float] | None = None) -> Rate:
    """Bits of ``test`` against ``reference`` at equal quality, in percent.

    Args:
        reference: points of the anchor.
        test: points of the codec in question.
        within: compare only what both reach at rates in this range of bits per pixel.
    """
    curves = [front(reference), front(test)]
    if any(len(c) < 2 for c in curves):
        return NONE
    spans = [_qualities(c, within) for c in curves]
    if any(span is None for span in spans):
        return NONE
    low, high = max(s[0] for s in spans if s), min(s[1] for s in spans if s)
    if high - low <= 1e-9:
        return NONE
    areas = [float(pchip(c[:, 1], np.log(c[:, 0])).integrate(low, high)) for c in curves]
    return Rate(100 * math.expm1((areas[1] - areas[0]) / (high - low)), low, high)


def quality_at(points: Knots, bpp: float) -> float | None:
    """Quality of a curve at a rate; None outside its range."""
    c = front(points)
    if len(c) < 2 or not c[0, 0] <= bpp <= c[-1, 0]:
        return None
    return float(pchip(np.log(c[:, 0]), c[:, 1])(math.log(bpp)))


def front(points: Knots) -> Array:
    """[n, 2] in rising rate and quality: what no other point beats in both."""
    best: list[tuple[float, float]] = []
    for bpp, quality in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or quality > best[-1][1]:
            best.append((bpp, quality))
    return np.array(best, dtype=np.float64).reshape(-1, 2)


def pchip(x: Array, y: Array) -> PchipInterpolator:
    """The monotone cubic through (x, y), x rising.

    Raises:
        ValueError: scipy is not there.
    """
    try:
        from scipy.interpolate import PchipInterpolator
    except ImportError as error:
        raise ValueError(f"BD-rates need scipy ({error}): pip install 'pqmim[eval]'") from error
    return PchipInterpolator(x, y, extrapolate=True)  # the ends, to the last digit


def _qualities(c: Array, within: tuple[float, float] | None) -> tuple[float, float] | None:
    """The qualities that a curve reaches inside a range of rates."""
    low, high = (c[0, 0], c[-1, 0]) if within is None else within
    low, high = max(low, c[0, 0]), min(high, c[-1, 0])
    if low >= high:
        return None
    ends = pchip(np.log(c[:, 0]), c[:, 1])(np.log(np.array([low, high])))
    return float(ends[0]), float(ends[1])
