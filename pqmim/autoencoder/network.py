"""The transforms of the PQ-VAE: pixels to latent and latent to pixels.

    pixels [B,3,H,W] --space-to-depth(8)--> 3x3 --blocks at stride 8--> 3x3/2 --blocks at 16-->
    latent latent [B,C,h,w] --1x1--> blocks at 16 --3x3, shuffle 2--> blocks at 8 --3x3, shuffle
    8--> pixels

Beside each trunk runs a linear map of the 16 x 16 pixels under a position (space-to-depth, 1x1),
which training starts at their principal components: the model begins as a transform codec and the
trunks learn what a linear transform cannot do.

Fully convolutional: any height and width that are multiples of the stride.  All arithmetic is at
strides 8 and 16, where a 3 x 3 convolution is matmul-bound; the first and last 3 x 3 see 24 x 24
pixels, a lapped transform, so there is no block grid.  Bottleneck residual blocks without
normalisation as in ELIC (He et al. 2022).  The decoder is deeper than the encoder: an archive pays
for encoding once per image, and quality is bought where it is cheap.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pqmim.autoencoder.config import AutoencoderConfig
from pqmim.autoencoder.quantizer import ProductQuantizer


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Start the layer at zero, so that the path it ends adds nothing at first."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Bottleneck(nn.Module):
    """x + 1x1(relu(3x3(relu(1x1(x))))) at half the width; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(1, width // 2)
        self.narrow = nn.Conv2d(width, inner, 1)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1)
        self.widen = _zero(nn.Conv2d(inner, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,h,w] -> [B,C,h,w]."""
        return x + self.widen(F.relu(self.mix(F.relu(self.narrow(x)))))


class Encoder(nn.Module):
    """Pixels in [-1, 1], [B,3,H,W] -> latent [B, C, H/f, W/f].

    ``used`` switches channels off: a strong sub-code spends its bits on few of them, and what the
    trunk puts into the others its codebook cannot hold.
    """

    used: Tensor  # [C, 1, 1], 0 or 1

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.stem)]
        width_in = 3 * config.stem**2
        for level, (width, blocks) in enumerate(
            zip(config.widths, config.encoder_blocks, strict=True)
        ):
            layers.append(nn.Conv2d(width_in, width, 3, stride=2 if level else 1, padding=1))
            layers += [Bottleneck(width) for _ in range(blocks)]
            width_in = width
        layers.append(_zero(nn.Conv2d(width_in, config.latent_dims, 1)))
        self.trunk = nn.Sequential(*layers)
        self.patch = nn.PixelUnshuffle(config.stride)
        self.linear = nn.Conv2d(3 * config.stride**2, config.latent_dims, 1)
        self.register_buffer("used", torch.ones(config.latent_dims, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return (self.trunk(x) + self.linear(self.patch(x))) * self.used


class Decoder(nn.Module):
    """Latent [B, C, h, w] -> pixels in about [-1, 1], [B,3,h*f,w*f]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        layers: list[nn.Module] = [nn.Conv2d(config.latent_dims, widths[0], 1)]
        for level, (width, blocks) in enumerate(
            zip(widths, config.decoder_blocks[::-1], strict=True)
        ):
            layers += [Bottleneck(width) for _ in range(blocks)]
            last = level == len(widths) - 1
            factor = config.stem if last else 2
            width_out = 3 if last else widths[level + 1]
            up = nn.Conv2d(width, width_out * factor**2, 3, padding=1)
            layers += [_zero(up) if last else up, nn.PixelShuffle(factor)]
        self.trunk = nn.Sequential(*layers)
        self.linear = nn.Conv2d(config.latent_dims, 3 * config.stride**2, 1)
        self.patch = nn.PixelShuffle(config.stride)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.trunk(x) + self.patch(self.linear(x))

    def power(self) -> Tensor:
        """Squared pixels that one of each channel of the latent is worth in the linear map, [C]."""
        return self.linear.weight.detach().square().sum(dim=(0, 2, 3))


class PQVAE(nn.Module):
    """Encoder, product quantizer and decoder: the whole lossy half of the codec."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = ProductQuantizer(config)
        self.decoder = Decoder(config)

    @torch.no_grad()
    def refresh_gain(self) -> None:
        """Take over from the linear decoder what an error of each sub-code costs in the pixels."""
        used = self.encoder.used.flatten()
        total = self.quantizer.rows(self.decoder.power() * used).sum(1)
        self.quantizer.gain.copy_(total / self.quantizer.rows(used).sum(1).clamp_min(1.0))

    @torch.no_grad()
    def encode(self, pixels: Tensor, quality: int) -> Tensor:
        """uint8 [B,3,H,W], H and W multiples of the stride -> codes int64 [B,H/f,W/f,quality]."""
        return self.quantizer.encode(self.encoder(to_float(pixels)), quality)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes integer [B,h,w,m] -> uint8 [B,3,h*f,w*f]."""
        return to_uint8(self.decoder(self.quantizer.decode(codes)))


def channels_last(model: PQVAE) -> PQVAE:
    """Lay the weights out as the convolutions read them."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def to_float(pixels: Tensor) -> Tensor:
    """uint8 [0, 255] -> float32 [-1, 1], channels last in memory."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1.0)


def to_uint8(x: Tensor) -> Tensor:
    """float [-1, 1] -> uint8 [0, 255], rounded and clamped."""
    return x.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8).contiguous()
