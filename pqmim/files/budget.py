"""The best picture in a given number of bytes: from 64 to those of the largest file.

Two things save bytes: a higher price of a bit (``pqmim.coding.search``), and a smaller grid of
codes, of an image that its reader enlarges.  Where the whole grid fits at a price below a tenth, it
is best; where it does not, a smaller one is up to 3 dB better.  For one grid the price that uses up
the budget is found by interpolation, with the latent made once.  Then the next smaller and larger
grids follow, as long as the PSNR of the picture that a reader sees rises.

Costs 10 to 30 searches of codes, most of them on small grids (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqmim import arrays
from pqmim.coding import range_coder, schedule
from pqmim.coding import search as rd
from pqmim.completion import filling
from pqmim.files import single
from pqmim.files.container import MAX_SIDE, Stream
from pqmim.metrics import psnr
from pqmim.tokenizer import Tokenizer

LEAST, MOST = 1e-4, 64.0  # prices: the nearest codewords in all but name, and hardly any bits
TYPICAL_PRICE, TYPICAL_BITS = 0.1, 40.0  # and what a position takes at that price
STEP = 2**-0.25  # of the sides, from one grid to the next smaller one
PLAN = schedule.DEFAULT_PLAN
SLACK = 0.003  # of the bytes may be left over
TRIALS = 12  # prices of one grid
TRUSTED = 2  # guesses in a row that were too small, before the lowest price of all is tried
CLOSE = 0.01  # relative: prices that are nearer than that are the same
WHOLE_FROM = 4096  # bytes from which a file of the whole grid has a checksum of 32 bits

Point = tuple[float, float | None]  # log(price) and log(bytes / budget), if that is known


class BudgetError(ValueError):
    """No file of this image is so small."""


@dataclass(frozen=True)
class Choice:
    """A file and what it shows."""

    data: bytes
    stream: Stream
    psnr: float  # dB, of the picture at full size
    price: float


def search(codec: Tokenizer, pixels: Tensor, max_bytes: int) -> Choice:
    """uint8 [3,H,W] -> the best file of at most ``max_bytes``.

    Raises:
        NoPriorError: the weights hold no entropy model.
        BudgetError: the smallest file of this image is larger; names it.
        ValueError: pixels of another type or shape, sides the format has no room for, or a number
            of bytes that is none.
    """
    _check(pixels)
    codec.needed_prior()
    max_bytes = arrays.whole("max_bytes", max_bytes)
    grids = grids_of(*codec.grid(*pixels.shape[1:]))
    made: dict[int, Choice | None] = {}
    price = TYPICAL_PRICE

    def score(at: int) -> float:
        nonlocal price
        if at not in made:
            made[at] = choice = _of_grid(codec, pixels, grids[at], max_bytes, price)
            price = choice.price if choice else price
        found = made[at]
        return found.psnr if found else 0.0

    wanted = 8 * max_bytes / TYPICAL_BITS
    if max_bytes > 0:
        climb(score, len(grids), sum(rows * columns > wanted for rows, columns in grids[:-1]))
    found = [choice for choice in made.values() if choice]
    if not found:
        least = len(_Grid(codec, pixels, grids[-1], 1, 0).file(MOST))
        raise BudgetError(
            f"{max_bytes} bytes are too few for an image of {pixels.shape[1]} x "
            f"{pixels.shape[2]} pixels: the smallest file has {least}"
        )
    return max(found, key=lambda choice: choice.psnr)


def climb(score: Callable[[int], float], count: int, at: int) -> int:
    """The index of a maximum of 0..count - 1 that neighbours do not surpass; 0.0 is no result."""
    while score(at) == 0.0 and at < count - 1:
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
    """Grids of about that shape, from rows x columns down to 1 x 1."""
    found, side = [(rows, columns)], 1.0
    while found[-1] != (1, 1):
        side *= STEP
        smaller = max(1, round(rows * side)), max(1, round(columns * side))
        if smaller != found[-1]:
            found.append(smaller)
    return found


def _of_grid(
    codec: Tokenizer, pixels: Tensor, grid: tuple[int, int], max_bytes: int, price: float
) -> Choice | None:
    """The best file on one grid: of all sub-codes, or of fewer if bits are too dear for the last
    ones even as the most probable codeword; None if none fits."""
    best = None
    for subcodes in ladder(codec):
        tried = _Grid(codec, pixels, grid, subcodes, max_bytes)
        found = tried.fit(max_bytes, price if best is None else best.price)
        if found is not None and (best is None or found.psnr > best.psnr):
            best = found
        elif best is not None:
            break
        if best is not None and best.price < TYPICAL_PRICE:
            break
    return best


def ladder(codec: Tokenizer) -> list[int]:
    """Sub-codes to try: all, those of the first layers, then ever fewer of the first one."""
    found = [span.stop for span in reversed(codec.config.spans)]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


class _Grid:
    """An image on one grid of codes: its latent, and its file at any price."""

    def __init__(
        self, codec: Tokenizer, pixels: Tensor, grid: tuple[int, int], subcodes: int, max_bytes: int
    ) -> None:
        self.codec, self.pixels, self.grid = codec, pixels, grid
        self.whole = max_bytes >= WHOLE_FROM and grid == codec.grid(*pixels.shape[1:])
        height, width = pixels.shape[1:]
        small = filling.resize(pixels, *filling.coded_size(codec, height, width, *grid))
        self.target = rd.Target.of(codec.latent(small[None])[0], codec.model.quantizer)
        self.shape = (*grid, subcodes)
        self.codes: NDArray[np.uint8] = np.zeros(self.shape, np.uint8)  # of the last file

    def file(self, price: float) -> bytes:
        """The file of the codes that are worth their bits."""
        model = self.codec.needed_prior()
        (found,) = rd.choose(model, [self.target], [self.shape], PLAN, price)
        self.codes = schedule.from_windows(found.codes, *self.grid)
        height, width = self.pixels.shape[1:]
        start, length = found.intervals()
        if not self.whole:
            payload = range_coder.encode_shortest(start, length)
            return single.compress_compact(
                self.codec, self.codes, height, width, PLAN, payload=payload
            )
        payload = range_coder.encode_intervals(start, length)
        batch = torch.from_numpy(self.codes)[None]
        return single.compress_codes(self.codec, batch, height, width, PLAN, payloads=[payload])[0]

    def fit(self, max_bytes: int, price: float) -> Choice | None:
        """The file of the lowest price that fits, nearly; ``price`` is where to begin.

        Bytes fall with the price, as its root or faster.  So the logarithm of one is a smooth
        function of that of the other: by interpolation between the nearest price that fits and the
        nearest that does not, and by halves where that does not help.
        """
        low: Point = math.log(LEAST), None
        high: Point = math.log(MOST), None
        at, best = min(max(math.log(price), low[0]), high[0]), None
        enough = max_bytes - max(1.0, SLACK * max_bytes)
        for trial in range(TRIALS):
            data = self.file(math.exp(at))
            over = math.log(len(data) / max_bytes)
            if over <= 0:
                best, high = (data, self.codes, math.exp(at)), (at, over)
            else:
                low = (at, over)
            if enough <= len(data) <= max_bytes or high[0] - low[0] < CLOSE:
                break
            at = _between(low, high, at + 2 * over, trial)
        return None if best is None else self._measure(*best)

    def _measure(self, data: bytes, codes: NDArray[np.uint8], price: float) -> Choice:
        """What the reader of a file will see."""
        size = self.pixels.shape[1] * self.pixels.shape[2]
        stream = single.parse(self.codec, data, size)
        shown = single.show(self.codec, codes, stream, stream.stages, None)
        return Choice(data, stream, psnr(self.pixels.cpu().numpy(), shown.cpu().numpy()), price)


def _between(low: Point, high: Point, guess: float, trial: int) -> float:
    """The next logarithm of a price to try, inside of low .. high."""
    if low[1] is None and trial >= TRUSTED:  # is any file too large?
        return low[0]
    if low[1] is not None and high[1] is not None and trial % 3:
        share = (low[1] + SLACK / 2) / max(low[1] - high[1], 1e-9)
        guess = low[0] + (high[0] - low[0]) * min(max(share, 0.05), 0.95)
    elif low[1] is not None and high[1] is not None:
        guess = (low[0] + high[0]) / 2
    if guess <= low[0]:  # its end has not been tried, unless it has a value
        return low[0] if low[1] is None else (low[0] + high[0]) / 2
    if guess >= high[0]:
        return high[0] if high[1] is None else (low[0] + high[0]) / 2
    return guess
