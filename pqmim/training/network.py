"""The training form of the masked entropy model.

    tokens --embedding sum + row + column--> x --blocks--> norm --> a head of K logits per sub-code
    chain: before the norm, the sub-codes of the group that are known at the position add to x
    block: x += local(norm x) (8 neighbours);  x += attention(norm x);  x += feed-forward(norm x)

RMS norm without gain, base-2 softmax with a relative position bias, quadratic hard-swish: every
part has an exact integer twin in ``pqmim.prior.exact``.  Logits are in octaves (base-2 logarithms).
``pqmim.training.to_integers`` makes the integers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pqmim.prior import exact, integers
from pqmim.prior.config import WINDOW, PriorConfig

QUANTILE = 0.9999
ACTIVATIONS = ("q", "k", "v", "o", "h")


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
        chained = (config.subcodes * config.codewords, config.dims)
        self.chain = nn.Parameter(torch.zeros(chained)) if config.chain else None

    def hidden(
        self, tokens: Tensor, present: Tensor | None, notes: list[Recorder] | None = None
    ) -> Tensor:
        """int64 [B, 16, 16, M], K is the mask, and [B, 16, 16] -> [B, 256, D] for the logits."""
        subcodes = tokens.shape[-1]
        first = torch.arange(subcodes, device=tokens.device) * (self.config.codewords + 1)
        index = (tokens + first).reshape(-1, subcodes)
        x = F.embedding_bag(index, self.codes, mode="sum").reshape(len(tokens), exact.POSITIONS, -1)
        x = x + (self.row[:, None] + self.column[None]).flatten(0, 1)
        if present is not None:
            present = present.reshape(-1, exact.POSITIONS).to(x.dtype)
        for b, block in enumerate(self.blocks):
            x = block(x, present, notes[b] if notes else None)
        return norm(x) if self.chain is None else x

    def logits(self, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
        """[n, D] -> octaves [n, sub-codes of the part, K]; as the integer engines."""
        config = self.config
        if self.chain is not None:
            if before is not None and before.shape[1]:
                index = exact.chain_rows(config, part, before)
                rows = rows + F.embedding_bag(index, self.chain, mode="sum")
            rows = norm(rows)
        span = config.together * config.codewords
        cut = slice(part * span, (part + 1) * span)
        y = F.linear(rows, self.head.weight[cut], self.head.bias[cut])
        return y.reshape(len(rows), config.together, config.codewords)


def norm(x: Tensor) -> Tensor:
    """x / rms(x); the integer form saturates at 7.9, which training through integers learns."""
    return x * x.square().mean(-1, keepdim=True).add(2.0 ** (-2 * exact.RESIDUAL_BITS)).rsqrt()


def relative(table: Tensor) -> Tensor:
    """[heads, 31 * 31] -> [heads, 256, 256], with the fast gradient of an embedding."""
    rows = F.embedding(exact.relative_index(table.device), table.T)
    return rows.permute(2, 0, 1).contiguous()


def first_position_bias(heads: int) -> Tensor:
    """[heads, 31, 31] octaves: every head starts local, each with its own reach (ALiBi, in 2-D)."""
    axis = torch.arange(integers.SPAN) - (WINDOW - 1)
    distance = (axis[:, None].square() + axis[None].square()).float().sqrt()
    slopes = torch.tensor([2.0 ** (-h / 2) for h in range(heads)])
    return -slopes[:, None, None] * distance
