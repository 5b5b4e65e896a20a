"""Integer probabilities: logits to frequencies, and what a symbol costs.

Every symbol's frequencies are integers that sum to 2**24, made from integer logits by exact
arithmetic (float64 on integers below 2**53): the same on every machine, so that a range coder
(``pqmim.coding.range_coder``) elsewhere finds the same symbols.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from pqmim.prior.exact import OCTAVE

TOTAL_BITS = 24
TOTAL = 1 << TOTAL_BITS
TABLE_STEPS = 24 * OCTAVE  # below 2**-24 every frequency is the least one
EXPONENT_BITS = 20


@functools.cache
def exponential_table() -> tuple[int, ...]:
    """round(2**20 * 2**(-i / 32)), halves up, for i in 0..767; by integer roots only."""
    table = []
    for i in range(TABLE_STEPS):
        power = OCTAVE * (EXPONENT_BITS + 1) - i  # (2 * value) ** 32 == 2 ** power
        twice = 0 if power < 0 else 1 << power
        for _ in range(int(math.log2(OCTAVE))):
            twice = math.isqrt(twice)
        table.append((twice + 1) // 2)
    return tuple(table)


def weights(logits: Tensor) -> Tensor:
    """Integer logits [..., K] in 1/32 octave -> frequency - 1, float64 [..., K].

    The integers of a row sum to 2**24 - K; what flooring leaves goes to the first of the best.
    Costs 3 microseconds a symbol on one core at K = 256, half of it the table and the division.
    """
    codewords, device = logits.shape[-1], logits.device
    best = logits.amax(-1, keepdim=True)
    steps = (best - logits).clamp_(max=TABLE_STEPS - 1).to(torch.int32)
    table = torch.tensor(exponential_table(), dtype=torch.float64, device=device)
    e = table.index_select(0, steps.reshape(-1)).reshape(logits.shape)
    total = e.sum(-1, keepdim=True)
    w = e.mul_(TOTAL - codewords).div_(total).floor_()
    rest = (TOTAL - codewords) - w.sum(-1, keepdim=True)
    from_end = torch.arange(codewords, 0, -1, dtype=logits.dtype, device=device)
    first = codewords - ((logits == best) * from_end).amax(-1, keepdim=True)
    return w.scatter_add_(-1, first.to(torch.int64), rest)


def intervals(weight: Tensor, symbols: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [n, K] and symbols int64 [n] -> start and length of each in 2**24, int64 [n]."""
    ends = weight.cumsum(-1)  # integers below 2**24: exact in any order
    picked = symbols[:, None]
    own = weight.gather(-1, picked)
    start = ends.gather(-1, picked) - own + picked
    return start[:, 0].to(torch.int64), (own[:, 0] + 1).to(torch.int64)


def cheapest(error: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """Codes int64 [n, g] of least error * scale + bits.

    ``error`` float32 [g, n, K], which is overwritten; ``scale`` [g]; weights [n, g, K].
    """
    error *= scale[:, None, None]
    error -= (weight.transpose(0, 1).to(error.dtype) + 1.0).log2_()
    return error.argmin(-1).T
