"""Tiny models for tests: random weights, made in milliseconds, the same every time."""

from __future__ import annotations

import dataclasses

import torch

from pqmim import checkpoint
from pqmim.autoencoder import PQVAE
from pqmim.codec import Codec
from pqmim.config import AutoencoderConfig

TINY = AutoencoderConfig(
    widths=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1),
    subcodes=4, codewords=16, subcode_dims=2,
)  # fmt: skip


def tiny_bytes(**changes: int) -> bytes:
    """The weights file of a random model of stride 16 with 4 sub-codes of 16 codewords."""
    torch.manual_seed(0)
    model = PQVAE(dataclasses.replace(TINY, **changes))
    for layer in (model.encoder.linear, model.decoder.linear):
        torch.nn.init.normal_(layer.weight, std=0.05)
    return checkpoint.to_bytes(model)


def tiny_codec(**changes: int) -> Codec:
    """The codec of :func:`tiny_bytes`."""
    return Codec.from_bytes(tiny_bytes(**changes))
