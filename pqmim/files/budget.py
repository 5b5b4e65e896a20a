"""The best picture in a given number of bytes: 200, say.

At one price of a bit (``pqmim.coding.search``) the image is resized to the largest grid whose file
fits, encoded, decoded as its reader will, and compared with the original.  The price climbs from
the middle of a ladder as long as the PSNR rises.  Sizes are of real files: an estimate of the bits
per position only says what to try next.

Costs about 20 encodings of small images.  Sending every second position and completing the others
was tried and never won (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pqmim.completion import filling
from pqmim.files import single
from pqmim.files.container import MAX_SIDE, Stream
from pqmim.metrics import psnr
from pqmim.prior import schedule

if TYPE_CHECKING:
    from pqmim.codec import Codec

LADDER = (0.01, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)  # prices of a bit
MIDDLE = 4  # where the climb begins
SUBCODES = 16  # what finer ones would say is too dear at every price of the ladder
PLAN = schedule.DEFAULT_PLAN
TRIALS = 3  # encodings of one candidate, more until one fits
TYPICAL_BITS = 60.0  # a position, before anything is measured
HEADER = 17  # bytes of version 2, usually
MAX_STRETCH = 1.15  # of the sides against each other, undone by the reader


class BudgetError(ValueError):
    """No file of this image is so small."""


@dataclass(frozen=True)
class Choice:
    """A file and what it shows."""

    data: bytes
    stream: Stream
    psnr: float  # dB, of the picture at full size


def search(codec: Codec, pixels: Tensor, max_bytes: int) -> Choice:
    """uint8 [3,H,W] -> the best file of at most ``max_bytes``.

    Raises:
        NoPriorError: the weights hold no entropy model.
        BudgetError: the smallest file of this image is larger; names it.
        ValueError: pixels of another type or shape, or sides the format has no room for.
    """
    _check(pixels)
    codec.needed_prior()
    grids = grids_of(*codec.grid(*pixels.shape[1:]))
    tried: dict[int, Choice | None] = {}

    def score(at: int) -> float:
        if at not in tried:
            tried[at] = _largest(codec, pixels, grids, LADDER[at], max_bytes)
        found = tried[at]
        return found.psnr if found else 0.0

    climb(score, len(LADDER), MIDDLE)
    found = [choice for choice in tried.values() if choice]
    if not found:
        least = len(_encode(codec, pixels, grids[0], LADDER[-1]))
        raise BudgetError(
            f"{max_bytes} bytes are too few for an image of {pixels.shape[1]} x "
            f"{pixels.shape[2]} pixels: the smallest file has {least}"
        )
    return max(found, key=lambda choice: choice.psnr)


def climb(score: Callable[[int], float], count: int, at: int) -> int:
    """The index of a maximum of 0..count - 1 that neighbours do not surpass; 0.0 is no result."""
    while at < count - 1 and score(at) == 0.0:
        at += 1
    for step in (1, -1):
        while 0 <= at + step < count and score(at + step) > score(at):
            at += step
    return at


def _check(pixels: Tensor) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"pixels must be uint8 [3,H,W], not {pixels.dtype} {tuple(pixels.shape)}")
    if not 1 <= min(pixels.shape[1:]) <= max(pixels.shape[1:]) <= MAX_SIDE:
        raise ValueError(f"{tuple(pixels.shape[1:])} pixels; sides go from 1 to {MAX_SIDE}")


def grids_of(rows: int, columns: int) -> list[tuple[int, int]]:
    """Grids up to rows x columns of about that shape, by the number of positions."""
    found = {(rows, columns)}
    for r in range(1, rows + 1):
        even = r * columns / rows
        for c in range(max(1, int(even / MAX_STRETCH)), int(even * MAX_STRETCH) + 1):
            found.add((r, min(c, columns)))
        found.add((r, min(columns, max(1, round(even)))))
    return sorted(found, key=lambda grid: (grid[0] * grid[1], grid))


def _largest(
    codec: Codec, pixels: Tensor, grids: list[tuple[int, int]], price: float, max_bytes: int
) -> Choice | None:
    """The file on the largest grid that fits, as far as a few trials find it."""
    low, high, best = -1, len(grids), None  # grids[low] fits, grids[high] does not
    bits, trials = TYPICAL_BITS, 0
    while high - low > 1 and (trials < TRIALS or best is None):
        wanted = 8 * (max_bytes - HEADER) / bits
        at = sum(rows * columns <= wanted for rows, columns in grids) - 1
        at = min(max(at, low + 1), high - 1)
        data = _encode(codec, pixels, grids[at], price)
        if len(data) <= max_bytes:
            low, best = at, data
        else:
            high = at
        bits = max(0.5, 8 * (len(data) - HEADER) / (grids[at][0] * grids[at][1]))
        trials += 1
    return None if best is None else _measure(codec, pixels, best)


def _encode(codec: Codec, pixels: Tensor, grid: tuple[int, int], price: float) -> bytes:
    """The file of an image on a grid."""
    height, width = pixels.shape[1:]
    small = filling.resize(pixels, *filling.coded_size(codec, height, width, *grid))
    subcodes = min(SUBCODES, codec.config.subcodes)
    codes = codec.search(small[None], subcodes, price, PLAN)[0][0].cpu().numpy()
    stages = len(schedule.stage_groups(subcodes, PLAN, codec.needed_prior().config.group))
    return single.compress_compact(codec, codes, height, width, PLAN, stages)


def _measure(codec: Codec, pixels: Tensor, data: bytes) -> Choice:
    """Decode a file as its reader will."""
    size = pixels.shape[1] * pixels.shape[2]
    shown = codec.decompress(data, max_pixels=size).cpu()
    error = psnr(pixels.cpu().numpy(), shown.numpy())
    return Choice(data, single.parse(codec, data, size), error)
