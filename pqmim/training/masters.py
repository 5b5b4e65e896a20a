"""Float masters of an integer entropy model: the inverse of ``pqmim.training.to_integers.export``.

A weights file holds integers alone.  Every integer is a float times a power of two, and the powers
are in the shifts and exponents, so floats that export to exactly these integers can be made from
them: training goes on where the file stands, at the same logits.

What the file does not say is how a product's power is shared by its factors (queries and keys,
values and the output layer).  Any choice gives the same network; the one taken leaves the factors
about as large as in a new model, so that a step of the optimiser means as much to each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pqmim.prior import exact
from pqmim.prior.integers import Checkpoint
from pqmim.training.network import Prior
from pqmim.training.to_integers import Powers, layers


@torch.no_grad()
def masters(checkpoint: Checkpoint, device: torch.device) -> tuple[Prior, Powers]:
    """Floats and their powers: :func:`pqmim.training.to_integers.export` undoes it."""
    config, arrays = checkpoint.config, checkpoint.arrays
    integers = {n: torch.from_numpy(a.astype("float32")).to(device) for n, a in arrays.items()}
    prior, powers = Prior(config).to(device), Powers()
    tables = {"codes": prior.codes, "row": prior.row, "column": prior.column}
    if prior.chain is not None:
        tables["chain"] = prior.chain
    for name, table in tables.items():
        table.copy_((integers[name] * 2.0**-exact.RESIDUAL_BITS).reshape(table.shape))
    for b, block in enumerate(prior.blocks):
        exponents = tuple(int(e) for e in arrays[f"blocks.{b}.exponents"])
        powers.activations.append(_bits(integers, f"blocks.{b}.query_key_value", exponents))
        scale = 2.0 ** -(exponents[0] + exact.LOGIT_BITS)
        block.position.copy_(integers[f"blocks.{b}.position"] * scale)  # type: ignore[operator]
    for name, layer in layers(prior).items():
        shift = integers[f"{name}.shift"].to(torch.int64)
        powers.rows[name] = torch.zeros_like(shift)  # its length is what bits() looks at
        into, out = powers.bits(name)
        powers.rows[name] = rows = shift - into + out
        half = torch.where(shift > 0, torch.exp2(shift.float() - 1), 0.0)
        layer.weight.copy_(integers[f"{name}.weight"] * torch.exp2(-rows.float())[:, None])
        layer.bias.copy_((integers[f"{name}.bias"] - half) * torch.exp2(-(rows + into).float()))
    return prior, powers


def _bits(integers: dict[str, Tensor], name: str, exponents: tuple[int, ...]) -> dict[str, int]:
    """Bits after the point of a block's activations; see the module for what is chosen."""
    score, value, act = exponents
    weight, shift = integers[f"{name}.weight"], integers[f"{name}.shift"]
    size = weight * torch.exp2(exact.NORM_BITS - shift)[:, None]  # of the weights, at 0 bits
    q, k, v = (
        math.log2(max(float(part.square().mean().sqrt()), 2.0**-20)) for part in size.chunk(3)
    )
    both = score + exact.LOGIT_BITS
    usual = -0.5 * math.log2(3 * weight.shape[1])  # of a new linear layer
    found = {"q": round((both + q - k) / 2), "v": round(v - usual)}
    return {
        **found, "k": both - found["q"], "o": found["v"] + value,
        "h": 2 * exact.HIDDEN_BITS + 2 - act,
    }  # fmt: skip
