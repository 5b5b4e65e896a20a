"""The entropy model by tensor operations: on any device, and the judge behind the same interface.

Integers carried in float32; a linear layer runs in the int8 kernel of its device where that is
exact and faster (``pqmim.prior.products``).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pqmim.prior import exact, oracle, products
from pqmim.prior.config import PriorConfig
from pqmim.prior.engine import Tensors
from pqmim.prior.integers import Arrays, Checkpoint


class Oracle(Tensors):
    """The int64 NumPy specification behind the engine's interface, seconds per window."""

    device = torch.device("cpu")

    def __init__(self, config: PriorConfig, arrays: Arrays, model_id: bytes = b"") -> None:
        self.config, self.arrays, self.model_id = config, arrays, model_id

    def hidden(self, tokens: Tensor, present: Tensor) -> Tensor:
        """See :class:`Model`."""
        result = np.zeros((len(tokens), exact.POSITIONS, self.config.dims), dtype=np.float32)
        for out, t, p in zip(result, tokens.numpy(), present.numpy(), strict=True):
            out[p.reshape(-1)] = oracle.hidden(self.config, self.arrays, t, p)
        return torch.from_numpy(result)

    def logits(self, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
        """See :class:`Model`."""
        known = np.zeros((len(rows), 0), np.int64) if before is None else before.numpy()
        integers = rows.numpy().astype(np.int64)
        values = oracle.logits(self.config, self.arrays, integers, part, known)
        return torch.from_numpy(values.astype(np.float32))


class Engine(Tensors):
    """Integers carried in float32 on one device; same results on all of them."""

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, form: str | None = None
    ) -> None:
        """``form``: of all linear layers, of ``products.FORMS``; by default the faster one."""
        self.config, self.model_id = checkpoint.config, checkpoint.model_id
        self.device = device
        self.net = to_network(checkpoint.config, checkpoint.arrays, device)
        use_int8_kernels(self.net, form)

    @torch.no_grad()
    def hidden(self, tokens: Tensor, present: Tensor) -> Tensor:
        """See :class:`Model`."""
        return exact.hidden(self.net, tokens, None if bool(present.all()) else present)

    @torch.no_grad()
    def logits(self, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
        """See :class:`Model`."""
        return exact.logits(self.net, rows, part, before)


def to_network(config: PriorConfig, arrays: Arrays, device: torch.device) -> exact.Network:
    """The engine's form of proven integers."""

    def carrier(name: str) -> Tensor:
        return torch.from_numpy(arrays[name].astype(np.float32)).to(device)

    def scale(name: str) -> Tensor:
        values = [math.ldexp(1.0, -int(s)) for s in arrays[name]]
        return torch.tensor(values, dtype=torch.float32, device=device)

    def layer(name: str, limit: int, rows: slice = slice(None)) -> exact.Linear:
        weight, bias, by = (
            carrier(f"{name}.weight"),
            carrier(f"{name}.bias"),
            scale(f"{name}.shift"),
        )
        return exact.Linear((weight * by[:, None])[rows], (bias * by)[rows], by[rows], limit)

    blocks = []
    for b, local in enumerate(config.local):
        name = f"blocks.{b}"
        score, value, act = (int(v) for v in arrays[f"{name}.exponents"])
        position = carrier(f"{name}.position").flatten(1) * math.ldexp(1.0, -score)
        blocks.append(
            exact.Block(
                local=layer(f"{name}.local", 2**17) if local else None,
                query_key_value=layer(f"{name}.query_key_value", exact.ACTIVATION),
                bias=position[:, exact.relative_index(device)],
                score_scale=math.ldexp(1.0, -score),
                value_scale=math.ldexp(1.0, value),
                out=layer(f"{name}.out", 2**17),
                up=layer(f"{name}.up", exact.HIDDEN),
                act_scale=math.ldexp(1.0, -act),
                down=layer(f"{name}.down", 2**17),
            )
        )
    span, rows = config.together * config.codewords, config.subcodes * config.codewords
    heads = [
        layer("head", exact.LOGIT, slice(first, first + span)) for first in range(0, rows, span)
    ]
    place = (carrier("row")[:, None] + carrier("column")[None]).flatten(0, 1)
    chain = carrier("chain").flatten(0, 1) if config.chain else None
    return exact.Network(config, carrier("codes").flatten(0, 1), place, blocks, heads, chain)


def use_int8_kernels(net: exact.Network, form: str | None) -> None:
    """Switch every linear layer that is faster there to the int8 kernel, or all to a form."""
    layers = list(net.heads)
    for block in net.blocks:
        layers += [block.query_key_value, block.out, block.up, block.down]
        layers += [block.local] if block.local is not None else []
    names = {f"{i}": (exact.POSITIONS, *layer.weight.shape[::-1]) for i, layer in enumerate(layers)}
    device = layers[0].weight.device
    forms = dict.fromkeys(names, form) if form else products.choose(names, device)
    for name, layer in zip(names, layers, strict=True):
        if forms[name] == "int8":
            integers = layer.weight / layer.scale[:, None]
            layer.bytes_in_out = integers.to(torch.int8).T.contiguous()
