"""Which codes of a grid are kept: bool [h, w, m], True for what a completion must not touch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pqmim.coding import schedule
from pqmim.completion import draw
from pqmim.completion.rule import CompletionError
from pqmim.prior import frequencies

Mask = NDArray[np.bool_]
Shape = tuple[int, int, int]  # h, w, m


def first_stages(shape: Shape, plan: Sequence[int], group: int, stages: int) -> Mask:
    """What the first stages of a plan hold, as a stream that was cut off.

    Raises:
        CompletionError: fewer than 0 stages, or more than the plan has.
        pqmim.coding.schedule.ScheduleError: the plan does not cover the sub-codes.
    """
    planned = len(schedule.stage_groups(shape[2], plan, group))
    if not 0 <= stages <= planned:
        raise CompletionError(f"{stages} stages of a plan that has {planned}")
    return schedule.stage_map(*shape, plan, group) < stages


def first_subcodes(shape: Shape, count: int) -> Mask:
    """The first sub-codes of every position, as a lower quality.

    Raises:
        CompletionError: fewer than 0, or more than there are.
    """
    if not 0 <= count <= shape[2]:
        raise CompletionError(f"{count} sub-codes of {shape[2]}")
    return np.broadcast_to(np.arange(shape[2]) < count, shape).copy()


def outside(shape: Shape, rectangle: tuple[int, int, int, int], stride: int) -> Mask:
    """All but the positions that touch a rectangle (top, left, height, width) of pixels.

    Raises:
        CompletionError: it is empty or begins outside the image.
    """
    top, left, height, width = rectangle
    if min(top, left) < 0 or min(height, width) < 1:
        raise CompletionError(f"a rectangle {rectangle}: top, left, height, width in pixels")
    rows, columns = (
        slice(first // stride, -(-(first + size) // stride))
        for first, size in ((top, height), (left, width))
    )
    kept = np.ones(shape, dtype=np.bool_)
    kept[rows, columns] = False
    if kept.all():
        raise CompletionError(f"the rectangle {rectangle} lies outside the image")
    return kept


def random_share(shape: Shape, share: float, seed: int = 0) -> Mask:
    """Positions at random, each with the probability ``share``; same for a seed everywhere.

    Raises:
        CompletionError: a share outside 0..1.
    """
    if not 0 <= share <= 1:
        raise CompletionError(f"a share of {share} is not in 0..1")
    streams = draw.position_streams(seed, *shape[:2]).reshape(-1)
    lane = draw.MASK_LANE
    at = draw.points(streams, slice(lane, lane + 1)).reshape(*shape[:2], 1)
    return np.broadcast_to(at < round(share * frequencies.TOTAL), shape).copy()
