"""Rate and distortion on held-out crops with static code lengths, while a run goes on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pqmim.autoencoder.network import PQVAE
from pqmim.training.photographs.autoencoder import ALL_BELOW, latent_rows, mean_error, quantised

SCORED = (0.015, 0.04, 0.1, 0.25)  # prices of the score
FINEST = 0.0012
DB = 0.28  # what a tenth of the rate is worth in dB, times ten: the slope of photographs
PART = 8


@torch.no_grad()
def validate(model: PQVAE, pixels: Tensor) -> dict[str, float]:
    """PSNR in dB and static bpp at some prices, of uint8 [n,3,s,s], and one score of all.

    The score is the mean over prices of 100 (ln bpp - 0.28 dB), lower is better: 1 is 1 % of rate.
    """
    report: dict[str, float] = {}
    model.refresh_gain()
    spans = model.config.spans
    points = [(price, spans[0 if price > ALL_BELOW else -1].stop) for price in SCORED]
    points += [(FINEST, spans[-1].stop), (0.0, spans[0].stop)]
    latents = [latent_rows(model, part) for part in pixels.split(PART)]
    scores = []
    for price, quality in points:
        errors, bits = [], 0.0
        for part, rows in zip(pixels.split(PART), latents, strict=True):
            codes, own = quantised(model, rows, quality, price)
            errors.append(mean_error(model, codes, part))
            bits += float(own.sum())
        quality_db = float((10 * (255**2 / torch.cat(errors).clamp_min(1e-3)).log10()).mean())
        bpp = bits / pixels[:, 0].numel()
        name = f"{price:g}" if price else f"m{quality}"
        report |= {f"psnr_{name}": quality_db, f"bpp_{name}": bpp}
        if price in SCORED:
            scores.append(100 * (math.log(bpp) - DB * quality_db))
    return report | {"score": sum(scores) / len(scores)}
