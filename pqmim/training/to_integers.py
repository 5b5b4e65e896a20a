"""From the float masters of the entropy model to its integers.

:func:`calibrate` picks powers of two for activations and weight rows, once; :func:`quantise` makes
the integer network from the float masters, with straight-through gradients if they are wanted, and
:func:`export` stores exactly those integers.  Powers stay frozen in quantisation-aware training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from pqmim.prior import engine, exact, integers, tensors
from pqmim.training.network import ACTIVATIONS, Prior, Recorder, relative

TOP = 127.49  # rounds to 127
OUTPUT_BITS = {
    "local": exact.RESIDUAL_BITS,
    "out": exact.RESIDUAL_BITS,
    "down": exact.RESIDUAL_BITS,
    "up": exact.HIDDEN_BITS,
}


@dataclass
class Powers:
    """Powers of two that turn floats into integers, frozen once calibrated.

    ``activations[b]`` holds the bits after the point of q, k, v, o and h of block b; ``rows[name]``
    those of every row of a layer's weights.
    """

    activations: list[dict[str, int]] = field(default_factory=list)
    rows: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Of layers with several outputs, by name; kept on the device, as a recorded graph wants it.
        self._outputs: dict[str, Tensor] = {}

    def bits(self, name: str) -> tuple[int, Tensor | int]:
        """Bits after the point of a layer's input and of its output."""
        if name == "head":
            return exact.NORM_BITS, exact.LOGIT_BITS
        block, kind = name.split(".")[1:]
        found = self.activations[int(block)]
        into = {"out": found["o"], "down": found["h"]}.get(kind, exact.NORM_BITS)
        if kind == "query_key_value":
            if name not in self._outputs:
                each = len(self.rows[name]) // 3
                out = torch.tensor([found[c] for c in "qkv"]).repeat_interleave(each)
                self._outputs[name] = out.to(self.rows[name].device)
            return into, self._outputs[name]
        return into, OUTPUT_BITS[kind]

    def shift(self, name: str) -> Tensor:
        """Right shift of every row."""
        into, out = self.bits(name)
        return self.rows[name] + into - out

    def exponents(self, block: int) -> tuple[int, int, int]:
        """Shifts of the scores, of the mean of the values, and of the hard-swish."""
        a = self.activations[block]
        return (
            a["q"] + a["k"] - exact.LOGIT_BITS,
            a["o"] - a["v"],
            2 * exact.HIDDEN_BITS + 2 - a["h"],
        )


def layers(prior: Prior) -> dict[str, nn.Linear]:
    """Every linear layer under its name in the checkpoint."""
    return {name: prior.get_submodule(name) for name in integers.layer_shapes(prior.config)}  # type: ignore[misc]


@torch.no_grad()
def calibrate(prior: Prior, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Powers:
    """Choose all powers from a few batches of masked tokens.

    Raises:
        RangeError: activations or weights that no power fits (a diverged model).
    """
    notes = [Recorder() for _ in prior.blocks]
    for tokens, present in batches:
        prior.hidden(tokens, present, notes)
    powers = Powers()
    for note in notes:
        bits = {a: math.floor(math.log2(exact.ACTIVATION / note.largest[a])) for a in ACTIVATIONS}
        bits["o"] = min(max(bits["o"], bits["v"]), bits["v"] + 4)
        bits["h"] = min(max(bits["h"], 0), 2 * exact.HIDDEN_BITS + 1)
        bits["q"] = max(bits["q"], exact.LOGIT_BITS - bits["k"])  # scores need a shift >= 0
        powers.activations.append(bits)
    for name in layers(prior):
        choose_rows(prior, powers, name)
    return powers


def choose_rows(prior: Prior, powers: Powers, name: str) -> None:
    """Give every row of a layer as many bits after the point as it has room for.

    Raises:
        RangeError: no power is left for a row.
    """
    largest = layers(prior)[name].weight.abs().amax(1).clamp_min(1e-9)
    powers.rows[name] = torch.floor(torch.log2(TOP / largest)).to(torch.int64)
    into, out = powers.bits(name)
    powers.rows[name] = powers.rows[name].clamp(max=integers.MAX_SHIFT - into + out)
    fit(prior, powers, name)


def fit(prior: Prior, powers: Powers, name: str) -> None:
    """Coarsen rows whose sums might leave the exact range, one bit at a time.

    Raises:
        RangeError: no power is left for a row.
    """
    while True:
        if int(powers.shift(name).min()) < 0:
            row = int(powers.shift(name).argmin())
            raise integers.RangeError(f"{name} row {row}: its weights are too large for integers")
        weight, bias = integer_layer(layers(prior)[name], powers, name)
        worst = exact.ACTIVATION * weight.double().abs().sum(1) + bias.double().abs()
        broken = worst >= integers.SUM_LIMIT
        if not broken.any():
            return
        powers.rows[name] = powers.rows[name] - broken.to(torch.int64)


def round_through(x: Tensor) -> Tensor:
    """Round with a straight-through gradient."""
    return exact.through(x.detach().round(), x) if x.requires_grad else x.round()


def integer_layer(layer: nn.Linear, powers: Powers, name: str) -> tuple[Tensor, Tensor]:
    """Integer weights and biases, as floats, of one layer."""
    rows, shift = powers.rows[name], powers.shift(name)
    into, _ = powers.bits(name)
    weight = round_through(layer.weight * torch.exp2(rows.float())[:, None])
    weight = weight.clamp(-exact.ACTIVATION, exact.ACTIVATION)
    half = torch.where(shift > 0, torch.exp2(shift.float() - 1), 0.0)
    limit = float(integers.SUM_LIMIT // 4)
    bias = round_through(layer.bias * torch.exp2((rows + into).float())) + half
    return weight, bias.clamp(-limit, limit)


def quantise(prior: Prior, powers: Powers) -> exact.Network:
    """The integer network of the float masters; differentiable where they are."""
    config, named = prior.config, layers(prior)

    def layer(name: str, limit: int) -> exact.Linear:
        weight, bias = integer_layer(named[name], powers, name)
        scale = torch.exp2(-powers.shift(name).float())
        return exact.Linear(weight * scale[:, None], bias * scale, scale, limit)

    def table(x: Tensor) -> Tensor:
        return round_through(x * 2**exact.RESIDUAL_BITS).clamp(-32767, 32767)

    blocks = []
    for b, block in enumerate(prior.blocks):
        name = f"blocks.{b}"
        score, value, act = powers.exponents(b)
        blocks.append(
            exact.Block(
                local=layer(f"{name}.local", 2**17) if block.local is not None else None,
                query_key_value=layer(f"{name}.query_key_value", exact.ACTIVATION),
                bias=relative(integer_position(block, score) * 2.0**-score),
                score_scale=2.0**-score,
                value_scale=2.0**value,
                out=layer(f"{name}.out", 2**17),
                up=layer(f"{name}.up", exact.HIDDEN),
                act_scale=2.0**-act,
                down=layer(f"{name}.down", 2**17),
            )
        )
    head, span = layer("head", exact.LOGIT), config.together * config.codewords
    cuts = [slice(first, first + span) for first in range(0, len(head.bias), span)]
    heads = [exact.Linear(head.weight[c], head.bias[c], head.scale[c], head.limit) for c in cuts]
    place = (table(prior.row)[:, None] + table(prior.column)[None]).flatten(0, 1)
    chain = None if prior.chain is None else table(prior.chain)
    return exact.Network(config, table(prior.codes), place, blocks, heads, chain)


def integer_position(block: nn.Module, score_shift: int) -> Tensor:
    """[heads, 31 * 31]: the position bias in units of the scores."""
    limit = integers.POSITION_LIMIT - 1
    units = block.position.flatten(1) * 2.0 ** (score_shift + exact.LOGIT_BITS)  # type: ignore[operator]
    return round_through(units).clamp(-limit, limit)


@torch.no_grad()
def export(prior: Prior, powers: Powers) -> integers.Checkpoint:
    """The checkpoint of exactly the integers of :func:`quantise`, proven; the oracle's test vector.

    Rows that training pushed out of the exact range are coarsened by a bit first.
    """
    config = prior.config
    for name in powers.rows:
        fit(prior, powers, name)
    values: dict[str, Tensor] = {
        "codes": prior.codes.reshape(config.subcodes, config.codewords + 1, config.dims),
        "row": prior.row,
        "column": prior.column,
    }
    if prior.chain is not None:
        values["chain"] = prior.chain.reshape(config.subcodes, config.codewords, config.dims)
    values = {
        k: (v * 2**exact.RESIDUAL_BITS).round().clamp(-32767, 32767) for k, v in values.items()
    }
    for name, layer in layers(prior).items():
        values[f"{name}.weight"], values[f"{name}.bias"] = integer_layer(layer, powers, name)
        values[f"{name}.shift"] = powers.shift(name)
    for b, block in enumerate(prior.blocks):
        exponents = powers.exponents(b)
        position = integer_position(block, exponents[0])
        values[f"blocks.{b}.position"] = position.reshape(-1, integers.SPAN, integers.SPAN)
        values[f"blocks.{b}.exponents"] = torch.tensor(exponents)
    types = integers.tensor_types(config)
    arrays = {k: values[k].cpu().numpy().astype(np.dtype(types[k][1])) for k in types}
    integers.prove(config, arrays)
    return integers.Checkpoint(config, arrays, engine.probe_sha256(tensors.Oracle(config, arrays)))
