"""Grids of codes <-> bytes, with the masked model: one range coder, all stages in order.

    codes [h, w, m] --windows of 16 x 16--> for each stage: mask what is not sent yet
        --model--> integer logits --> integer frequencies --> intervals --range coder--> bytes

Order of the symbols: stage, window (raster), position in the window (raster), sub-code.  Sub-codes
beyond quality m carry the mask, so the stream of quality 4 g begins with the same symbols, at the
same probabilities, as any finer one: the decoder may stop after any group.

The encoder knows all codes, so all stages run in large batches; the decoder runs them in turn.
That they agree rests on the model alone, which is exact (``pqmim.exact``).

The first n stages alone are a stream too (``sent``), and any prefix of a payload decodes to a
prefix of the stages (:func:`decode_prefix`).  Codes that were not sent read as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqmim import entropy, schedule
from pqmim.integer import Model
from pqmim.prior_config import PriorConfig
from pqmim.schedule import WINDOW

NEVER = -1  # stage of what lies outside the image
WINDOWS_AT_ONCE = {"cpu": 4, "cuda": 128}  # attention scores of 6 MB fit a core's cache

Shape = tuple[int, int, int]  # h, w, m
Coder = Callable[[NDArray[np.int64], NDArray[np.int64]], bytes]  # intervals to a payload


@dataclass
class Grid:
    """One image's codes in windows, and when each is sent."""

    codes: NDArray[np.uint8]  # [W, 16, 16, m]
    stages: NDArray[np.int16]  # [W, 16, 16, m], NEVER outside the image
    groups: list[int]  # of each stage that is sent
    config: PriorConfig

    @classmethod
    def of(
        cls,
        codes: NDArray[np.uint8],
        plan: Sequence[int],
        config: PriorConfig,
        sent: int | None = None,
    ) -> Grid:
        """Cut a grid [h, w, m] into windows; only the first ``sent`` stages are sent (None: all).

        Raises:
            ValueError: not uint8, no position, more sub-codes than the model, or no such codeword.
            ScheduleError: the plan does not cover m sub-codes, or has fewer stages.
        """
        if codes.dtype != np.uint8 or codes.ndim != 3 or 0 in codes.shape:
            raise ValueError(f"codes must be uint8 [h, w, m], not {codes.dtype} {codes.shape}")
        height, width, subcodes = codes.shape
        if subcodes > config.subcodes:
            raise ValueError(f"{subcodes} sub-codes, but the entropy model has {config.subcodes}")
        if codes.max() >= config.codewords:
            raise ValueError(f"code {codes.max()} is not below {config.codewords}")
        stages = schedule.stage_map(height, width, subcodes, plan, config.group)
        groups = schedule.stage_groups(subcodes, plan, config.group)
        if sent is not None and not 1 <= sent <= len(groups):
            raise schedule.ScheduleError(f"{sent} stages sent of a plan that has {len(groups)}")
        return cls(
            schedule.to_windows(codes, 0),
            schedule.to_windows(stages, NEVER),
            groups[:sent],
            config,
        )

    def windows_of(self, stage: int) -> NDArray[np.int64]:
        """Windows in which this stage sends something (small ones may skip stages)."""
        return np.flatnonzero((self.stages == stage).any(axis=(1, 2, 3)))

    def tokens(self, window: int, stage: int) -> NDArray[np.int64]:
        """What the model may see before this stage, [16, 16, M]."""
        tokens = np.full((WINDOW, WINDOW, self.config.subcodes), self.config.mask, dtype=np.int64)
        stages = self.stages[window]
        known = (stages < stage) & (stages != NEVER)
        tokens[..., : stages.shape[-1]][known] = self.codes[window][known]
        return tokens

    def cells(self, window: int, stage: int) -> NDArray[np.bool_]:
        """Positions that this stage sends, [16, 16]; every sub-code of its group at once."""
        return (self.stages[window] == stage).any(axis=-1)

    def span(self, group: int) -> slice:
        """Sub-codes of this image that belong to the group."""
        first = group * self.config.group
        return slice(first, min(first + self.config.group, self.codes.shape[-1]))


def predict(model: Model, jobs: Sequence[tuple[Grid, int, int]], group: int) -> list[Tensor]:
    """Weights [n, sub-codes of the group, K] of each (grid, window, stage), all of one group.

    Read only: windows of one shape share theirs in the first stage, when nothing is known.
    """
    places: dict[object, tuple[NDArray, NDArray, NDArray]] = {}
    keys: list[object] = []
    for grid, window, stage in jobs:
        present, cells = grid.stages[window, ..., 0] != NEVER, grid.cells(window, stage)
        keys.append((id(grid), window, stage) if stage else (present.tobytes(), cells.tobytes()))
        places.setdefault(keys[-1], (grid.tokens(window, stage), present, cells))
    inputs = [torch.from_numpy(np.stack(part)) for part in zip(*places.values(), strict=True)]
    rows = model.rows(*(part.to(model.device) for part in inputs))
    weights = model.frequencies(rows, group).split(inputs[2].sum((1, 2)).tolist())
    by_key = dict(zip(places, weights, strict=True))
    return [by_key[key] for key in keys]


def windows_at_once(model: Model) -> int:
    """Windows of one pass of the model."""
    return WINDOWS_AT_ONCE.get(model.device.type, WINDOWS_AT_ONCE["cpu"])


def chunks(
    grids: Sequence[Grid], stages: Sequence[int], size: int
) -> Iterator[list[tuple[Grid, int, int]]]:
    """All (grid, window, stage) of the stages, in lists of at most ``size``."""
    jobs = [
        (grid, int(window), stage)
        for stage in stages
        for grid in grids
        if stage < len(grid.groups)
        for window in grid.windows_of(stage)
    ]
    for first in range(0, len(jobs), size):
        yield jobs[first : first + size]


def intervals(
    model: Model, grids: Sequence[Grid]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Start and length in 2**24 of every code, [W, 16, 16, m] per grid (0 outside)."""
    found = [(np.zeros(g.codes.shape, np.int64), np.zeros(g.codes.shape, np.int64)) for g in grids]
    by_grid = {id(grid): pair for grid, pair in zip(grids, found, strict=True)}
    longest = max((grid.groups for grid in grids), key=len, default=[])
    for group in sorted(set(longest)):
        stages = [s for s, g in enumerate(longest) if g == group]
        for jobs in chunks(grids, stages, windows_at_once(model)):
            for (grid, window, stage), weights in zip(
                jobs, predict(model, jobs, group), strict=True
            ):
                span, cells = grid.span(group), grid.cells(window, stage)
                symbols = torch.from_numpy(grid.codes[window][cells][:, span].astype(np.int64))
                flat = weights[:, : symbols.shape[1]].flatten(0, 1)
                pair = model.intervals(flat, symbols.reshape(-1).to(flat.device))
                for whole, values in zip(by_grid[id(grid)], pair, strict=True):
                    whole[window, ..., span][cells] = values.reshape(symbols.shape).cpu().numpy()
    return found


def encode_images(
    model: Model,
    images: Sequence[NDArray[np.uint8]],
    plan: Sequence[int],
    sent: int | None = None,
    coder: Coder = entropy.encode_intervals,
) -> list[bytes]:
    """Codes [h, w, m] of each image -> its payload, of the first ``sent`` stages (None: all).

    Raises:
        ValueError, ScheduleError: see :meth:`Grid.of`.
    """
    grids = [Grid.of(codes, plan, model.config, sent) for codes in images]
    payloads = []
    for grid, (start, length) in zip(grids, intervals(model, grids), strict=True):
        order = [grid.stages == stage for stage in range(len(grid.groups))]
        payloads.append(
            coder(
                np.concatenate([start[sent] for sent in order]),
                np.concatenate([length[sent] for sent in order]),
            )
        )
    return payloads


def decode_images(
    model: Model,
    payloads: Sequence[bytes],
    shapes: Sequence[Shape],
    plan: Sequence[int],
    sent: int | None = None,
    *,
    to_end: bool = False,
) -> list[NDArray[np.uint8]]:
    """Undo :func:`encode_images`; ``shapes`` are the (h, w, m) of the images.

    m may be smaller than what was sent, if it is a multiple of the group.  Most damage decodes to
    wrong codes: check a checksum of the result.

    Args:
        model: the entropy model that the payloads were made with.
        payloads: one an image.
        shapes: one an image.
        plan: the plan that they were made with.
        sent: how many stages to decode; what is not sent reads as 0.
        to_end: whether bytes after the last code are an error.

    Raises:
        PayloadError: a payload that is cut off or that no encoder wrote.
        ValueError, ScheduleError: see :meth:`Grid.of`.
    """
    grids = [Grid.of(np.zeros(shape, np.uint8), plan, model.config, sent) for shape in shapes]
    coders = [entropy.Decoder(payload) for payload in payloads]
    by_grid = {id(grid): coder for grid, coder in zip(grids, coders, strict=True)}
    for stage in range(max((len(grid.groups) for grid in grids), default=0)):
        for grid, window, weights in _predictions(model, grids, stage):
            _put(grid, window, stage, by_grid[id(grid)].decode(weights))
    if to_end and not all(coder.exhausted() for coder in coders):
        raise entropy.PayloadError("the payload goes on after the last code")
    return [
        schedule.from_windows(grid.codes, height, width)
        for grid, (height, width, _) in zip(grids, shapes, strict=True)
    ]


def decode_prefix(
    model: Model, payload: bytes, shape: Shape, plan: Sequence[int], sent: int | None = None
) -> tuple[NDArray[np.uint8], int]:
    """As much as a payload that was cut anywhere tells: the codes, and how many stages are whole.

    A stage is whole if its codes are the same whatever follows the cut: the missing bytes are tried
    as zeros and as ones, and a range coder's symbols are monotone in them.  Later stages read as 0.

    Raises:
        ValueError, ScheduleError: see :meth:`Grid.of`.
    """
    height, width, subcodes = shape
    grid = Grid.of(np.zeros(shape, dtype=np.uint8), plan, model.config, sent)
    words = payload[: len(payload) // 4 * 4]
    rest = 4 * height * width * subcodes + 8  # no code takes more than 24 bits
    coders = [entropy.Decoder(words + fill * rest) for fill in (b"\x00", b"\xff")]
    whole = 0
    try:
        for stage in range(len(grid.groups)):
            for _, window, weights in _predictions(model, [grid], stage):
                low, high = (coder.decode(weights) for coder in coders)
                if (low != high).any():
                    raise entropy.PayloadError("cut within this stage")
                _put(grid, window, stage, low)
            whole += 1
    except entropy.PayloadError:
        grid.codes[grid.stages >= whole] = 0
    return schedule.from_windows(grid.codes, height, width), whole


def _predictions(
    model: Model, grids: Sequence[Grid], stage: int
) -> Iterator[tuple[Grid, int, NDArray[np.float32]]]:
    """(grid, window, weights [n, K]) of every window that this stage sends codes of, in order."""
    for jobs in chunks(grids, [stage], windows_at_once(model)):
        group = jobs[0][0].groups[stage]
        for (grid, window, _), weights in zip(jobs, predict(model, jobs, group), strict=True):
            span = grid.span(group)
            rows = weights[:, : span.stop - span.start].flatten(0, 1)
            yield grid, window, rows.to(torch.float32).cpu().numpy()


def _put(grid: Grid, window: int, stage: int, symbols: NDArray[np.int32]) -> None:
    """Write the decoded symbols of one window and stage into the grid."""
    span, cells = grid.span(grid.groups[stage]), grid.cells(window, stage)
    values = symbols.reshape(-1, span.stop - span.start).astype(np.uint8)
    grid.codes[window, ..., span][cells] = values


def code_image(model: Model, codes: NDArray[np.uint8], plan: Sequence[int]) -> bytes:
    """:func:`encode_images` of one image."""
    return encode_images(model, [codes], plan)[0]


def decode_image(
    model: Model, payload: bytes, shape: tuple[int, int, int], plan: Sequence[int]
) -> NDArray[np.uint8]:
    """:func:`decode_images` of one image."""
    return decode_images(model, [payload], [shape], plan)[0]


def bits_per_code(
    model: Model, images: Sequence[NDArray[np.uint8]], plan: Sequence[int]
) -> list[float]:
    """Ideal code length of each group, in bits per code, over all images."""
    grids = [Grid.of(codes, plan, model.config) for codes in images]
    bits, counts = np.zeros(model.config.groups), np.zeros(model.config.groups)
    for grid, (_, length) in zip(grids, intervals(model, grids), strict=True):
        for g in sorted(set(grid.groups)):
            sent = length[..., grid.span(g)]
            sent = sent[sent > 0]
            bits[g] += entropy.TOTAL_BITS * sent.size - np.log2(sent).sum()
            counts[g] += sent.size
    return [float(b / c) for b, c in zip(bits, counts, strict=True) if c]
