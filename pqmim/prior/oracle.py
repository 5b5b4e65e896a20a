"""The specification of the entropy model as plain int64 NumPy: slow, obvious, and the judge.

Nothing here is shared with ``pqmim.prior.exact`` but constants: shifts are ``>>``, divisions are
``//``, the neighbours are looked up one by one and positions outside the image do not exist.  It is
also the last resort of a machine whose tensor library fails the model's test vector.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from pqmim.prior.config import WINDOW, PriorConfig

Ints = NDArray[np.int64]
Tensors = Mapping[str, NDArray[np.integer]]


def clamp(x: Ints, limit: int) -> Ints:
    """Saturate to +-limit."""
    return np.minimum(np.maximum(x, -limit), limit)


def isqrt(x: Ints) -> Ints:
    """Integer square root, element by element."""
    return np.array([math.isqrt(int(v)) for v in x.ravel()], dtype=np.int64).reshape(x.shape)


def norm(x: Ints) -> Ints:
    """Residual -> x / rms in 1/16."""
    dims = x.shape[-1]
    gain = (math.isqrt(4 * 65536 * dims) + 1) // 2  # round(256 sqrt(dims))
    s = np.maximum(1, isqrt(256 * (x * x).sum(-1, keepdims=True)))
    return clamp((2 * gain * x + s) // (2 * s), 127)


def linear(tensors: Tensors, name: str, x: Ints, limit: int) -> Ints:
    """sat((W x + b) >> shift)."""
    weight, bias, shift = (
        tensors[f"{name}.{part}"].astype(np.int64) for part in ("weight", "bias", "shift")
    )
    return clamp((x @ weight.T + bias) >> shift, limit)


def gather_neighbours(y: Ints, places: list[tuple[int, int]]) -> Ints:
    """[n, D] -> [n, 8 D]."""
    row_of = {place: row for row, place in enumerate(places)}
    zero = np.zeros_like(y[0])
    around = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
    rows = []
    for i, j in places:
        found = [row_of.get((i + a, j + b)) for a, b in around]
        rows.append(np.concatenate([zero if f is None else y[f] for f in found]))
    return np.stack(rows)


def attention(
    tensors: Tensors, name: str, y: Ints, heads: int, places: list[tuple[int, int]]
) -> Ints:
    """[n, D] -> [n, D]."""
    count, dims = y.shape
    score_shift, value_shift, _ = (int(v) for v in tensors[f"{name}.exponents"])
    packed = linear(tensors, f"{name}.query_key_value", y, 127).reshape(count, 3, heads, -1)
    rows = np.array([p[0] for p in places])
    columns = np.array([p[1] for p in places])
    dy = rows[None, :] - rows[:, None] + WINDOW - 1  # key minus query
    dx = columns[None, :] - columns[:, None] + WINDOW - 1
    mixed = np.empty((count, heads, dims // heads), dtype=np.int64)
    for h in range(heads):
        q, k, v = packed[:, 0, h], packed[:, 1, h], packed[:, 2, h]
        scores = q @ k.T + tensors[f"{name}.position"][h].astype(np.int64)[dy, dx]
        steps = np.minimum((scores.max(1, keepdims=True) - scores) >> score_shift, 384)
        weight = ((((64 - (steps & 31)) * 256) >> (steps >> 5)) + 64) >> 7
        total = weight.sum(1, keepdims=True)
        mixed[:, h] = clamp((weight @ v * 2 ** (value_shift + 1) + total) // (2 * total), 127)
    return mixed.reshape(count, dims)


def feed_forward(tensors: Tensors, name: str, y: Ints) -> Ints:
    """[n, D] -> [n, D]."""
    shift = int(tensors[f"{name}.exponents"][2])
    u = linear(tensors, f"{name}.up", y, 2047)
    h = clamp((u * np.clip(u + 128, 0, 256) + (1 << (shift - 1))) >> shift, 127)
    return linear(tensors, f"{name}.down", h, 2**17)


def hidden(config: PriorConfig, tensors: Tensors, tokens: Ints, present: NDArray[np.bool_]) -> Ints:
    """One window: tokens [16, 16, M], present [16, 16] -> [positions present, D], raster order.

    The residual if the model has a chain, else normalised.
    """
    places = [(int(i), int(j)) for i, j in np.argwhere(present)]
    x = np.stack(
        [
            sum(
                tensors["codes"][m, tokens[i, j, m]].astype(np.int64)
                for m in range(len(tokens[i, j]))
            )
            + tensors["row"][i]
            + tensors["column"][j]
            for i, j in places
        ]
    )
    x = clamp(x, 2**17 - 1)
    for b, local in enumerate(config.local):
        name = f"blocks.{b}"
        if local:
            around = gather_neighbours(norm(x), places)
            x = clamp(x + linear(tensors, f"{name}.local", around, 2**17), 2**17 - 1)
        mixed = attention(tensors, name, norm(x), config.heads, places)
        x = clamp(x + linear(tensors, f"{name}.out", mixed, 2**17), 2**17 - 1)
        x = clamp(x + feed_forward(tensors, name, norm(x)), 2**17 - 1)
    return x if config.chain else norm(x)


def logits(config: PriorConfig, tensors: Tensors, rows: Ints, part: int, before: Ints) -> Ints:
    """[n, D] -> [n, sub-codes of the part, K]; ``before`` [n, j] are codes of the same group."""
    if config.chain:
        first = part // config.group * config.group
        told = [
            sum((tensors["chain"][first + j, c].astype(np.int64) for j, c in enumerate(row)), x)
            for x, row in zip(rows, before, strict=True)
        ]
        rows = norm(clamp(np.stack(told), 2**17 - 1))
    count = config.together * config.codewords
    span = slice(part * count, (part + 1) * count)
    head = {f"head.{p}": tensors[f"head.{p}"][span] for p in ("weight", "bias", "shift")}
    return linear(head, "head", rows, 2**15).reshape(len(rows), config.together, config.codewords)


@functools.cache
def exponential_table() -> list[int]:
    """2**20 * 2**(-i / 32) for i in 0..767, rounded half up, by 28 decimal digits."""
    return [int(Decimal(2) ** (Decimal(640 - i) / 32) + Decimal("0.5")) for i in range(768)]


def frequencies(row: Ints) -> Ints:
    """Logits [K] of one symbol -> weights, frequency - 1, that sum to 2**24 - K."""
    table = exponential_table()
    total_weight = 2**24 - len(row)
    best = int(row.max())
    e = [table[min(best - int(v), 767)] for v in row]
    weights = [v * total_weight // sum(e) for v in e]
    weights[[int(v) for v in row].index(best)] += total_weight - sum(weights)
    return np.array(weights, dtype=np.int64)
