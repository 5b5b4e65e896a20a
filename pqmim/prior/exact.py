"""The masked transformer in exact integers, carried in floating-point tensors.

Every tensor holds integers; every matmul operand is at most 128 in magnitude and every dot product
stays below 2**24 for every possible input (proved from the weights when a model is read, see
``pqmim.prior.integers``).  So no product or partial sum ever rounds, in any order, any kernel, in
float32, TF32 or bfloat16 with float32 sums, and all machines agree bit for bit.  Division and
square root are on integers below 2**53 in float64, where floor(fl(a / b)) == floor(a / b).

    quantity                      unit          range
    residual stream               2**-8         +-(2**17 - 1)
    normalised, matmul operands   see layers    +-127
    feed-forward hidden           2**-6         +-2047
    attention weight              1 / 128       0 .. 128
    logits                        1/32 octave   +-2**15

The training form calls the same functions with gradients on: floor and round pass them straight
through, clamps stop them, so what quantisation-aware training optimises is what is decoded.
Never a convolution, softmax, exp or layer_norm kernel: those round differently on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pqmim.prior import products
from pqmim.prior.config import WINDOW, PriorConfig

ACTIVATION = 127
RESIDUAL = 2**17 - 1
RESIDUAL_BITS = 8
HIDDEN = 2047
HIDDEN_BITS = 6
NORM_BITS = 4
LOGIT = 2**15
LOGIT_BITS = 5  # logits are in units of 1/32 octave
WEIGHT_ONE = 128  # attention weight of the best key
OCTAVE = 32  # steps of an attention score that halve its weight
LAST_STEP = 384  # from here on a key weighs nothing
POSITIONS = WINDOW * WINDOW
OUTSIDE = -(2.0**23)  # below every score
NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


@dataclass
class Linear:
    """sat((W x + b) >> shift); ``bias`` holds the half that makes the shift round.

    Weights and biases are stored times 2 ** -shift, row by row: the same significant bits, the same
    exact sums, and one pass less over the result.
    """

    weight: Tensor  # [O, I], times scale
    bias: Tensor  # [O], times scale
    scale: Tensor  # [O], 2 ** -shift
    limit: int
    bytes_in_out: Tensor | None = None  # [I, O] int8, where the int8 kernel proved exact


@dataclass
class Block:
    """One transformer block."""

    local: Linear | None  # 8 neighbours -> residual
    query_key_value: Linear
    bias: Tensor  # [heads, 256, 256], added to the scores, times score_scale
    score_scale: float  # 2 ** -u, scores to 1/32 octave
    value_scale: float  # 2 ** g, attention output from the mean of the values
    out: Linear
    up: Linear
    act_scale: float  # 2 ** -z, hard-swish to +-127
    down: Linear


@dataclass
class Network:
    """A whole model, ready to run."""

    config: PriorConfig
    codes: Tensor  # [M * (K + 1), D]
    place: Tensor  # [256, D], row plus column table
    blocks: list[Block]
    heads: list[Linear]  # one a part (``PriorConfig.parts``), [sub-codes * K, D]
    chain: Tensor | None  # [M * K, D], what a sub-code tells the later ones of its group


class _Through(torch.autograd.Function):
    """The exact value forwards, the smooth value's gradient backwards."""

    @staticmethod
    def forward(ctx: object, exact: Tensor, smooth: Tensor) -> Tensor:
        return exact

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, grad


def through(exact: Tensor, smooth: Tensor) -> Tensor:
    """``exact`` with the gradient of ``smooth``."""
    return _Through.apply(exact, smooth)


def floor(x: Tensor) -> Tensor:
    """Floor with a straight-through gradient; in place when no gradient is wanted."""
    return through(x.detach().floor(), x) if x.requires_grad else x.floor_()


def saturate(x: Tensor, limit: int) -> Tensor:
    """Clamp to +-limit; in place when no gradient is wanted."""
    return x.clamp(-limit, limit) if x.requires_grad else x.clamp_(-limit, limit)


def linear(layer: Linear, x: Tensor) -> Tensor:
    """[..., I] in +-127 -> [..., O] in +-limit."""
    rows = x.numel() // x.shape[-1]
    if layer.bytes_in_out is None or rows < products.INT8_ROWS:
        total = F.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)
    else:
        small = x.reshape(rows, -1).to(torch.int8)
        total = products.int8(small, layer.bytes_in_out) * layer.scale
        total = total.add_(layer.bias).reshape(*x.shape[:-1], -1)
    return saturate(floor(total), layer.limit)


def root(squares: Tensor) -> Tensor:
    """max(1, isqrt(256 * squares)) of integers up to 2**44 in float64.

    The comparisons repair a square root that is off by one, so a merely faithful one is enough.
    """
    target = squares * 256.0
    s = target.sqrt().floor_()
    s += ((s + 1).square() <= target).to(s.dtype) - (s.square() > target).to(s.dtype)
    return s.clamp_min_(1.0)


def norm_gain(dims: int) -> int:
    """round(256 * sqrt(dims)), in integers."""
    return (math.isqrt(4 * 65536 * dims) + 1) // 2


def norm(x: Tensor) -> Tensor:
    """[..., D] residual -> x / rms in units of 1/16, +-127."""
    wide = x.detach().to(torch.float64, copy=True)
    s = root((wide * wide).sum(-1, keepdim=True))
    exact = wide.mul_(2.0 * norm_gain(x.shape[-1])).add_(s).div_(2 * s).floor_()
    exact = exact.clamp_(-ACTIVATION, ACTIVATION).to(x.dtype)
    if not x.requires_grad:
        return exact
    rms = x.square().mean(-1, keepdim=True).clamp_min(1.0).sqrt()
    return through(exact, (x * (2**NORM_BITS / rms)).clamp(-ACTIVATION, ACTIVATION))


def relative_index(device: torch.device) -> Tensor:
    """[256, 256]: where (query, key) finds its bias in a [31 * 31] table, key minus query."""
    axis = torch.arange(WINDOW, device=device)
    row, column = axis.repeat_interleave(WINDOW), axis.repeat(WINDOW)
    dy = row[None] - row[:, None] + WINDOW - 1
    dx = column[None] - column[:, None] + WINDOW - 1
    return dy * (2 * WINDOW - 1) + dx


def neighbours(y: Tensor) -> Tensor:
    """[B, 256, D] -> [B, 256, 8 * D]: what the direct neighbours hold, zero outside the window."""
    batch, _, dims = y.shape
    padded = F.pad(y.reshape(batch, WINDOW, WINDOW, dims), (0, 0, 1, 1, 1, 1))
    views = [padded[:, 1 + a : 1 + a + WINDOW, 1 + b : 1 + b + WINDOW] for a, b in NEIGHBOURS]
    return torch.cat(views, dim=-1).reshape(batch, POSITIONS, len(NEIGHBOURS) * dims)


def attention_weight(steps: Tensor) -> Tensor:
    """Integers 0..384, int32 -> round(128 * 2 ** (-steps / 32)), linear within an octave, 0..128.

    The bits of a float are its logarithm, linear within an octave: one subtraction builds it.
    """
    bits = steps.mul_(-(1 << 18)).add_((127 + 7) << 23)
    return bits.view(torch.float32).add_(0.5).floor_()


def attention(block: Block, y: Tensor, heads: int, present: Tensor | None) -> Tensor:
    """[B, 256, D] -> [B, 256, D], both +-127; ``present`` [B, 256] is 0 or 1 per key.

    Scores are carried times 2 ** -u, which changes no significant bit.
    """
    batch, count, dims = y.shape
    packed = linear(block.query_key_value, y).reshape(batch, count, 3, heads, dims // heads)
    q, k, v = packed.permute(2, 0, 3, 1, 4)  # [B, heads, 256, dims of a head]
    scores = (q * block.score_scale) @ k.transpose(-1, -2)
    scores = scores + block.bias if scores.requires_grad else scores.add_(block.bias)
    here = None if present is None else present[:, None, None, :]
    inside = scores.detach()
    if here is not None:
        inside = torch.where(here > 0, inside, OUTSIDE)
    best = inside.amax(-1, keepdim=True)
    if scores.requires_grad:
        steps = floor((best - scores).clamp(0, LAST_STEP))
        smooth = WEIGHT_ONE * torch.exp2(steps * (-1.0 / OCTAVE))
        weight = through(attention_weight(steps.detach().to(torch.int32)), smooth)
    else:
        steps = torch.sub(best, scores, out=scores).clamp_(0, LAST_STEP)
        weight = attention_weight(steps.to(torch.int32)).to(v.dtype)
    if here is not None:
        weight = weight * here
    total, mixed = weight.sum(-1, keepdim=True), weight @ v
    wide = total.detach().double()
    exact = mixed.detach().double().mul_(2 * block.value_scale).add_(wide)
    exact = exact.div_(2 * wide).floor_().to(y.dtype)
    if mixed.requires_grad:
        exact = through(exact, mixed / total * block.value_scale)
    return saturate(exact, ACTIVATION).transpose(1, 2).reshape(batch, count, dims)


def feed_forward(block: Block, y: Tensor) -> Tensor:
    """Two layers with the quadratic hard-swish x * clamp(x + 2, 0, 4) / 4 between them."""
    u = linear(block.up, y)
    gate = u + 128.0
    gate = gate.clamp(0.0, 256.0) if u.requires_grad else gate.clamp_(0.0, 256.0)
    h = torch.addcmul(torch.full_like(u[:1, :1, :1], 0.5), u, gate, value=block.act_scale)
    return linear(block.down, saturate(floor(h), ACTIVATION))


def embed(net: Network, tokens: Tensor) -> Tensor:
    """Tokens int64 [B, 16, 16, M], K is the mask -> residual stream [B, 256, D]."""
    subcodes = tokens.shape[-1]
    first = torch.arange(subcodes, device=tokens.device) * (net.config.codewords + 1)
    rows = F.embedding_bag((tokens + first).reshape(-1, subcodes), net.codes, mode="sum")
    x = rows.reshape(len(tokens), POSITIONS, -1) + net.place
    return saturate(x, RESIDUAL)


def hidden(net: Network, tokens: Tensor, present: Tensor | None = None) -> Tensor:
    """What :func:`logits` starts from, [B, 256, D]: in +-127, or the residual if there is a chain.

    Args:
        net: the model; all its tensors are float32 (or float64) on the device of ``tokens``.
        tokens: int64 [B, 16, 16, M], codes or the mask.
        present: [B, 16, 16] 0 or 1, positions inside the image; None: all.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        if present is not None:
            present = present.reshape(-1, POSITIONS).to(torch.float32)
        x = embed(net, tokens)
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"the exact model runs in float32 or float64, not {x.dtype}")
        for block in net.blocks:
            if block.local is not None:
                y = norm(x) if present is None else norm(x) * present[..., None]
                if block.local.bytes_in_out is not None:
                    y = y.to(torch.int8)
                x = saturate(x + linear(block.local, neighbours(y)), RESIDUAL)
            mixed = attention(block, norm(x), net.config.heads, present)
            x = saturate(x + linear(block.out, mixed), RESIDUAL)
            x = saturate(x + feed_forward(block, norm(x)), RESIDUAL)
        return norm(x) if net.chain is None else x


def chain_rows(config: PriorConfig, subcode: int, before: Tensor) -> Tensor:
    """Codes int64 [n, j] of the first j sub-codes of a sub-code's group -> rows of the chain."""
    first = subcode // config.group * config.group
    subcodes = torch.arange(first, first + before.shape[1], device=before.device)
    return before + subcodes * config.codewords


def logits(net: Network, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
    """[n, D] rows of :func:`hidden` -> [n, sub-codes of the part, K].

    ``before`` int64 [n, j] holds the codes of the earlier sub-codes of the group at each row.
    """
    with torch.autocast(rows.device.type, enabled=False):
        if net.chain is not None:
            if before is not None and before.shape[1]:
                told = F.embedding_bag(chain_rows(net.config, part, before), net.chain, mode="sum")
                rows = saturate(rows + told, RESIDUAL)
            rows = norm(rows)
        return linear(net.heads[part], rows).reshape(
            len(rows), net.config.together, net.config.codewords
        )
