"""The entropy model on a CPU: products by the tensor library, all else by compiled loops.

Same integers as ``pqmim.prior.exact``, a third of its time on one core.  An extra: without numba
(``pqmim.prior.kernels``), or where the test vector fails, ``pqmim.prior.load`` takes the
tensor engine.  The loops run on one thread and release the GIL, so callers may run windows side by
side; every buffer belongs to its call.

A residual is int32 [rows, D], an operand int8.  The last block computes only the positions that
are asked for.  Rows are residuals where sub-codes are chained, operands where they are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqmim.prior import engine, exact, kernels, products
from pqmim.prior import frequencies as entropy
from pqmim.prior.config import PriorConfig
from pqmim.prior.integers import Arrays, Checkpoint

SIDE, POSITIONS = kernels.SIDE, exact.POSITIONS


@dataclass(frozen=True)
class Layer:
    """(W x + bias) >> shift, before its limit."""

    weight: Tensor  # [I, O], in the carrier of its form (pqmim.prior.products)
    bias: NDArray[np.int32]
    shift: NDArray[np.int32]

    def sums(self, x: Tensor) -> NDArray[np.int32]:
        """W x of int8 [n, I]."""
        return products.product(x, self.weight).numpy()


@dataclass(frozen=True)
class Block:
    """One transformer block."""

    local: Layer | None
    query_key_value: Layer
    strips: NDArray[np.int32]  # [heads, 16, 31 * 16], see kernels.attend
    score_shift: int
    value_scale: int
    out: Layer
    up: Layer
    act: int
    down: Layer


def strips_of(position: NDArray[np.integer]) -> NDArray[np.int32]:
    """[heads, 31, 31], key minus query -> [heads, 16, 31 * 16], for each column of queries."""
    columns = [position[:, :, SIDE - 1 - j : 2 * SIDE - 1 - j] for j in range(SIDE)]
    return np.stack([c.reshape(len(position), -1) for c in columns], axis=1).astype(np.int32)


class Fused:
    """The engine behind the interface of :class:`pqmim.prior.engine.Model`."""

    device = torch.device("cpu")

    def __init__(self, checkpoint: Checkpoint, forms: Mapping[str, str]) -> None:
        self.config, self.model_id = checkpoint.config, checkpoint.model_id
        config, arrays = checkpoint.config, checkpoint.arrays
        self.forms = forms
        self.codes = np.ascontiguousarray(arrays["codes"].reshape(-1, config.dims))
        self.first = (np.arange(config.subcodes) * (config.codewords + 1)).astype(np.int32)
        place = arrays["row"].astype(np.int32)[:, None] + arrays["column"].astype(np.int32)
        self.place = np.ascontiguousarray(place.reshape(POSITIONS, config.dims))
        self.blocks = [self._block(arrays, f"blocks.{b}", x) for b, x in enumerate(config.local)]
        span, heads = config.together * config.codewords, config.subcodes // config.together
        self.heads = [
            self._layer(arrays, "head", slice(h * span, (h + 1) * span)) for h in range(heads)
        ]
        self.chain = None
        if config.chain:
            self.chain = np.ascontiguousarray(arrays["chain"].reshape(-1, config.dims))
        self.gain = float(exact.norm_gain(config.dims))
        self.table = np.array(entropy.exponential_table(), dtype=np.int32)

    def _layer(self, arrays: Arrays, name: str, rows: slice = slice(None)) -> Layer:
        carrier = products.FORMS[self.forms[name.split(".")[-1]]]
        weight = torch.from_numpy(arrays[f"{name}.weight"][rows]).to(carrier)
        bias, shift = (
            arrays[f"{name}.{part}"][rows].astype(np.int32) for part in ("bias", "shift")
        )
        return Layer(weight.T.contiguous(), bias, shift)

    def _block(self, arrays: Arrays, name: str, local: bool) -> Block:
        score, value, act = (int(v) for v in arrays[f"{name}.exponents"])
        return Block(
            local=self._layer(arrays, f"{name}.local") if local else None,
            query_key_value=self._layer(arrays, f"{name}.query_key_value"),
            strips=strips_of(arrays[f"{name}.position"]),
            score_shift=score,
            value_scale=1 << value,
            out=self._layer(arrays, f"{name}.out"),
            up=self._layer(arrays, f"{name}.up"),
            act=act,
            down=self._layer(arrays, f"{name}.down"),
        )

    def hidden(self, tokens: Tensor, present: Tensor) -> Tensor:
        """See :class:`pqmim.prior.engine.Model`."""
        everywhere = torch.ones(present.shape, dtype=torch.bool)
        rows = self.rows(tokens, present, everywhere)
        return rows.to(torch.float32).reshape(len(tokens), POSITIONS, -1)

    @torch.no_grad()
    def rows(self, tokens: Tensor, present: Tensor, cells: Tensor) -> Tensor:
        """See :class:`pqmim.prior.engine.Model`; int8, or int32 if there is a chain."""
        flat = tokens.reshape(-1, self.config.subcodes).numpy() + self.first
        inside = present.reshape(-1).numpy()
        x = np.empty((len(flat), self.config.dims), np.int32)
        y = torch.empty(x.shape, dtype=torch.int8)
        kernels.embed(flat.astype(np.int32), self.codes, self.place, x)
        kernels.norm(x, self.gain, y.numpy())
        wanted = np.flatnonzero(cells.reshape(-1).numpy())
        everything = np.arange(len(flat))
        for block in self.blocks:
            ask = wanted if block is self.blocks[-1] else everything
            x, y = self._run(block, x, y, inside, ask)
        return y if self.chain is None else torch.from_numpy(x)

    def _run(
        self,
        block: Block,
        x: NDArray[np.int32],
        y: Tensor,
        inside: NDArray[np.bool_],
        ask: NDArray[np.int64],
    ) -> tuple[NDArray[np.int32], Tensor]:
        """Residual and its norm of all rows -> of the rows asked for, one block on."""
        if block.local is not None:
            near = torch.empty((len(x), len(exact.NEIGHBOURS) * x.shape[1]), dtype=torch.int8)
            kernels.around(y.numpy(), inside, near.numpy())
            self._add(block.local, near, x, y)
        mixed = self._attention(block, y, inside, ask)
        if len(ask) < len(x):
            x, y = x[ask], y[: len(ask)]
        self._add(block.out, mixed, x, y)
        inner = torch.empty((len(x), self.config.hidden), dtype=torch.int8)
        up = block.up
        kernels.activate(up.sums(y), up.bias, up.shift, block.act, inner.numpy())
        self._add(block.down, inner, x, y)
        return x, y

    def _add(self, layer: Layer, operand: Tensor, x: NDArray[np.int32], y: Tensor) -> None:
        """Add a layer to the residual ``x`` and put its norm into ``y``."""
        sums = layer.sums(operand)
        kernels.add_norm(sums, layer.bias, layer.shift, x, self.gain, y.numpy())

    def _attention(
        self, block: Block, y: Tensor, inside: NDArray[np.bool_], ask: NDArray[np.int64]
    ) -> Tensor:
        """int8 [n * 256, D] -> int8 [rows asked for, D]."""
        layer, dims = block.query_key_value, self.config.dims
        packed = torch.empty((len(y), 3 * dims), dtype=torch.int8)
        kernels.requantise(layer.sums(y), layer.bias, layer.shift, packed.numpy())
        mixed = torch.empty((len(ask), dims), dtype=torch.int8)
        ends = np.searchsorted(ask, np.arange(0, len(y) + 1, POSITIONS))
        for w, (begin, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
            window = slice(w * POSITIONS, (w + 1) * POSITIONS)
            absent = np.where(inside[window], 0, kernels.ABSENT).astype(np.int32)
            at = ask[begin:end] - window.start
            self._window(block, packed[window], at, absent, mixed[begin:end].numpy())
        return mixed

    def _window(
        self,
        block: Block,
        packed: Tensor,
        at: NDArray[np.int64],
        absent: NDArray[np.int32],
        out: NDArray[np.int8],
    ) -> None:
        """Attention of the positions ``at`` of one window, one head after the other."""
        count, heads, dims = len(at), self.config.heads, self.config.dims
        rows = packed if count == POSITIONS else packed[torch.from_numpy(at)]
        queries = rows[:, :dims].split(dims // heads, 1)
        keys, values = (
            packed[:, part * dims : (part + 1) * dims].to(products.FORMS[self.forms[name]])
            for part, name in ((1, "scores"), (2, "mix"))
        )
        keys_of, values_of = keys.split(dims // heads, 1), values.split(dims // heads, 1)
        scores = torch.empty((count, POSITIONS), dtype=torch.int32)
        weight = torch.empty((count, POSITIONS), dtype=torch.int8)
        mixed = torch.empty((heads, count, dims // heads), dtype=torch.int32)
        total = np.empty((heads, count), np.int32)
        score_rows, weight_rows = scores.numpy(), weight.numpy()
        for h, own in enumerate(mixed.unbind(0)):
            products.product(queries[h], keys_of[h].T, out=scores)
            kernels.attend(
                score_rows, at, block.strips[h], absent, block.score_shift, weight_rows, total[h]
            )
            products.product(weight, values_of[h], out=own)
        kernels.mix(mixed.numpy(), total, packed.numpy()[:, 2 * dims :], block.value_scale, out)

    def _operand(self, rows: Tensor, part: int, before: Tensor | None) -> Tensor:
        """Rows -> what the head of a part takes, int8 [n, D]."""
        if self.chain is None:
            return rows.to(torch.int8)
        if before is None:
            before = torch.empty((len(rows), 0), dtype=torch.int64)
        told = exact.chain_rows(self.config, part, before).to(torch.int32).numpy()
        out, x = torch.empty(rows.shape, dtype=torch.int8), np.empty(rows.shape, np.int32)
        kernels.embed(told, self.chain, rows.to(torch.int32).contiguous().numpy(), x)
        kernels.norm(x, self.gain, out.numpy())
        return out

    def logits(self, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
        """See :class:`pqmim.prior.engine.Model`."""
        layer, config = self.heads[part], self.config
        total = (layer.sums(self._operand(rows, part, before)) + layer.bias) >> layer.shift
        values = torch.from_numpy(total.clip(-exact.LOGIT, exact.LOGIT)).to(torch.float32)
        return values.reshape(len(rows), config.together, config.codewords)

    def frequencies(self, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
        """See :class:`pqmim.prior.engine.Model`."""
        layer, config = self.heads[part], self.config
        out = torch.empty((len(rows), config.together, config.codewords))
        kernels.frequencies(
            layer.sums(self._operand(rows, part, before)), layer.bias, layer.shift,
            config.codewords, self.table, out.flatten(0, 1).numpy(),
        )  # fmt: skip
        return out

    def intervals(self, weights: Tensor, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`pqmim.prior.engine.Model`."""
        pair = np.empty((2, len(weights)), np.int64)
        kernels.intervals(weights.contiguous().numpy(), symbols.contiguous().numpy(), pair)
        return torch.from_numpy(pair[0]), torch.from_numpy(pair[1])

    def cheapest(self, error: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
        """See :class:`pqmim.prior.engine.Model`."""
        codes = np.empty((error.shape[1], error.shape[0]), np.int64)
        bits = (weights + 1.0).log2_()
        operands = (x.detach().contiguous().numpy() for x in (error, scale, bits))
        kernels.cheapest(*operands, codes)
        return torch.from_numpy(codes)


def agree(model: Fused) -> bool:
    """Whether frequencies and choices equal the tensor form's on the test vector."""
    tokens, present = (torch.from_numpy(a)[None] for a in engine.probe(model.config))
    rows = model.rows(tokens, present, present)
    weights, wanted = model.frequencies(rows, 0), entropy.weights(model.logits(rows, 0))
    error, scale = wanted.transpose(0, 1).sqrt().to(torch.float32), torch.ones(wanted.shape[1])
    codes = model.cheapest(error, scale, weights)
    pair = model.intervals(weights.flatten(0, 1), codes.reshape(-1))
    exact_pair = entropy.intervals(wanted.flatten(0, 1), codes.reshape(-1))
    return torch.equal(weights.double(), wanted) and all(map(torch.equal, pair, exact_pair))


def shapes(config: PriorConfig) -> dict[str, products.Shape]:
    """Rows, inputs and outputs of every product, for one window."""
    wide, span = config.dims, config.together * config.codewords
    return {
        "query_key_value": (POSITIONS, wide, 3 * wide),
        "scores": (POSITIONS, config.head_dims, POSITIONS),
        "mix": (POSITIONS, POSITIONS, config.head_dims),
        "out": (POSITIONS, wide, wide),
        "up": (POSITIONS, wide, config.hidden),
        "down": (POSITIONS, config.hidden, wide),
        "local": (POSITIONS, len(exact.NEIGHBOURS) * wide, wide),
        "head": (POSITIONS, wide, span),
    }


def load(checkpoint: Checkpoint, form: str | None = None) -> Fused:
    """The engine, compiled; each product in the form that is the fastest here, or all in one.

    Raises:
        RuntimeError: the loops do not compile, or compute something else.
    """
    names = shapes(checkpoint.config)
    forms = dict.fromkeys(names, form) if form else products.choose(names, Fused.device)
    model = Fused(checkpoint, forms)
    try:
        same = agree(model)
    except (kernels.CompileError, OSError) as error:
        raise RuntimeError(f"the loops do not compile: {error}") from error
    if not same:
        raise RuntimeError("compiled frequencies differ from the tensor form's")
    return model
