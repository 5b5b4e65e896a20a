"""Which code is sent in which stage: masks per (position, group of sub-codes), integers only.

Sub-codes go in groups of ``group``, coarse first: a group is sent for all positions before the next
one begins (the sub-codes of one position share 0.86 bits a code, and a nested codec wants that
order).  Within a group the positions of every 16 x 16 window go in Bayer order, the nested quincunx
lattices, in a few *spatial stages*.  What one stage sends is predicted in one pass of the model.

A plan has one byte per group; groups beyond it have one stage:

    byte         spatial stages   share of positions sent after stage s of S
    1 .. 16      S = byte         (s / S) ** 2
    129 .. 137   S = byte - 128   2 ** (s - S)     130: checkerboard, 133: quincunx-5 (PQ-MIM)

A stage is a pure function of (y, x, sub-code, plan): the stages of quality m are the first stages
of any higher quality that is a multiple of the group, so a stream may be cut between groups.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pqmim.prior.config import WINDOW

Scalar = TypeVar("Scalar", bound=np.generic)

MAX_SQUARE = 16
HALVING = 128
MAX_HALVING = 9  # 2 ** 8 positions a window

CHECKERBOARD = HALVING + 2
QUINCUNX = HALVING + 5

# Passes are worth most on the first group; the later ones already know its codes everywhere.
FAST_PLAN = (2, 1, 1, 1, 1, 1, 1, 1)
# Of a bit (pqmim.coding.search), where quality and size of the shipped model both still rise:
# about 0.25 bpp on photographs.
DEFAULT_PRICE = 0.06
DEFAULT_PLAN = (4, 2, 1, 1, 1, 1, 1, 1)
BEST_PLAN = (8, 4, 2, 1, 1, 1, 1, 1)


class ScheduleError(ValueError):
    """A stage plan that does not exist."""


@functools.cache
def bayer_ranks() -> NDArray[np.int64]:
    """[16, 16], each of 0..255 once: when a position's turn comes in its window."""
    base = np.array([[0, 2], [3, 1]])
    ranks = np.zeros((1, 1), dtype=np.int64)
    while len(ranks) < WINDOW:
        ranks = np.block([[4 * ranks + base[y, x] for x in (0, 1)] for y in (0, 1)])
    return ranks


def spatial_stages(byte: int) -> int:
    """Stages S of one plan byte.

    Raises:
        ScheduleError: no such byte.
    """
    if 1 <= byte <= MAX_SQUARE:
        return byte
    if HALVING < byte <= HALVING + MAX_HALVING:
        return byte - HALVING
    raise ScheduleError(
        f"plan byte {byte} is neither 1..{MAX_SQUARE} nor {HALVING + 1}..{HALVING + MAX_HALVING}"
    )


@functools.cache
def position_stages(byte: int) -> NDArray[np.int64]:
    """[16, 16]: the spatial stage 0..S-1 of every position of a window."""
    count, positions = spatial_stages(byte), WINDOW * WINDOW
    steps = range(1, count + 1)
    if byte < HALVING:
        ends = [positions * s * s // (count * count) for s in steps]
    else:
        ends = [positions >> (count - s) for s in steps]
    return np.searchsorted(np.array(ends), bayer_ranks(), side="right")


def groups_of(subcodes: int, group: int) -> int:
    """How many groups hold ``subcodes`` sub-codes; the last may be partial."""
    return -(-subcodes // group)


def filled(plan: Sequence[int], subcodes: int, group: int) -> tuple[int, ...]:
    """The plan of exactly the groups that hold ``subcodes``: cut off, or with one stage each.

    Raises:
        ScheduleError: an unknown byte.
    """
    for byte in plan:
        spatial_stages(byte)
    groups = groups_of(subcodes, group)
    return (*plan[:groups], *[1] * (groups - len(plan)))


def stage_groups(subcodes: int, plan: Sequence[int], group: int) -> list[int]:
    """The group of every stage, in the order of sending."""
    used = filled(plan, subcodes, group)
    return [g for g, byte in enumerate(used) for _ in range(spatial_stages(byte))]


def stage_map(
    height: int, width: int, subcodes: int, plan: Sequence[int], group: int
) -> NDArray[np.int16]:
    """[height, width, subcodes]: the stage in which each code is sent, from 0.

    Raises:
        ScheduleError: see :func:`filled`.
    """
    stages = np.empty((height, width, subcodes), dtype=np.int16)
    tiles = (-(-height // WINDOW), -(-width // WINDOW))
    first = 0
    for g, byte in enumerate(filled(plan, subcodes, group)):
        within = np.tile(position_stages(byte), tiles)[:height, :width]
        stages[..., g * group : (g + 1) * group] = (first + within)[..., None]
        first += spatial_stages(byte)
    return stages


def to_windows(grid: NDArray[Scalar], fill: int) -> NDArray[Scalar]:
    """[h, w, m] -> [windows in raster order, 16, 16, m]; ``fill`` outside the grid."""
    height, width, subcodes = grid.shape
    rows, columns = -(-height // WINDOW), -(-width // WINDOW)
    pad = ((0, rows * WINDOW - height), (0, columns * WINDOW - width), (0, 0))
    padded = np.pad(grid, pad, constant_values=fill)
    tiles = padded.reshape(rows, WINDOW, columns, WINDOW, subcodes).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(rows * columns, WINDOW, WINDOW, subcodes))


def from_windows(windows: NDArray[Scalar], height: int, width: int) -> NDArray[Scalar]:
    """Undo :func:`to_windows`."""
    rows, columns = -(-height // WINDOW), -(-width // WINDOW)
    tiles = windows.reshape(rows, columns, WINDOW, WINDOW, -1).swapaxes(1, 2)
    padded = tiles.reshape(rows * WINDOW, columns * WINDOW, -1)
    return np.ascontiguousarray(padded[:height, :width])
