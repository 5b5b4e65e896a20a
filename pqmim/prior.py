"""The training form of the masked entropy model, and its way to integers.

    tokens --embedding sum + row + column--> x --blocks--> norm --> a head of K logits per sub-code
    block: x += local(norm x) (8 neighbours);  x += attention(norm x);  x += feed-forward(norm x)

RMS norm without gain, base-2 softmax with a relative position bias, quadratic hard-swish: every
part has an exact integer twin in ``pqmim.exact``.  Logits are in octaves (base-2 logarithms).

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
from torch.nn import functional as F

from pqmim import exact, integer, prior_checkpoint
from pqmim.prior_config import PriorConfig
from pqmim.schedule import WINDOW

QUANTILE = 0.9999
TOP = 127.49  # rounds to 127
ACTIVATIONS = ("q", "k", "v", "o", "h")
OUTPUT_BITS = {
    "local": exact.RESIDUAL_BITS,
    "out": exact.RESIDUAL_BITS,
    "down": exact.RESIDUAL_BITS,
    "up": exact.HIDDEN_BITS,
}


class Recorder:
    """Largest usual magnitudes of the activations that calibration asks for."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}

    def see(self, name: str, x: Tensor) -> None:
        """Keep the 99.99 % quantile of ``|x|`` if it is the largest so far."""
        flat = x.detach().abs().flatten().float()
        rank = max(1, min(len(flat), math.ceil(QUANTILE * len(flat))))
        value = float(flat.kthvalue(rank).values)
        self.largest[name] = max(value, self.largest.get(name, 1e-6))


class Block(nn.Module):
    """One transformer block in floats."""

    def __init__(self, config: PriorConfig, local: bool) -> None:
        super().__init__()
        d = config.dims
        self.heads = config.heads
        self.local = nn.Linear(len(exact.NEIGHBOURS) * d, d) if local else None
        self.query_key_value = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.up = nn.Linear(d, config.hidden)
        self.down = nn.Linear(config.hidden, d)
        self.position = nn.Parameter(first_position_bias(config.heads))
        with torch.no_grad():  # log2(e) / sqrt(head dims) lives in the weights
            self.query_key_value.weight[: 2 * d] *= (
                math.log2(math.e) / math.sqrt(d // config.heads)
            ) ** 0.5
        for layer in (self.local, self.out, self.down):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.3 / math.sqrt(layer.in_features))

    def attend(self, y: Tensor, present: Tensor | None, note: Recorder | None) -> Tensor:
        """[B, 256, D] -> [B, 256, D], before the output layer."""
        batch, count, dims = y.shape
        packed = self.query_key_value(y).reshape(batch, count, 3, self.heads, -1)
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        bias = relative(self.position.flatten(1) * math.log(2))
        scores = (q * math.log(2)) @ k.transpose(-1, -2) + bias
        if present is not None:
            scores = scores.masked_fill(present[:, None, None, :] == 0, -1e4)
        o = torch.softmax(scores, -1) @ v
        if note is not None:
            for name, value in zip("qkvo", (q, k, v, o), strict=True):
                note.see(name, value)
        return o.transpose(1, 2).reshape(batch, count, dims)

    def forward(self, x: Tensor, present: Tensor | None, note: Recorder | None) -> Tensor:
        """Residual stream [B, 256, D] to the same."""
        if self.local is not None:
            y = norm(x) if present is None else norm(x) * present[..., None]
            x = x + self.local(exact.neighbours(y))
        x = x + self.out(self.attend(norm(x), present, note))
        # x clamp(x + 2, 0, 4) / 4 is hardswish(1.5 x) / 1.5; the factors go to the small tensors
        h = F.hardswish(F.linear(norm(x), 1.5 * self.up.weight, 1.5 * self.up.bias))
        if note is not None:
            note.see("h", h / 1.5)
        return x + F.linear(h, self.down.weight / 1.5, self.down.bias)


class Prior(nn.Module):
    """The masked transformer in floats; see the module."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        rows = config.subcodes * (config.codewords + 1)
        self.codes = nn.Parameter(torch.randn(rows, config.dims) * 0.25)
        self.row = nn.Parameter(torch.randn(WINDOW, config.dims) * 0.1)
        self.column = nn.Parameter(torch.randn(WINDOW, config.dims) * 0.1)
        self.blocks = nn.ModuleList(Block(config, local) for local in config.local)
        self.head = nn.Linear(config.dims, config.subcodes * config.codewords)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def hidden(
        self, tokens: Tensor, present: Tensor | None, notes: list[Recorder] | None = None
    ) -> Tensor:
        """int64 [B, 16, 16, M], K is the mask, and [B, 16, 16] -> [B, 256, D] for the heads."""
        subcodes = tokens.shape[-1]
        first = torch.arange(subcodes, device=tokens.device) * (self.config.codewords + 1)
        index = (tokens + first).reshape(-1, subcodes)
        x = F.embedding_bag(index, self.codes, mode="sum").reshape(len(tokens), exact.POSITIONS, -1)
        x = x + (self.row[:, None] + self.column[None]).flatten(0, 1)
        if present is not None:
            present = present.reshape(-1, exact.POSITIONS).to(x.dtype)
        for b, block in enumerate(self.blocks):
            x = block(x, present, notes[b] if notes else None)
        return norm(x)

    def logits(self, rows: Tensor, group: int) -> Tensor:
        """[n, D] -> octaves [n, sub-codes of the group, K]."""
        span = self.config.group * self.config.codewords
        cut = slice(group * span, (group + 1) * span)
        y = F.linear(rows, self.head.weight[cut], self.head.bias[cut])
        return y.reshape(len(rows), self.config.group, self.config.codewords)


def norm(x: Tensor) -> Tensor:
    """x / rms(x); the integer form saturates at 7.9, which training through integers learns."""
    return x * x.square().mean(-1, keepdim=True).add(2.0 ** (-2 * exact.RESIDUAL_BITS)).rsqrt()


def relative(table: Tensor) -> Tensor:
    """[heads, 31 * 31] -> [heads, 256, 256], with the fast gradient of an embedding."""
    rows = F.embedding(exact.relative_index(table.device), table.T)
    return rows.permute(2, 0, 1).contiguous()


def first_position_bias(heads: int) -> Tensor:
    """[heads, 31, 31] octaves: every head starts local, each with its own reach (ALiBi, in 2-D)."""
    axis = torch.arange(prior_checkpoint.SPAN) - (WINDOW - 1)
    distance = (axis[:, None].square() + axis[None].square()).float().sqrt()
    slopes = torch.tensor([2.0 ** (-h / 2) for h in range(heads)])
    return -slopes[:, None, None] * distance


@dataclass
class Powers:
    """Powers of two that turn floats into integers, frozen once calibrated.

    ``activations[b]`` holds the bits after the point of q, k, v, o and h of block b; ``rows[name]``
    those of every row of a layer's weights.
    """

    activations: list[dict[str, int]] = field(default_factory=list)
    rows: dict[str, Tensor] = field(default_factory=dict)

    def bits(self, name: str) -> tuple[int, Tensor | int]:
        """Bits after the point of a layer's input and of its output."""
        if name == "head":
            return exact.NORM_BITS, exact.LOGIT_BITS
        block, kind = name.split(".")[1:]
        found = self.activations[int(block)]
        into = {"out": found["o"], "down": found["h"]}.get(kind, exact.NORM_BITS)
        if kind == "query_key_value":
            each = len(self.rows[name]) // 3
            out = torch.tensor([found[c] for c in "qkv"]).repeat_interleave(each)
            return into, out.to(self.rows[name].device)
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
    return {name: prior.get_submodule(name) for name in prior_checkpoint.layer_shapes(prior.config)}  # type: ignore[misc]


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
    for name, layer in layers(prior).items():
        largest = layer.weight.abs().amax(1).clamp_min(1e-9)
        powers.rows[name] = torch.floor(torch.log2(TOP / largest)).to(torch.int64)
        into, out = powers.bits(name)
        powers.rows[name] = powers.rows[name].clamp(max=prior_checkpoint.MAX_SHIFT - into + out)
        fit(prior, powers, name)
    return powers


def fit(prior: Prior, powers: Powers, name: str) -> None:
    """Coarsen rows whose sums might leave the exact range, one bit at a time.

    Raises:
        RangeError: no power is left for a row.
    """
    while True:
        if int(powers.shift(name).min()) < 0:
            row = int(powers.shift(name).argmin())
            raise prior_checkpoint.RangeError(
                f"{name} row {row}: its weights are too large for integers"
            )
        weight, bias = integer_layer(layers(prior)[name], powers, name)
        worst = exact.ACTIVATION * weight.double().abs().sum(1) + bias.double().abs()
        broken = worst >= prior_checkpoint.SUM_LIMIT
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
    limit = float(prior_checkpoint.SUM_LIMIT // 4)
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
    head, span = layer("head", exact.LOGIT), config.group * config.codewords
    cuts = [slice(g * span, (g + 1) * span) for g in range(config.groups)]
    heads = [exact.Linear(head.weight[c], head.bias[c], head.scale[c], head.limit) for c in cuts]
    place = (table(prior.row)[:, None] + table(prior.column)[None]).flatten(0, 1)
    return exact.Network(config, table(prior.codes), place, blocks, heads)


def integer_position(block: nn.Module, score_shift: int) -> Tensor:
    """[heads, 31 * 31]: the position bias in units of the scores."""
    limit = prior_checkpoint.POSITION_LIMIT - 1
    units = block.position.flatten(1) * 2.0 ** (score_shift + exact.LOGIT_BITS)  # type: ignore[operator]
    return round_through(units).clamp(-limit, limit)


@torch.no_grad()
def export(prior: Prior, powers: Powers) -> prior_checkpoint.Checkpoint:
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
    values = {
        k: (v * 2**exact.RESIDUAL_BITS).round().clamp(-32767, 32767) for k, v in values.items()
    }
    for name, layer in layers(prior).items():
        values[f"{name}.weight"], values[f"{name}.bias"] = integer_layer(layer, powers, name)
        values[f"{name}.shift"] = powers.shift(name)
    for b, block in enumerate(prior.blocks):
        exponents = powers.exponents(b)
        position = integer_position(block, exponents[0])
        values[f"blocks.{b}.position"] = position.reshape(
            -1, prior_checkpoint.SPAN, prior_checkpoint.SPAN
        )
        values[f"blocks.{b}.exponents"] = torch.tensor(exponents)
    types = prior_checkpoint.tensor_types(config)
    arrays = {k: values[k].cpu().numpy().astype(np.dtype(types[k][1])) for k in types}
    prior_checkpoint.prove(config, arrays)
    return prior_checkpoint.Checkpoint(
        config, arrays, integer.probe_sha256(integer.Oracle(config, arrays))
    )
