"""Padding of images to multiples of the stride."""

from __future__ import annotations

import torch
from torch import Tensor


def reflect_pad(pixels: Tensor, multiple: int) -> Tensor:
    """Pad bottom and right of [B,C,H,W] to multiples by reflection; any size, even one pixel."""
    height, width = pixels.shape[2:]
    if height % multiple:
        pixels = pixels[:, :, _reflected(height, multiple).to(pixels.device)]
    if width % multiple:
        pixels = pixels[:, :, :, _reflected(width, multiple).to(pixels.device)]
    return pixels


def _reflected(length: int, multiple: int) -> Tensor:
    """Indices 0, 1, ..., length-1, length-2, ..., 1, 0, 1, ... up to the next multiple."""
    period = max(1, 2 * (length - 1))
    index = torch.arange(-(-length // multiple) * multiple) % period
    return torch.minimum(index, period - index)
