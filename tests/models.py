"""Tiny models for tests: random weights, made in milliseconds, the same every time."""

from __future__ import annotations

import dataclasses
import functools

import torch

from pqmim import checkpoint
from pqmim.autoencoder.config import AutoencoderConfig
from pqmim.autoencoder.network import PQVAE
from pqmim.autoencoder.quantizer import ProductQuantizer
from pqmim.codec import Codec
from pqmim.prior import integers
from pqmim.prior.config import PriorConfig
from tests.pqmim.prior.exact_tools import tiny_checkpoint

TINY = AutoencoderConfig(
    widths=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1),
    subcodes=4, codewords=16, subcode_dims=2,
)  # fmt: skip

# Two layers of two sub-codes over six channels, of which the last two have the second layer alone.
LAYERED = dataclasses.replace(TINY, layers=(2, 2), channels=6, prices=(0.01, 0.1))
LAYERED_DEAL = [[0, 1], [2, 3], [0, 4], [5, -1]]

TINY_PRIOR = PriorConfig(
    subcodes=4, codewords=16, group=2, dims=16, heads=2, hidden=32, local=(True,)
)


@functools.cache
def tiny_prior(*, chain: bool = True) -> integers.Checkpoint:
    """The entropy model of :data:`TINY`, from an integer recurrence."""
    return tiny_checkpoint(dataclasses.replace(TINY_PRIOR, chain=chain))


def tiny_bytes(*, prior: bool = False, of: AutoencoderConfig = TINY, **changes: int) -> bytes:
    """The weights file of a random model of stride 16 with 4 sub-codes of 16 codewords."""
    torch.manual_seed(0)
    model = PQVAE(dataclasses.replace(of, **changes))
    for layer in (model.encoder.linear, model.decoder.linear):
        torch.nn.init.normal_(layer.weight, std=0.05)
    if of is LAYERED:
        deal_out(model.quantizer)
    return checkpoint.to_bytes(model, tiny_prior() if prior else None)


def deal_out(quantizer: ProductQuantizer) -> None:
    """Give the sub-codes of :data:`LAYERED` their channels, and code lengths that differ."""
    quantizer.deal.copy_(torch.tensor(LAYERED_DEAL))
    quantizer.codebook[2:] *= 0.3
    quantizer.codebook[3, :, 1] = 0.0
    share = torch.softmax(torch.randn(quantizer.lengths.shape), -1)
    quantizer.lengths.copy_(-share.log2())


def tiny_codec(*, prior: bool = False, of: AutoencoderConfig = TINY, **changes: int) -> Codec:
    """The codec of :func:`tiny_bytes`."""
    return Codec.from_bytes(tiny_bytes(prior=prior, of=of, **changes))
