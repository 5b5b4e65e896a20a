"""Codes of the training photographs, for stage 2.

The frozen autoencoder encodes every photograph several times: as it is, mirrored, and at other
scales and offsets, because a grid of codes is not shift invariant; and at random prices of a bit,
with static code lengths in place of those that are yet to be learned (``pqmim.coding.search``).
One pass over 1,424 photographs of 0.2 Mpx takes about two minutes of one core.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pqmim.autoencoder.network import to_float
from pqmim.autoencoder.padding import reflect_pad
from pqmim.codec import Codec
from pqmim.coding import schedule
from pqmim.training import crops
from pqmim.training.autoencoder import PRICES, SHARES

log = logging.getLogger(__name__)
SCALES = (1.0, 1.0, 0.7, 1.3)  # of pass 0, 1, 2, ...; repeated


def measure_lengths(codec: Codec, images: list[Tensor], rounds: int = 4) -> None:
    """Set the quantizer's static code lengths to those of the codes that they lead to."""
    quantizer = codec.model.quantizer
    latents = [codec.model.encoder(_pixels(codec, image)) for image in images]
    quantizer.count.zero_()
    for _ in range(rounds):
        uses = torch.zeros_like(quantizer.count)
        for i, latent in enumerate(latents):
            vectors = quantizer.vectors(latent)
            price = vectors.new_full(vectors.shape[1:2], PRICES[i % len(PRICES)])
            for used, codes in zip(uses, quantizer.nearest(vectors, price), strict=True):
                used += torch.bincount(codes, minlength=quantizer.codewords)
        quantizer.count.copy_(uses)


def corpus_codes(
    codec: Codec, images: list[Tensor], passes: int, seed: int = 0
) -> list[NDArray[np.uint8]]:
    """Codes uint8 [h, w, M] of ``passes`` variants of uint8 [3, H, W] images."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(passes):
        for image in images:
            variant = image if number == 0 else _vary(image, SCALES[number % len(SCALES)], rng)
            grid = static_codes(codec, variant, float(rng.choice(PRICES, p=SHARES)))
            found.append(grid.cpu().numpy().astype(np.uint8))
        log.info("pass %d of %d: %d grids of codes", number + 1, passes, len(found))
    return found


def static_codes(codec: Codec, image: Tensor, price: float) -> Tensor:
    """Codes int64 [h, w, M] of uint8 [3, H, W] at a price of a bit, with static code lengths."""
    latent = codec.model.encoder(_pixels(codec, image))
    vectors = codec.model.quantizer.vectors(latent)
    codes = codec.model.quantizer.nearest(vectors, vectors.new_full(vectors.shape[1:2], price))
    return codes.T.reshape(*latent.shape[2:], -1)


def _pixels(codec: Codec, image: Tensor) -> Tensor:
    """uint8 [3, H, W] -> the encoder's input [1, 3, H', W'], padded."""
    return to_float(reflect_pad(image[None].to(codec.device), codec.config.stride))


def _vary(image: Tensor, scale: float, rng: np.random.Generator) -> Tensor:
    """Mirrored or not, scaled, and without up to 15 lines at the top and left."""
    top, left = rng.integers(0, 16, 2)
    image = image[:, top:, left:]
    if scale != 1.0:
        size = [max(16, round(n * scale)) for n in image.shape[1:]]
        image = F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]
    return image.flip(2) if rng.random() < 0.5 else image


def searched_codes(
    codec: Codec, images: list[Tensor], count: int, seed: int = 1
) -> list[NDArray[np.uint8]]:
    """Codes [h, w, M] of ``count`` variants as the codec's own entropy model would have them.

    They are what it will meet: a search takes probable codes, which static lengths know less about.

    Raises:
        pqmim.codec.NoPriorError: the weights hold no entropy model.
    """
    rng = np.random.default_rng(seed)
    low, high = np.log([PRICES[1], PRICES[-1]])
    found = []
    for i in rng.integers(len(images), size=count):
        variant = _vary(images[i], float(rng.choice(SCALES)), rng)
        price = float(np.exp(rng.uniform(low, high)))
        codes, _ = codec.search(variant[None], None, price, schedule.FAST_PLAN)
        found.append(codes[0].numpy())
    return found


def load_codes(
    codec: Codec, shards: list[Path], passes: int, searched: int
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Codes to train on, and of the first 12 photographs of the last shard, which is held out.

    ``searched`` grids are chosen by the codec's entropy model, and count six times.  Leaves the
    static code lengths of the codes in the quantizer.
    """
    shards = sorted(shards)
    with torch.inference_mode():
        images = crops.load_images(shards[:-1])
        measure_lengths(codec, images[:200])
        train = corpus_codes(codec, images, passes)
        train += 6 * searched_codes(codec, images, searched)
        held_out = corpus_codes(codec, crops.load_images(shards[-1:])[:12], 1)
    return train, held_out
