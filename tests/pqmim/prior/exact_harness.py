"""Digests of the integer and of the float model, to be compared between processes.

    python -m tests.pqmim.prior.exact_harness [--threads N] [--precision medium]

The same windows, weights and hashing for both forms: if the float digest never changed between
machines and modes, the harness would be blind.
"""

from __future__ import annotations

import argparse
import hashlib
import json

import numpy as np
import torch

from pqmim.coding import payloads
from pqmim.prior import engine, frequencies, load, tensors
from pqmim.prior.config import PriorConfig
from pqmim.training.network import Prior
from tests.pqmim.prior.exact_tools import TINY, UNCHAINED, centred, some_codes, tiny_checkpoint

PLAN = (4, 2)


def digest(parts: list[np.ndarray]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(np.ascontiguousarray(part, dtype="<i4").tobytes())
    return sha.hexdigest()


def windows(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two windows' worth of tokens, a third of them masked, one of them partial."""
    tokens = np.stack([some_codes(16, 16, 8, seed).astype(np.int64) for seed in (11, 12)])
    tokens[centred(tokens.shape, 1, 13) == 0] = TINY.mask
    present = np.ones((2, 16, 16), dtype=bool)
    present[1, 11:] = present[1, :, 13:] = False
    repeats = -(-batch // 2)
    return (
        torch.from_numpy(np.tile(tokens, (repeats, 1, 1, 1))[:batch]),
        torch.from_numpy(np.tile(present, (repeats, 1, 1))[:batch]),
    )


def all_logits(model: engine.Model | Prior, rows: torch.Tensor) -> list[torch.Tensor]:
    """Of every part."""
    config = model.config
    return [
        model.logits(rows, part, engine.probe_before(config, part, rows))
        for part in range(config.subcodes // config.together)
    ]


def integer_tables(model: engine.Model) -> list[np.ndarray]:
    """Logits and weights of all positions of both windows, 0.9 M of each."""
    tokens, present = windows(2)
    logits = all_logits(model, model.hidden(tokens, present)[present.reshape(2, -1)])
    return [x.numpy() for x in logits] + [frequencies.weights(x).numpy() for x in logits]


def float_tables() -> list[np.ndarray]:
    """The same of the float form: softmax in float32, floored to 24 bits."""
    prior = Prior(TINY)
    with torch.no_grad():
        for seed, p in enumerate(prior.parameters(), 1):
            size = 127 * max(1.0, p.shape[-1] ** 0.5 / 2)
            p.copy_(torch.from_numpy(centred(tuple(p.shape), 127, seed)) / size)
        tokens, present = windows(2)
        rows = prior.hidden(tokens, present)[present.reshape(2, -1)]
        logits = all_logits(prior, rows)
        return [(torch.softmax(x, -1) * 2**24).floor().numpy() for x in logits]


def report() -> dict[str, str]:
    """Everything that must be equal everywhere, and the float digest, which will not be."""
    both = {"chained": TINY, "unchained": UNCHAINED}
    found = {
        f"{form} {name}": value
        for form, config in both.items()
        for name, value in of_model(config).items()
    }
    return {**found, "float_form": digest(float_tables())}


def of_model(config: PriorConfig) -> dict[str, str]:
    """What a model of this shape gives."""
    checkpoint = tiny_checkpoint(config)
    model = load.load(checkpoint, torch.device("cpu"))
    codes = some_codes(19, 35, 6, 3)
    payload = payloads.code_image(model, codes, PLAN)
    decoded = payloads.decode_image(model, payload, codes.shape, PLAN)
    engines = {
        "float32": tensors.Engine(checkpoint, torch.device("cpu"), form="float32"),
        "loaded": model,
    }
    return {
        "model_id": checkpoint.model_id.hex(),
        "probe": checkpoint.probe_sha256,
        "payload": hashlib.sha256(payload).hexdigest(),
        "decoded": str(bool((decoded == codes).all())),
        **{name: digest(integer_tables(engine)) for name, engine in engines.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="highest")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision(arguments.precision)
    print(json.dumps(report()))
