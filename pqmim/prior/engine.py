"""What an engine of the entropy model does, and the test vector that each must reproduce.

The engines are ``pqmim.prior.tensors`` and ``pqmim.prior.fused``; ``pqmim.prior.load`` picks one.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqmim.prior import frequencies as entropy
from pqmim.prior.config import WINDOW, PriorConfig


class Model(Protocol):
    """What the coder needs of an entropy model."""

    config: PriorConfig
    model_id: bytes
    device: torch.device

    def hidden(self, tokens: Tensor, present: Tensor) -> Tensor:
        """int64 [B, 16, 16, M] and bool [B, 16, 16] -> [B, 256, D]."""

    def rows(self, tokens: Tensor, present: Tensor, cells: Tensor) -> Tensor:
        """The rows of :meth:`hidden` where bool ``cells`` [B, 16, 16], [n, D] in any dtype."""

    def logits(self, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
        """[n, D] -> integers in [n, sub-codes of the part, K].

        Args:
            rows: of :meth:`hidden`.
            part: which head (``PriorConfig.parts``).
            before: int64 [n, j], codes at the same positions of the j sub-codes of the group that
                come before the part; None: there are none.  Models without a chain ignore it.
        """

    def frequencies(self, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
        """:func:`pqmim.prior.frequencies.weights` of :meth:`logits`, in float32 or float64."""

    def intervals(self, weights: Tensor, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """:func:`pqmim.prior.frequencies.intervals`."""

    def cheapest(self, error: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
        """:func:`pqmim.prior.frequencies.cheapest`."""


class Tensors:
    """What a model needs besides ``hidden`` and ``logits``, by tensor operations."""

    def rows(self: Model, tokens: Tensor, present: Tensor, cells: Tensor) -> Tensor:
        """See :class:`Model`."""
        return self.hidden(tokens, present).flatten(0, 1)[cells.reshape(-1)]

    def frequencies(self: Model, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
        """See :class:`Model`."""
        return entropy.weights(self.logits(rows, part, before))

    def intervals(self, weights: Tensor, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Model`."""
        return entropy.intervals(weights, symbols)

    def cheapest(self, error: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
        """See :class:`Model`."""
        return entropy.cheapest(error, scale, weights)


def probe(config: PriorConfig) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The test vector: one window [16, 16, M], 9 x 7 positions of it present, half masked."""
    state, tokens = 1, np.full((WINDOW, WINDOW, config.subcodes), config.mask, dtype=np.int64)
    for index in np.ndindex(9, 7, config.subcodes):
        state = (state * 1664525 + 1013904223) % 2**32  # Numerical Recipes
        if state >> 31:
            tokens[index] = (state >> 16) % config.codewords
    present = np.zeros((WINDOW, WINDOW), dtype=np.bool_)
    present[:9, :7] = True
    return tokens, present


def probe_sha256(model: Model) -> str:
    """SHA-256 of the test vector's logits, as little-endian int32."""
    tokens, present = probe(model.config)
    hidden = model.hidden(
        torch.from_numpy(tokens)[None].to(model.device),
        torch.from_numpy(present)[None].to(model.device),
    )
    rows = hidden[0, torch.from_numpy(present.reshape(-1)).to(model.device)]
    digest, config = hashlib.sha256(), model.config
    for part in range(config.subcodes // config.together):
        values = model.logits(rows, part, probe_before(config, part, rows)).to(torch.int32)
        digest.update(np.ascontiguousarray(values.cpu().numpy(), dtype="<i4").tobytes())
    return digest.hexdigest()


def probe_before(config: PriorConfig, part: int, rows: Tensor) -> Tensor:
    """The test vector's codes of the sub-codes before a part, int64 [n, j]."""
    known = torch.arange(part * config.together % config.group, device=rows.device)
    row = torch.arange(len(rows), device=rows.device)[:, None]
    return (7 * row + 13 * known + part) % config.codewords
