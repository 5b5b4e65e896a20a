"""Bjontegaard rate difference: how many bits one codec needs more than another at equal quality.

The logarithm of the rate is interpolated over quality by PCHIP (Fritsch and Carlson's monotone
cubic, which does not swing between few points) and the difference averaged over the qualities that
both curves reach.  Nothing is extrapolated: without common qualities there is no figure.  Points
that another point beats in rate and quality at once are left out, so that the curve is a function.

The cubic pieces are integrated exactly (Simpson's rule is exact for them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    areas = [_integral(c[:, 1], np.log(c[:, 0]), low, high) for c in curves]
    return Rate(100 * math.expm1((areas[1] - areas[0]) / (high - low)), low, high)


def quality_at(points: Knots, bpp: float) -> float | None:
    """Quality of a curve at a rate; None outside its range."""
    c = front(points)
    if len(c) < 2 or not c[0, 0] <= bpp <= c[-1, 0]:
        return None
    return float(pchip(np.log(c[:, 0]), c[:, 1], np.array([math.log(bpp)]))[0])


def front(points: Knots) -> Array:
    """[n, 2] in rising rate and quality: what no other point beats in both."""
    best: list[tuple[float, float]] = []
    for bpp, quality in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or quality > best[-1][1]:
            best.append((bpp, quality))
    return np.array(best, dtype=np.float64).reshape(-1, 2)


def pchip(x: Array, y: Array, at: Array) -> Array:
    """The monotone cubic through (x, y), x rising, at places within x's range."""
    step, slope = np.diff(x), _slopes(x, y)
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    t, h = (at - x[i]) / step[i], step[i]
    return np.asarray(
        (1 + 2 * t) * (1 - t) ** 2 * y[i] + t * (1 - t) ** 2 * h * slope[i]
        + t * t * (3 - 2 * t) * y[i + 1] + t * t * (t - 1) * h * slope[i + 1]
    )  # fmt: skip


def _slopes(x: Array, y: Array) -> Array:
    """Slopes at the knots: weighted harmonic means, three-point formulas at the ends."""
    h, d = np.diff(x), np.diff(y) / np.diff(x)
    if len(x) == 2:
        return np.array([d[0], d[0]])
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    inner, rising = np.zeros(len(x) - 2), d[:-1] * d[1:] > 0
    both = (w1 + w2)[rising]
    inner[rising] = both / (w1[rising] / d[:-1][rising] + w2[rising] / d[1:][rising])
    first, last = _end(h[0], h[1], d[0], d[1]), _end(h[-1], h[-2], d[-1], d[-2])
    return np.concatenate([[first], inner, [last]])


def _end(h0: float, h1: float, d0: float, d1: float) -> float:
    slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
    if slope * d0 <= 0:
        return 0.0
    return 3 * d0 if d0 * d1 < 0 and abs(slope) > abs(3 * d0) else float(slope)


def _qualities(c: Array, within: tuple[float, float] | None) -> tuple[float, float] | None:
    """The qualities that a curve reaches inside a range of rates."""
    low, high = (c[0, 0], c[-1, 0]) if within is None else within
    low, high = max(low, c[0, 0]), min(high, c[-1, 0])
    if low >= high:
        return None
    ends = pchip(np.log(c[:, 0]), c[:, 1], np.log(np.array([low, high])))
    return float(ends[0]), float(ends[1])


def _integral(x: Array, y: Array, low: float, high: float) -> float:
    """Of the cubic through (x, y) from low to high, piece by piece."""
    cuts = np.concatenate([[low], x[(x > low) & (x < high)], [high]])
    left, right = cuts[:-1], cuts[1:]
    values = [pchip(x, y, at) for at in (left, (left + right) / 2, right)]
    return float(((right - left) / 6 * (values[0] + 4 * values[1] + values[2])).sum())
