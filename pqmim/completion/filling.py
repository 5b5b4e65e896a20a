"""What stands where nothing was sent: absent, the mean, or codes drawn by the entropy model.

    codes [B,h,w,m] + known bool --absent: the autoencoder's learned vector--+
                                 --mean: expected codeword------------------ +--> latent --> pixels
                                 --Rule: codes drawn (pqmim.completion.draw)------+

The mean is nearest to the image in squared error and blurred; a draw is sharp and invented.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pqmim.completion import draw
from pqmim.completion.rule import Rule
from pqmim.tokenizer import Tokenizer

Fill = Literal["absent", "mean"] | Rule


def complete(codec: Tokenizer, codes: Tensor, known: Tensor, rule: Rule) -> Tensor:
    """Codes uint8 [B,h,w,m] of which some are ``known`` (bool) -> all of them, on the CPU.

    Known codes stay; the rest is the same for a seed on every device and at any batch size.

    Raises:
        NoPriorError: the weights hold no entropy model.
        CompletionError: codes or a mask that cannot be of this model, or too few seeds.
    """
    arrays = codes.cpu().numpy(), known.cpu().numpy()
    return torch.from_numpy(draw.complete(codec.needed_prior(), *arrays, rule))


def preview(codec: Tokenizer, codes: Tensor, known: Tensor, height: int, width: int) -> Tensor:
    """uint8 [B,3,height,width] of the codes that are known and the mean of the others.

    Raises:
        NoPriorError: the weights hold no entropy model.
        CompletionError: codes or a mask that cannot be of this model.
        ValueError: codes that cannot be of such an image.
    """
    quantizer = codec.model.quantizer
    prior, arrays = codec.needed_prior(), (codes.cpu().numpy(), known.cpu().numpy())
    means = draw.expected(prior, *arrays, quantizer.codebook.to(prior.device))
    codes = codes.masked_fill(~known.to(codes.device), 0)
    codec.check_codes(codes, height, width)
    return codec.decode_mixed(codes, known, torch.from_numpy(means), height, width)


def picture(
    codec: Tokenizer, codes: Tensor, known: Tensor | None, size: tuple[int, int], fill: Fill
) -> Tensor:
    """Pixels [3,H,W] of codes [1,h,w,m], all of which are there if ``known`` is None."""
    if known is None:
        return codec.decode(codes, *size)[0]
    if fill == "absent":
        return codec.decode(codes, *size, known)[0]
    if fill == "mean":
        return preview(codec, codes, known, *size)[0]
    return codec.decode(complete(codec, codes, known, fill), *size)[0]


def coded_size(
    codec: Tokenizer, height: int, width: int, rows: int, columns: int
) -> tuple[int, int]:
    """Pixels of what a grid of codes stands for: the image itself, or one resized to fill it."""
    if codec.grid(height, width) == (rows, columns):
        return height, width
    return rows * codec.config.stride, columns * codec.config.stride


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """uint8 [3,h,w] -> [3,height,width] on the CPU, by Pillow's Lanczos filter."""
    if tuple(pixels.shape[1:]) == (height, width):
        return pixels
    image = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    resized = np.array(image.resize((width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()
