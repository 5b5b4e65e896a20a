"""Fill the codes that were not sent: iterative masked decoding with the entropy model.

    codes [B,h,w,m], known bool --for each group, coarse first: for each step-->
        model --integer logits--> / temperature --integer frequencies--> draw --> codes [B,h,w,m]

The order is the one that the model was trained on, so nothing is retrained: a group of sub-codes is
filled at all positions before the next one begins, with coarser groups known and finer ones masked
(those that were sent too: the model never saw them), the missing positions in Bayer order.  Every
code is drawn once, from what the coder would give it.  The other order, most certain first
(MaskGIT, Chang et al. 2022), was tried: it prefers flat codes and was worse by up to 2 dB.

All of it is exact integers: logits (``pqmim.prior.exact``), their division by a temperature in
units of 1/256, frequencies (``pqmim.prior.frequencies``), and a counter-based generator over (seed,
row, column, sub-code).  So a seed names one set of codes on every device, at any batch size.

Costs one pass of the model per window, group and step that has something to fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqmim.coding import schedule
from pqmim.coding.payloads import windows_at_once
from pqmim.completion.rule import TEMPERATURE_ONE, CompletionError, Rule
from pqmim.prior import frequencies as entropy
from pqmim.prior.config import PriorConfig
from pqmim.prior.engine import Model

Codes = NDArray[np.uint8]  # [B, h, w, m]
Mask = NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)

MASK_LANE = 2**32  # of the generator; sub-codes have the lanes 0, 1, ...
SPLITMIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass
class Work:
    """The windows of a batch while they fill up."""

    codes: Codes  # [W, 16, 16, m]
    known: Mask  # [W, 16, 16, m]
    present: Mask  # [W, 16, 16], inside the image
    streams: NDArray[np.uint64]  # [W, 16, 16], states of the generator, one a position
    mean: NDArray[np.float32]  # [W, 16, 16, m, d], of what was drawn; d = 0 if nobody asked


@dataclass(frozen=True)
class Turn:
    """What is filled in one pass: positions of some windows, sub-codes of one group."""

    group: int
    span: slice  # sub-codes
    windows: NDArray[np.int64]
    cells: Mask  # [windows, 16, 16]


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of SplitMix64 (Steele et al. 2014), modulo 2**64."""
    step, first, second = (np.uint64(c) for c in SPLITMIX)
    z = state + step
    z = (z ^ (z >> np.uint64(30))) * first
    z = (z ^ (z >> np.uint64(27))) * second
    return z ^ (z >> np.uint64(31))


def position_streams(seed: int, height: int, width: int) -> NDArray[np.uint64]:
    """[h, w]: a state of the generator for every position of an image."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint64)
    return _mix(_mix(np.full(1, seed, dtype=np.uint64)) ^ (rows << np.uint64(32) | columns))


def points(streams: NDArray[np.uint64], subcodes: slice) -> NDArray[np.int64]:
    """[n] states -> [n, sub-codes] uniform integers in 0..2**24 - 1."""
    lanes = np.arange(subcodes.start, subcodes.stop, dtype=np.uint64)
    return (_mix(streams[:, None] ^ lanes) >> np.uint64(64 - entropy.TOTAL_BITS)).astype(np.int64)


def frequencies(logits: Tensor, divisor: int) -> Tensor:
    """Integer logits [..., K] -> frequencies that sum to 2**24, at a temperature of divisor / 256.

    At 256 they are the coder's own.
    """
    wide = logits.to(torch.float64)
    gap = wide.amax(-1, keepdim=True) - wide
    gap = gap.mul_(TEMPERATURE_ONE).add_(divisor // 2).div_(divisor).floor_()
    return entropy.weights(gap.neg_()) + 1


def draw(logits: Tensor, divisor: int, at: Tensor) -> Tensor:
    """Logits [n, s, K] and points [n, s] in 0..2**24 - 1 -> codes int64 [n, s]."""
    if divisor:
        return (frequencies(logits, divisor).cumsum(-1) <= at[..., None]).sum(-1)
    codewords = logits.shape[-1]
    from_end = torch.arange(codewords, 0, -1, device=logits.device)  # the first of equals
    best = logits == logits.amax(-1, keepdim=True)
    return codewords - (best * from_end).amax(-1)


def start(codes: Codes, known: Mask, config: PriorConfig, seeds: Sequence[int]) -> Work:
    """Cut a batch [B, h, w, m] into windows.

    Raises:
        CompletionError: codes that are not of this model, or a mask of another shape.
    """
    if codes.dtype != np.uint8 or codes.ndim != 4 or 0 in codes.shape:
        raise CompletionError(f"codes must be uint8 [B, h, w, m], not {codes.dtype} {codes.shape}")
    if known.dtype != np.bool_ or known.shape != codes.shape:
        raise CompletionError(
            f"the mask must be bool {codes.shape} as the codes, not {known.dtype} {known.shape}"
        )
    if codes.shape[3] > config.subcodes:
        raise CompletionError(f"{codes.shape[3]} sub-codes, the model has {config.subcodes}")
    if (codes[known] >= config.codewords).any():
        raise CompletionError(f"codes of {config.codewords} or more: of another model?")
    streams = [position_streams(seed, *codes.shape[1:3])[..., None] for seed in seeds]
    kept = np.where(known, codes, 0)
    windows = _windows(kept)
    return Work(
        codes=windows,
        known=_windows(known),
        present=_windows(np.ones_like(known[..., :1]))[..., 0],
        streams=_windows(np.stack(streams))[..., 0],
        mean=np.zeros((*windows.shape, 0), dtype=np.float32),
    )


def _windows(grids: NDArray[Scalar]) -> NDArray[Scalar]:
    """[B, h, w, m] -> [windows of all, 16, 16, m]; 0 outside."""
    return np.concatenate([schedule.to_windows(grid, 0) for grid in grids])


def _grids(windows: NDArray[Scalar], shape: tuple[int, ...]) -> NDArray[Scalar]:
    """Undo :func:`_windows` for images of shape (B, h, w)."""
    batch, height, width = shape
    return np.stack(
        [schedule.from_windows(part, height, width) for part in np.split(windows, batch)]
    )


def complete(model: Model, codes: Codes, known: Mask, rule: Rule) -> Codes:
    """Codes with what is not ``known`` drawn by the model; known ones stay.

    Raises:
        CompletionError: codes that are not of this model, or a mask of another shape.
    """
    work = start(codes, known, model.config, rule.seeds(len(codes)))
    _fill(model, work, rule)
    return _grids(work.codes, codes.shape[:3])


def expected(model: Model, codes: Codes, known: Mask, codebook: Tensor) -> NDArray[np.float32]:
    """The mean codeword of every code that is not known, [B, h, w, m, d]; 0 where it is.

    One step a group; a coarser group that the next one leans on is the most probable one.  The mean
    is the fill of least squared error, where a draw is one of the pictures that may have been.
    """
    work = start(codes, known, model.config, [0] * len(codes))
    work.mean = np.zeros((*work.codes.shape, codebook.shape[-1]), dtype=np.float32)
    _fill(model, work, Rule(1, 0.0), codebook)
    means = work.mean.reshape(*work.mean.shape[:3], -1)
    return _grids(means, codes.shape[:3]).reshape(*codes.shape, -1)


def _fill(model: Model, work: Work, rule: Rule, codebook: Tensor | None = None) -> None:
    """Complete the windows in place; see the module."""
    subcodes, group, size = work.codes.shape[-1], model.config.group, windows_at_once(model)
    for g in range(schedule.groups_of(subcodes, group)):
        span = slice(g * group, min((g + 1) * group, subcodes))
        missing = work.present & ~work.known[..., span].all(-1)
        turns = _turns(missing, rule.steps)
        done = work.known.copy()
        done[..., : span.start] = True
        done[..., span.stop :] = False
        for step in range(rule.steps):
            cells = turns == step
            busy = np.flatnonzero(cells.any((1, 2)))
            for first in range(0, len(busy), size):
                chosen = busy[first : first + size]
                _take(model, work, done, Turn(g, span, chosen, cells[chosen]), rule, codebook)
            done[cells, span] = True


def _turns(missing: Mask, steps: int) -> NDArray[np.int64]:
    """[W, 16, 16]: the step in which each missing position is filled, -1 for the others.

    Of n missing positions n s^2 / S^2 are filled after step s of S, in Bayer order.
    """
    order = np.argsort(schedule.bayer_ranks().reshape(-1))
    flat = missing.reshape(len(missing), -1)[:, order]
    count = flat.sum(1, keepdims=True)
    before = flat.cumsum(1) - 1  # missing positions that come earlier
    squares = np.arange(1, steps + 1) ** 2
    ends = count * squares // steps**2  # [W, S]
    turn = (before[:, :, None] >= ends[:, None, :]).sum(-1)
    result = np.empty_like(turn)
    result[:, order] = np.where(flat, turn, -1)
    return result.reshape(missing.shape)


def _take(
    model: Model, work: Work, done: Mask, turn: Turn, rule: Rule, codebook: Tensor | None
) -> None:
    """One pass of the model, and the codes of one turn; ``done`` is what the model may see."""
    present, device = work.present[turn.windows], model.device
    shape = (*present.shape, model.config.subcodes)
    tokens = np.full(shape, model.config.mask, dtype=np.int64)
    seen = done[turn.windows] & present[..., None]
    tokens[..., : seen.shape[-1]][seen] = work.codes[turn.windows][seen]
    rows = model.rows(*(torch.from_numpy(a).to(device) for a in (tokens, present, turn.cells)))
    which, y, x = np.nonzero(turn.cells)
    place = (turn.windows[which], y, x)
    filled = work.codes[place]  # a copy, [n, m]
    for head, span in model.config.parts(turn.span):
        before = torch.from_numpy(filled[:, turn.span.start : span.start].astype(np.int64))
        logits = model.logits(rows, head, before.to(device))[:, : span.stop - span.start]
        at = torch.from_numpy(points(work.streams[place], span)).to(device)
        drawn = draw(logits, rule.divisor, at).cpu().numpy()
        known = work.known[place][:, span]
        filled[:, span] = np.where(known, filled[:, span], drawn)
        if codebook is not None:
            share = (frequencies(logits, TEMPERATURE_ONE) / entropy.TOTAL).to(codebook)
            means = torch.einsum("nsk,skd->nsd", share, codebook[span]).cpu().numpy()
            work.mean[..., span, :][place] = np.where(known[..., None], 0, means)
    work.codes[place] = filled
