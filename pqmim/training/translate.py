"""An entropy model for the codes of another autoencoder, before any training.

When an autoencoder is trained further its codewords come to mean other things, and the entropy
model of before is worse than static tables.  Both autoencoders encode the same photographs; what a
new codeword is to the model becomes the mean of the old codewords that it meets at the same place,
weighted by P(old | new).  Embeddings and chain are averaged as they are; a head's logits are
averaged too, and their bias is set such that they say P(new) where the old ones said P(old).  What
the blocks know of pictures stays (docs/log.md: bits a code 3.17 before, 2.11 after; static 2.48).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pqmim.codec import Codec
from pqmim.prior.integers import Checkpoint
from pqmim.training import crops
from pqmim.training.autoencoder import PRICES, SHARES
from pqmim.training.codes import measure_lengths, static_codes
from pqmim.training.masters import masters
from pqmim.training.network import Prior
from pqmim.training.to_integers import choose_rows, export

IMAGES = 500  # for the meetings, in about a minute of two cores
BELIEF = 2.0  # meetings that the old codes' own frequencies count for
RARE = 0.03  # share of all uses that every codeword has an equal part in


@torch.inference_mode()
def meetings(old: Codec, new: Codec, images: Sequence[Tensor], seed: int = 0) -> Tensor:
    """How often codewords meet, [M, K new, K old], in uint8 [3, H, W] images at random prices.

    Leaves the static code lengths of these images in both quantizers.

    Raises:
        ValueError: the grids of codes do not lie on each other.
    """
    if old.config.stride != new.config.stride:
        raise ValueError(
            f"autoencoders of stride {old.config.stride} and {new.config.stride}: an entropy model "
            "cannot go from one to the other"
        )
    rng, (subcodes, words) = np.random.default_rng(seed), old.model.quantizer.codebook.shape[:2]
    met = torch.zeros(subcodes, words * words)
    for codec in (old, new):
        measure_lengths(codec, list(images[:: max(1, len(images) // 100)]))
    for image in images:
        price = float(rng.choice(PRICES, p=SHARES))
        now, before = (static_codes(c, image, price).flatten(0, 1).T for c in (new, old))
        for counts, pairs in zip(met, (now * words + before).cpu(), strict=True):
            counts += torch.bincount(pairs, minlength=words * words)
    return met.reshape(subcodes, words, words)


@torch.no_grad()
def rewrite(prior: Prior, met: Tensor) -> None:
    """Change a model of the old codes into one of the new, by :func:`meetings`."""
    subcodes, words, dims = *met.shape[:2], prior.config.dims
    before, now = met.sum(1), met.sum(2)
    share = before / before.sum(1, keepdim=True)
    mean = (met + BELIEF * share[:, None]) / (now[..., None] + BELIEF)  # P(old | new)
    codes = prior.codes.reshape(subcodes, words + 1, dims)
    codes[:, :words] = mean @ codes[:, :words]
    if prior.chain is not None:
        prior.chain.copy_((mean @ prior.chain.reshape(subcodes, words, dims)).flatten(0, 1))
    weight, bias = (x.reshape(subcodes, words, -1) for x in (prior.head.weight, prior.head.bias))
    prior.head.weight.copy_((mean @ weight).flatten(0, 1))
    prior.head.bias.copy_((octaves(now) + mean @ (bias - octaves(before))).flatten())


def octaves(counts: Tensor) -> Tensor:
    """Counts [M, K] -> log2 of their shares, [M, K, 1], none of them far from the others."""
    share = counts / counts.sum(1, keepdim=True)
    return ((1 - RARE) * share + RARE / counts.shape[1]).log2()[..., None]


def translate(checkpoint: Checkpoint, met: Tensor) -> Checkpoint:
    """The entropy model of old codes for new ones, by :func:`meetings`."""
    prior, powers = masters(checkpoint, met.device)
    rewrite(prior, met)
    choose_rows(prior, powers, "head")
    return export(prior, powers)


def follow(checkpoint: Checkpoint, old: Codec, new: Codec, shards: Sequence[Path]) -> Checkpoint:
    """The old codec's entropy model for the new one's codes, by some photographs of the shards.

    Raises:
        ValueError: see :func:`meetings`.
    """
    if torch.equal(old.model.quantizer.codebook, new.model.quantizer.codebook):
        return checkpoint
    images = crops.load_images(list(shards))
    return translate(checkpoint, meetings(old, new, images[:: max(1, len(images) // IMAGES)]))
