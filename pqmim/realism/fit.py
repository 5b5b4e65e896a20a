"""The shape of grain from photographs: where and in which bands their decoded pictures miss power.

Least squares on the logarithm of the power.  So it is the typical power of such places that comes
back and not its mean: places that look alike when decoded are a sky, which misses nothing, or a
lawn, which misses much, and grain on a sky is seen where smoothness on a lawn is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pqmim.realism import grain
from pqmim.realism.grain import BANDS, FEATURES, ROUNDING, Cells, Shape


@dataclass(frozen=True)
class Seen:
    """Positions of a picture: what is known there and what is missing."""

    features: Cells  # [BANDS, FEATURES, n]
    missing: Cells  # [BANDS, n], squared levels


def seen(
    original: NDArray[np.uint8], decoded: NDArray[np.uint8], codes: NDArray[np.integer], stride: int
) -> Seen:
    """Of a photograph uint8 [3,H,W], what was decoded of it, and its codes [h,w,m]."""
    known = grain.features(grain.luma(decoded), codes, stride)
    error = grain.luma(original) - grain.luma(decoded)
    missing = grain.powers(error, BANDS, stride)
    return Seen(known.reshape(BANDS, FEATURES, -1), missing.reshape(BANDS, -1))


def fit(pictures: Sequence[Seen]) -> Shape:
    """The shape that predicts their missing power best.

    Raises:
        ValueError: no picture.
    """
    if not pictures:
        raise ValueError("a shape of grain is fitted on photographs, and there is none")
    rows = []
    for known, levels in zip(*_gathered(pictures), strict=True):
        weights = np.linalg.lstsq(known.T, levels, rcond=None)[0]
        rows.append(tuple(round(float(w), 4) for w in weights))
    return Shape(tuple(rows))


def explained(pictures: Sequence[Seen], shape: Shape) -> tuple[float, ...]:
    """Of each band the share of the variance that the shape explains: 1 all, 0 no more than one
    power everywhere would."""
    shares = []
    for weights, known, levels in zip(shape.weights, *_gathered(pictures), strict=True):
        left = levels - np.array(weights) @ known
        shares.append(float(1 - np.square(left).mean() / levels.var()))
    return tuple(shares)


def _gathered(pictures: Sequence[Seen]) -> tuple[Cells, Cells]:
    """Features [S,F,n] and the logarithms of what is missing [S,n], of all positions."""
    known = np.concatenate([picture.features for picture in pictures], 2)
    missing = np.concatenate([picture.missing for picture in pictures], 1)
    return known, np.log(missing + ROUNDING)
