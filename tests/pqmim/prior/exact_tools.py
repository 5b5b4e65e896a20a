"""A tiny integer model made by an integer recurrence, the same on every machine and library."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pqmim.prior import engine, integers, oracle, tensors
from pqmim.prior.config import PriorConfig

TINY = PriorConfig(
    subcodes=8, codewords=256, group=4, dims=32, heads=4, hidden=64, local=(True, False)
)
UNCHAINED = dataclasses.replace(TINY, chain=False)  # as models were before there were chains


def lcg(count: int, seed: int) -> NDArray[np.int64]:
    """``count`` numbers of 0..2**16 - 1."""
    state, values = seed, np.empty(count, dtype=np.int64)
    for i in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64  # Knuth, MMIX
        values[i] = state >> 48
    return values


def centred(shape: tuple[int, ...], limit: int, seed: int) -> NDArray[np.int64]:
    """Integers of -limit..limit."""
    return (lcg(int(np.prod(shape)), seed) % (2 * limit + 1) - limit).reshape(shape)


def tiny_arrays(config: PriorConfig = TINY) -> integers.Arrays:
    """Weights over the full range with shifts that keep the signals alive."""
    arrays: integers.Arrays = {}
    for seed, (name, (shape, dtype)) in enumerate(integers.tensor_types(config).items(), 1):
        if dtype == "int16":
            values = centred(shape, 400, seed)
        elif name.endswith("weight"):
            values = centred(shape, 127, seed)
        elif name.endswith("bias"):
            values = centred(shape, 3000, seed)
        elif name.endswith("position"):
            values = centred(shape, 4000, seed)
        elif name.endswith("exponents"):
            values = np.array([7, 2, 9])
        else:
            shift = 6 if name.startswith(("head", "blocks.0.out", "blocks.1.out")) else 9
            values = np.full(shape, shift)
        arrays[name] = values.astype(dtype)
    return arrays


def tiny_checkpoint(config: PriorConfig = TINY) -> integers.Checkpoint:
    """Proven, with the test vector's hash from the oracle."""
    arrays = tiny_arrays(config)
    integers.prove(config, arrays)
    return integers.Checkpoint(config, arrays, engine.probe_sha256(tensors.Oracle(config, arrays)))


def some_codes(height: int, width: int, subcodes: int, seed: int) -> NDArray[np.uint8]:
    """Codes [h, w, m] over the whole alphabet."""
    values = lcg(height * width * subcodes, seed) % 256
    return values.reshape(height, width, subcodes).astype(np.uint8)


def compare_with_oracle(
    model: engine.Model, arrays: integers.Arrays, tokens: Tensor, present: Tensor
) -> int:
    """Hidden states and logits of every position that is present; how many logits."""
    config, hidden, compared = model.config, model.hidden(tokens, present), 0
    for out, t, p in zip(hidden, tokens, present, strict=True):
        wanted = oracle.hidden(config, arrays, t.numpy(), p.numpy())
        rows = out[p.reshape(-1)]
        assert (rows.numpy() == wanted).all()
        for part in range(config.subcodes // config.together):
            before = engine.probe_before(config, part, rows)
            logits = oracle.logits(config, arrays, wanted, part, before.numpy())
            assert (model.logits(rows, part, before).numpy() == logits).all()
            compared += logits.size
    assert len(hidden.unique()) > 60, "the model is dead: the comparison shows nothing"
    return compared
