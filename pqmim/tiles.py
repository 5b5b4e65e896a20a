"""Large pictures by windows: the transforms need memory for a window, not for the picture.

    source --windows of 64 x 64 positions, with a margin--> transform --their inner parts--> result

The transforms are convolutional and see no further than their margin, so a window gives what the
whole picture gives: on one machine bit for bit as far as was measured (docs/log.md), elsewhere but
for the last bits of floating point.  What a file says is its codes, which nobody computes twice.
Pictures up to 4 megapixels go whole.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pqmim.autoencoder.network import PQVAE, to_float, to_uint8
from pqmim.meter import Watch

LARGE = 1 << 14  # positions from which a picture goes by windows: 4.2 megapixels at stride 16
SIDE = 64  # positions of a window's inner part

WATCH = Watch()  # of windows


def latent(model: PQVAE, pixels: Tensor) -> Tensor:
    """uint8 [B,3,H,W], padded -> latent [B,M*d,h,w]."""
    stride = model.config.stride
    return _by_windows(lambda x: model.encoder(to_float(x)), pixels, (stride, 1), model.encoder)


def encode(model: PQVAE, pixels: Tensor, quality: int) -> Tensor:
    """uint8 [B,3,H,W], padded -> the nearest codes int64 [B,h,w,quality]."""

    def codes(x: Tensor) -> Tensor:
        return model.encode(x, quality).permute(0, 3, 1, 2)

    stride = model.config.stride
    return _by_windows(codes, pixels, (stride, 1), model.encoder).permute(0, 2, 3, 1)


def decode(model: PQVAE, codes: Tensor) -> Tensor:
    """Codes int64 [B,h,w,m] -> uint8 [B,3,h*f,w*f]."""

    def pixels(x: Tensor) -> Tensor:
        return model.decode(x.permute(0, 2, 3, 1))

    stride = model.config.stride
    return _by_windows(pixels, codes.permute(0, 3, 1, 2), (1, stride), model.decoder)


def decode_latent(model: PQVAE, values: Tensor) -> Tensor:
    """Latent [B,M*d,h,w] -> uint8 [B,3,h*f,w*f]."""
    stride = model.config.stride
    return _by_windows(lambda x: to_uint8(model.decoder(x)), values, (1, stride), model.decoder)


def margin(part: nn.Module) -> int:
    """Positions that a result may depend on beyond its own: one a 3 x 3 convolution at most."""
    kernels = (layer.kernel_size for layer in part.modules() if isinstance(layer, nn.Conv2d))
    return sum((max(kernel) - 1) // 2 for kernel in kernels)


def _by_windows(
    call: Callable[[Tensor], Tensor], source: Tensor, units: tuple[int, int], part: nn.Module
) -> Tensor:
    """The result of a call, of a source that may be too large for it at once.

    Args:
        call: [..., H, W] -> [..., H', W'].
        source: [..., rows * units[0], columns * units[0]].
        units: elements a side that a position has in the source, and in the result.
        part: whose convolutions the call runs.
    """
    before, after = units
    rows, columns = source.shape[-2] // before, source.shape[-1] // before
    if rows * columns <= LARGE:
        return call(source)
    around, result = margin(part), None
    corners = [(top, left) for top in range(0, rows, SIDE) for left in range(0, columns, SIDE)]
    for done, (top, left) in enumerate(corners):
        WATCH.tell(done, len(corners))
        (a, c), (b, d) = _span(top, rows, around), _span(left, columns, around)
        made = call(source[..., a * before : c * before, b * before : d * before])
        if result is None:
            result = made.new_empty((*made.shape[:-2], rows * after, columns * after))
        high, wide = min(SIDE, rows - top) * after, min(SIDE, columns - left) * after
        y, x = (top - a) * after, (left - b) * after
        inner = made[..., y : y + high, x : x + wide]
        result[..., top * after : top * after + high, left * after : left * after + wide] = inner
    return torch.empty(0) if result is None else result


def _span(first: int, length: int, around: int) -> tuple[int, int]:
    """Begin and end of a window with its margin, inside of the picture."""
    return max(0, first - around), min(length, first + SIDE + around)
