"""The codec: pixels -> latent -> codes, and back.

    pixels uint8 [B,3,H,W] --pad--> encoder --latent--> quantizer --codes [B,h,w,m]-->  (storage)
    (storage) --codes--> quantizer --latent--> decoder --crop--> pixels uint8 [B,3,H,W]

``h = ceil(H / f)``, ``w = ceil(W / f)``; the first m of M sub-codes are kept (``quality``), raw
rate ``m * log2(K) / f**2`` bits per pixel.  Codes of the same batch shape on the same machine are
always the same; another kernel may flip a code that lies between two codewords, which the picture
does not show.  What is stored is the codes, and they are never computed twice.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pqmim import checkpoint
from pqmim.autoencoder import PQVAE, channels_last


class Codec:
    """A loaded model on one device."""

    def __init__(self, model: PQVAE, fingerprint: str, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model = channels_last(model.eval().to(self.device))
        self.config, self.fingerprint = model.config, fingerprint
        self.code_dtype = torch.uint8 if self.config.codewords <= 256 else torch.uint16

    @classmethod
    def load(
        cls, name_or_path: str | Path = "default", device: str | torch.device = "cpu"
    ) -> Codec:
        """Load weights by path, shipped name or fingerprint.

        Raises:
            pqmim.checkpoint.CheckpointError: missing or damaged weights.
        """
        return cls.from_bytes(checkpoint.read(name_or_path), device, name=str(name_or_path))

    @classmethod
    def from_bytes(
        cls, data: bytes, device: str | torch.device = "cpu", name: str = "weights"
    ) -> Codec:
        """Load the bytes of a weights file, as an archive stores them."""
        model, fingerprint = checkpoint.from_bytes(data, name)
        return cls(model, fingerprint, device)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the code grid of an image."""
        stride = self.config.stride
        return -(-height // stride), -(-width // stride)

    def bpp(self, quality: int) -> float:
        """Raw rate in bits per pixel, without the padding."""
        return quality * (self.config.codewords - 1).bit_length() / self.config.stride**2

    def encode(self, pixels: Tensor, quality: int | None = None) -> Tensor:
        """uint8 [B,3,H,W] -> codes uint8 (uint16 if K > 256) [B,h,w,quality], on the device.

        Raises:
            ValueError: another dtype or shape, or a quality outside 1..M.
        """
        quality = self.config.subcodes if quality is None else quality
        if not 1 <= quality <= self.config.subcodes:
            raise ValueError(f"quality {quality} is outside 1..{self.config.subcodes}")
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            shape = tuple(pixels.shape)
            raise ValueError(f"pixels must be uint8 [B,3,H,W], not {pixels.dtype} {shape}")
        if min(pixels.shape) < 1:
            raise ValueError(f"an empty batch or image: {tuple(pixels.shape)}")
        padded = reflect_pad(pixels.to(self.device), self.config.stride)
        return self.model.encode(padded, quality).to(self.code_dtype)

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        """Codes [B,h,w,m] of images of height x width -> uint8 [B,3,height,width].

        Raises:
            ValueError: codes that cannot be of such an image or such a model.
        """
        if codes.ndim != 4 or tuple(codes.shape[1:3]) != self.grid(height, width):
            rows, columns = self.grid(height, width)
            raise ValueError(
                f"codes {tuple(codes.shape)} are not [B, {rows}, {columns}, m] of "
                f"{height} x {width} pixels at stride {self.config.stride}"
            )
        if not 1 <= codes.shape[3] <= self.config.subcodes:
            raise ValueError(f"{codes.shape[3]} sub-codes, the model has {self.config.subcodes}")
        codes = codes.to(self.device, torch.int64)
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.codewords:
            raise ValueError(f"codes outside 0..{self.config.codewords - 1}: of another model?")
        return self.model.decode(codes)[..., :height, :width].contiguous()


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
