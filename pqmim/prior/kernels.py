"""The elementwise parts of the entropy model as compiled integer loops, one pass over memory each.

The tensor form makes up to ten passes over every matrix, and they, not the products, are nine
tenths of its time on a CPU; here each row is read once and is still in cache for the next step.
All arithmetic is int32, as in ``pqmim.prior.oracle``, but for two divisions, done in float64:

* by a reciprocal, where the quotient is small: if a and d are integers, a / d is an integer or at
  least 1 / d below the next one, so floor(a * (1 / d) + NUDGE / 2) is right as long as 1 / d is
  above NUDGE and the rounding error, below 2**-35 for quotients up to 2**16, is below NUDGE / 2;
* exactly, where it is not (frequencies).

Needs numba.  The first use on a machine compiles for some seconds, then the result is cached:
beside this file, or in the user's cache directory (``NUMBA_CACHE_DIR``) if that is read-only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from pqmim.prior import exact

if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise ImportError("numba does not compile (NUMBA_DISABLE_JIT)")

Ints = NDArray[np.int32]
Bytes = NDArray[np.int8]
Floats = NDArray[np.float32]

CompileError = numba.core.errors.NumbaError
i4, f4 = np.int32, np.float32
SIDE = 16
KEYS = exact.POSITIONS
ABSENT = -(2**30)  # added to a score: no weight, whatever the shift
CENTRE = 64  # attention weights 0..128 less this are int8 operands
RESIDUAL = exact.RESIDUAL
UPDATE = 2**17  # limit of what a layer adds to the residual
HIDDEN, LIMIT, LOGIT = exact.HIDDEN, exact.ACTIVATION, exact.LOGIT
LAST_STEP = exact.LAST_STEP
WEIGHT_BITS = (127 + 7) << 23  # of the float 128
NUDGE = 2.0**-28


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Machine code at the first call; kept on disk where a directory can be written."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except (RuntimeError, OSError):  # no place for a cache
        return numba.njit(nogil=True, error_model="numpy")(function)


@compiled
def clamp(value: Any, limit: int) -> Any:
    """Saturate an int32."""
    return max(i4(-limit), min(i4(limit), value))


@compiled
def shifted(value: Any, bias: Any, shift: Any) -> Any:
    """(value + bias) >> shift in int32."""
    return i4(i4(value + bias) >> i4(shift & i4(31)))


@compiled
def embed(tokens: Ints, codes: NDArray[np.int16], place: Ints, x: Ints) -> None:
    """Rows [n, M] of the table ``codes``, summed, plus ``place`` over and over -> residual.

    Two at a time, which saves half of the loads and stores.
    """
    subcodes, dims = tokens.shape[1], x.shape[1]
    for r in range(len(tokens)):
        own, row, origin = x[r], tokens[r], place[r % len(place)]
        for d in range(dims):
            own[d] = origin[d]
        for m in range(0, subcodes - 1, 2):
            one, two = codes[row[m]], codes[row[m + 1]]
            for d in range(dims):
                own[d] += i4(i4(one[d]) + i4(two[d]))
        if subcodes % 2:
            one = codes[row[subcodes - 1]]
            for d in range(dims):
                own[d] += one[d]
        for d in range(dims):
            own[d] = clamp(own[d], RESIDUAL)


@compiled
def norm_row(row: Ints, gain: float, out: Bytes) -> None:
    """x / rms in 1/16; the quotient is at most gain / 16 + 1, the divisor below 2**27."""
    squares = np.int64(0)
    for d in range(len(row)):
        squares += np.int64(row[d]) * np.int64(row[d])
    target = 256 * squares
    s = np.int64(math.sqrt(float(target)))
    if s * s > target:
        s -= 1
    if (s + 1) * (s + 1) <= target:
        s += 1
    if s < 1:
        s = np.int64(1)
    factor = gain / float(s)
    for d in range(len(row)):
        value = i4(np.floor(row[d] * factor + (0.5 + 0.5 * NUDGE)))
        out[d] = clamp(value, LIMIT)


@compiled
def norm(x: Ints, gain: float, out: Bytes) -> None:
    """The normalised residual."""
    for r in range(len(x)):
        norm_row(x[r], gain, out[r])


@compiled
def add_norm(total: Ints, bias: Ints, shift: Ints, x: Ints, gain: float, out: Bytes) -> None:
    """A layer's sums onto the residual, and that normalised."""
    for r in range(len(x)):
        own, add = x[r], total[r]
        for d in range(len(own)):
            step = clamp(shifted(add[d], bias[d], shift[d]), UPDATE)
            own[d] = clamp(i4(own[d] + step), RESIDUAL)
        norm_row(own, gain, out[r])


@compiled
def copy(source: Bytes, target: Bytes) -> None:
    """To the begin of ``target`` (a slice assignment would look for an overlap first)."""
    for d in range(len(source)):
        target[d] = source[d]


@compiled
def around(y: Bytes, present: NDArray[np.bool_], out: Bytes) -> None:
    """[n * 256, D] -> [n * 256, 8 * D]: the direct neighbours, zero where there is none.

    Three in a row are contiguous on both sides.  Sets absent rows of ``y`` to zero: none matters.
    """
    dims = y.shape[1]
    for r in range(len(y)):
        if not present[r]:
            y[r] = 0
    flat = y.reshape(-1)
    for r in range(len(y)):
        i, j = r % KEYS // SIDE, r % SIDE
        left, right = max(j - 1, 0) - j, min(j + 1, SIDE - 1) - j
        row = out[r]
        if j == 0 or j == SIDE - 1 or i == 0 or i == SIDE - 1:
            row[:] = 0
        width = (right - left + 1) * dims
        if i > 0:
            begin = (r - SIDE + left) * dims
            copy(flat[begin : begin + width], row[(1 + left) * dims :])
        if left:
            copy(flat[(r - 1) * dims : r * dims], row[3 * dims :])
        if right:
            copy(flat[(r + 1) * dims : (r + 2) * dims], row[4 * dims :])
        if i < SIDE - 1:
            begin = (r + SIDE + left) * dims
            copy(flat[begin : begin + width], row[(6 + left) * dims :])


@compiled
def requantise(total: Ints, bias: Ints, shift: Ints, out: Bytes) -> None:
    """A layer's sums -> operands of the next product."""
    for r in range(len(total)):
        row, target = total[r], out[r]
        for d in range(len(row)):
            target[d] = clamp(shifted(row[d], bias[d], shift[d]), LIMIT)


@compiled
def activate(total: Ints, bias: Ints, shift: Ints, act: int, out: Bytes) -> None:
    """Sums of the layer ``up`` -> operands of ``down``, through the hard-swish."""
    half = i4(1 << (act - 1))
    for r in range(len(total)):
        row, target = total[r], out[r]
        for d in range(len(row)):
            u = clamp(shifted(row[d], bias[d], shift[d]), HIDDEN)
            gate = max(i4(0), min(i4(256), i4(u + i4(128))))
            target[d] = clamp(shifted(i4(u * gate), half, i4(act)), LIMIT)


@compiled
def attend(
    scores: Ints, at: Ints, strips: Ints, absent: Ints, shift: int, weight: Bytes, total: Ints
) -> None:
    """Products of queries and keys [n, 256] -> weights less CENTRE, and the sum of each row.

    Args:
        scores: of one head; overwritten.
        at: [n], position of each query in the window.
        strips: [16, 31 * 16], the bias for each column of queries; row i begins at (15 - i) * 16.
        absent: [256], 0 or ABSENT for each key.
        shift: from the scores to steps of 1/32 octave.
        weight, total: [n, 256] and [n], the results.
    """
    bits = np.empty(KEYS, np.int32)
    power = bits.view(np.float32)  # the bits of a float are its logarithm, as in pqmim.prior.exact
    by = i4(shift & 31)
    for r in range(len(scores)):
        begin = (SIDE - 1 - at[r] // SIDE) * SIDE
        row, bias = scores[r], strips[at[r] % SIDE, begin : begin + KEYS]
        best = i4(2 * ABSENT + 1)
        for k in range(KEYS):
            score = i4(i4(row[k] + bias[k]) + absent[k])
            row[k] = score
            best = max(best, score)
        for k in range(KEYS):
            step = min(i4(i4(best - row[k]) >> by), i4(LAST_STEP))
            bits[k] = i4(WEIGHT_BITS - i4(step << i4(18)))
        target, count = weight[r], i4(0)
        for k in range(KEYS):
            value = i4(power[k] + f4(0.5))
            target[k] = np.int8(value - CENTRE)
            count = i4(count + value)
        total[r] = count


@compiled
def mix(mixed: Ints, total: Ints, values: Bytes, scale: int, out: Bytes) -> None:
    """Weighted sums [heads, n, d], less CENTRE times ``values`` [256, D] -> their mean [n, D].

    The quotient is at most 127 * 2**8, the divisor 2**16.
    """
    heads, rows, dims = mixed.shape
    column = np.zeros(values.shape[1], np.int32)
    for k in range(len(values)):
        for d in range(values.shape[1]):
            column[d] += values[k, d]
    for h in range(heads):
        extra = CENTRE * column[h * dims : (h + 1) * dims]
        for r in range(rows):
            row, target = mixed[h, r], out[r, h * dims : (h + 1) * dims]
            factor = float(scale) / float(total[h, r])
            for d in range(dims):
                value = i4(row[d] + extra[d]) * factor + (0.5 + 0.5 * NUDGE)
                target[d] = clamp(i4(np.floor(value)), LIMIT)


@compiled
def frequencies(
    sums: Ints, bias: Ints, shift: Ints, codewords: int, table: Ints, out: Floats
) -> None:
    """Sums of the head [n, g * K] -> frequencies less one [n * g, K], as ``entropy.weights``."""
    logits, powers = np.empty(codewords, np.int32), np.empty(codewords, np.int32)
    groups, share = sums.shape[1] // codewords, float(2**24 - codewords)
    last = i4(len(table) - 1)
    for r in range(len(sums)):
        for g in range(groups):
            span = slice(g * codewords, (g + 1) * codewords)
            row, b, by, target = sums[r, span], bias[span], shift[span], out[r * groups + g]
            best = i4(-LOGIT)
            for k in range(codewords):
                logits[k] = clamp(shifted(row[k], b[k], by[k]), LOGIT)
            for k in range(codewords):
                best = max(best, logits[k])
            for k in range(codewords):  # a loop for each step: all of them vectorise
                powers[k] = table[np.uint32(min(i4(best - logits[k]), last))]
            total, given = i4(0), i4(0)
            for k in range(codewords):
                total = i4(total + powers[k])
            divisor = float(total)
            for k in range(codewords):
                powers[k] = i4(np.floor(powers[k] * share / divisor))
            for k in range(codewords):
                target[k] = powers[k]
                given = i4(given + powers[k])
            first = 0
            while logits[first] != best:
                first += 1
            target[first] += f4(i4(share) - given)


@compiled
def intervals(rows: Floats, symbols: NDArray[np.int64], pair: NDArray[np.int64]) -> None:
    """Weights [n, K] and symbols [n] -> starts and lengths in 2**24, [2, n]."""
    for r in range(len(rows)):
        row, symbol = rows[r], symbols[r]
        below = i4(symbol)
        for k in range(symbol):
            below = i4(below + i4(row[k]))
        pair[0, r], pair[1, r] = below, i4(row[symbol]) + 1


@compiled
def cheapest(error: Floats, scale: Floats, bits: Floats, codes: NDArray[np.int64]) -> None:
    """Argmin over K of error [g, n, K] * scale [g] - bits [n, g, K], the first of equals."""
    groups, rows, codewords = error.shape
    cost = np.empty(codewords, np.float32)
    for r in range(rows):
        for g in range(groups):
            row, own, by = error[g, r], bits[r, g], scale[g]
            for k in range(codewords):
                cost[k] = row[k] * by - own[k]
            codes[r, g] = np.argmin(cost)
