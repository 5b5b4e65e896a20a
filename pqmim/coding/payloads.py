"""Grids of codes <-> bytes, with the masked model: one range coder, all stages in order.

    codes [h, w, m] --windows of 16 x 16--> for each stage: mask what is not sent yet
        --model--> integer logits --> integer frequencies --> intervals --range coder--> bytes

Order of the symbols: stage, sub-code, window (raster), position in the window (raster).  So a
sub-code is told those of its group before it, at its own position (the chain).  Models without a
chain code the sub-codes of a group at once: stage, window, position, sub-code.

Sub-codes beyond quality m carry the mask, so the stream of quality 4 g begins with the same
symbols, at the same probabilities, as any finer one: the decoder may stop after any group.

The encoder knows all codes, so all stages run in large batches; the decoder runs them in turn.
That they agree rests on the model alone, which is exact (``pqmim.prior.exact``).

The first n stages alone are a stream too (``sent``), and any prefix of a payload decodes to a
prefix of the stages (:func:`decode_prefix`).  Codes that were not sent read as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqmim.coding import range_coder, schedule
from pqmim.coding.windows import NEVER, Batch, Grid, Shape
from pqmim.meter import Watch
from pqmim.prior import frequencies
from pqmim.prior.engine import Model

WINDOWS_AT_ONCE = {"cpu": 4, "cuda": 128}  # attention scores of 6 MB fit a core's cache

Job = tuple[Grid, int, int]  # window and stage of a grid
Coder = Callable[[NDArray[np.int64], NDArray[np.int64]], bytes]  # intervals to a payload


def predict(model: Model, jobs: Sequence[Job]) -> list[tuple[Job, Tensor]]:
    """Each (grid, window, stage) with the model's rows [n, D] of its cells.

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
    by_key = dict(zip(places, rows.split(inputs[2].sum((1, 2)).tolist()), strict=True))
    return [(job, by_key[key]) for job, key in zip(jobs, keys, strict=True)]


def turns(
    model: Model, known: Iterable[tuple[Job, Tensor]]
) -> Iterator[tuple[Batch, slice, Tensor]]:
    """Batches of windows, sub-codes of theirs, and the weights [n, sub-codes, K] of these.

    The jobs are of one group, with their rows of :func:`predict`.  Each sub-code comes for all
    windows of a grid before the next one: what the grids hold then is what the next one is told.
    """
    size = windows_at_once(model)
    for _, part in groupby(known, lambda pair: company(model, pair[0][0])):
        jobs = list(part)
        grid, _, stage = jobs[0][0]
        span = grid.span(grid.groups[stage])
        batches = [Batch.of(jobs[i : i + size]) for i in range(0, len(jobs), size)]
        for head, subcodes in model.config.parts(span):
            for batch in batches:
                told = batch.codes(slice(span.start, subcodes.start))
                weights = model.frequencies(batch.rows, head, told)
                yield batch, subcodes, weights[:, : subcodes.stop - subcodes.start]


def company(model: Model, grid: Grid) -> int:
    """Grids for which this is equal may share a batch: those of as many sub-codes.

    On a CPU none do, so that what a search computes in floats for one image has nothing to do with
    the others.
    """
    return id(grid) if model.device.type == "cpu" else grid.codes.shape[-1]


WATCH = Watch()  # of stages


def stage_turns(
    model: Model, grids: Sequence[Grid], stage: int
) -> Iterator[tuple[Batch, slice, Tensor]]:
    """:func:`turns` of all that one stage sends."""
    WATCH.tell(stage, max(len(grid.groups) for grid in grids))
    chunked = chunks(grids, [stage], windows_at_once(model))
    return turns(model, (pair for jobs in chunked for pair in predict(model, jobs)))


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


def measure(model: Model, grids: Sequence[Grid]) -> None:
    """Set the interval of every code that is sent."""
    longest = max((grid.groups for grid in grids), key=len, default=[])
    for group in sorted(set(longest)):
        stages = [s for s, g in enumerate(longest) if g == group]
        for jobs in chunks(grids, stages, windows_at_once(model)):
            for batch, subcodes, weights in turns(model, predict(model, jobs)):
                put_intervals(model, batch, subcodes, weights)


def put_intervals(model: Model, batch: Batch, subcodes: slice, weights: Tensor) -> None:
    """Set those of the codes that the grids hold, from weights [n, sub-codes, K]."""
    codes = batch.codes(subcodes)
    starts, lengths = model.intervals(weights.flatten(0, 1), codes.reshape(-1))
    batch.put("starts", subcodes, starts.reshape(codes.shape).cpu().numpy())
    batch.put("lengths", subcodes, lengths.reshape(codes.shape).cpu().numpy())


def encode_images(
    model: Model,
    images: Sequence[NDArray[np.uint8]],
    plan: Sequence[int],
    sent: int | None = None,
    coder: Coder = range_coder.encode_intervals,
) -> list[bytes]:
    """Codes [h, w, m] of each image -> its payload, of the first ``sent`` stages (None: all).

    Raises:
        ValueError, ScheduleError: see :meth:`Grid.of`.
    """
    grids = [Grid.of(codes, plan, model.config, sent) for codes in images]
    measure(model, grids)
    return [coder(*grid.intervals()) for grid in grids]


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
    coders = [range_coder.Decoder(payload) for payload in payloads]
    by_grid = {id(grid): coder for grid, coder in zip(grids, coders, strict=True)}
    for stage in range(max((len(grid.groups) for grid in grids), default=0)):
        for batch, subcodes, weights in stage_turns(model, grids, stage):
            runs = batch.split(weights.to(torch.float32).cpu().numpy())
            codes = [_decode(by_grid[id(grid)], own) for grid, _, own in runs]
            batch.put("codes", subcodes, np.concatenate(codes))
    if to_end and not all(coder.exhausted() for coder in coders):
        raise range_coder.PayloadError("the payload goes on after the last code")
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
    grid = Grid.of(np.zeros(shape, dtype=np.uint8), plan, model.config, sent)
    words = payload[: len(payload) // 4 * 4]
    rest = 4 * math.prod(shape) + 8  # no code takes more than 24 bits
    coders = [range_coder.Decoder(words + fill * rest) for fill in (b"\x00", b"\xff")]
    whole = 0
    try:
        for stage in range(len(grid.groups)):
            for batch, subcodes, weights in stage_turns(model, [grid], stage):
                rows = weights.to(torch.float32).cpu().numpy()
                low, high = (_decode(coder, rows) for coder in coders)
                if (low != high).any():
                    raise range_coder.PayloadError("cut within this stage")
                batch.put("codes", subcodes, low)
            whole += 1
    except range_coder.PayloadError:
        grid.codes[grid.stages >= whole] = 0
    return schedule.from_windows(grid.codes, *shape[:2]), whole


def _decode(coder: range_coder.Decoder, weights: NDArray[np.float32]) -> NDArray[np.int32]:
    """The next symbols, [n, sub-codes]."""
    flat = weights.reshape(-1, weights.shape[-1])
    return coder.decode(flat).reshape(weights.shape[:2])


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
    measure(model, grids)
    for grid in grids:
        for g in sorted(set(grid.groups)):
            sent = grid.lengths[..., grid.span(g)]
            sent = sent[sent > 0]
            bits[g] += frequencies.TOTAL_BITS * sent.size - np.log2(sent).sum()
            counts[g] += sent.size
    return [float(b / c) for b, c in zip(bits, counts, strict=True) if c]
