"""The tokenizer: pixels -> latent -> codes -> payload, and back; what ``Codec`` makes files with.

    pixels uint8 [B,3,H,W] --pad--> encoder --latent--> quantizer --codes [B,h,w,m]-->
        prior --frequencies--> range coder --> payload
    payload --> range coder <--frequencies-- prior
        --codes--> quantizer --latent--> decoder --crop--> pixels uint8 [B,3,H,W]

``h = ceil(H / f)``, ``w = ceil(W / f)``; the first m of M sub-codes are kept (``quality``), raw
rate ``m * log2(K) / f**2`` bits per pixel.  Codes of the same batch shape on the same machine are
always the same; another kernel may flip a code that lies between two codewords, which the picture
does not show.  What is stored is the codes, and they are never computed twice.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pqmim import arrays, checkpoint, tiles
from pqmim.autoencoder.network import PQVAE, channels_last
from pqmim.autoencoder.padding import reflect_pad
from pqmim.coding import payloads as streams
from pqmim.coding import schedule, search
from pqmim.context import plainly
from pqmim.prior import engine, integers, load


class NoPriorError(ValueError):
    """The weights hold no entropy model, so there are codes but no bitstreams."""


class Tokenizer:
    """A loaded model on one device; its methods may be called from several threads."""

    @plainly
    def __init__(
        self,
        model: PQVAE,
        fingerprint: str,
        device: str | torch.device = "cpu",
        prior: integers.Checkpoint | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = channels_last(model.eval().to(self.device))
        self.model.refresh_gain()
        self.config, self.fingerprint = model.config, fingerprint
        self.code_dtype = torch.uint8 if self.config.codewords <= 256 else torch.uint16
        self._prior_checkpoint = prior
        self._prior: engine.Model | None = None
        self._prior_lock = threading.Lock()

    @classmethod
    def load(cls, name_or_path: str | Path = "default", device: str | torch.device = "cpu") -> Self:
        """Load weights by path, shipped name or fingerprint.

        Raises:
            pqmim.checkpoint.CheckpointError: missing or damaged weights.
        """
        return cls.from_bytes(checkpoint.read(name_or_path), device, name=str(name_or_path))

    @classmethod
    @plainly
    def from_bytes(
        cls, data: bytes, device: str | torch.device = "cpu", name: str = "weights"
    ) -> Self:
        """Load the bytes of a weights file, as an archive stores them."""
        weights = checkpoint.parse(data, name)
        return cls(weights.model, weights.fingerprint, device, weights.prior)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path = "default", device: str | torch.device = "cpu"
    ) -> Self:
        """:meth:`load` by the name that other libraries give it; the path may be of a folder."""
        return cls.load(name_or_path, device)

    @plainly
    def to(self, device: str | torch.device) -> Self:
        """Move the model to a device; gives itself.  No other thread may be using it."""
        with self._prior_lock:
            self.device = torch.device(device)
            self.model = channels_last(self.model.to(self.device))
            self._prior = None  # loaded there at first use
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For ``pickle`` and ``copy.deepcopy``: all but the loaded entropy model and its lock.  The
        model travels by way of the CPU, so that a process without a GPU can read what it is."""
        state = {k: v for k, v in self.__dict__.items() if k not in ("_prior", "_prior_lock")}
        if self.device.type != "cpu":
            state["model"] = copy.deepcopy(self.model).to("cpu")
        return state

    @plainly
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prior, self._prior_lock = None, threading.Lock()
        self.model = channels_last(self.model.to(self.device))

    @property
    @plainly
    def prior(self) -> engine.Model | None:
        """The entropy model, if the weights hold one: loaded and tested at first use.

        Raises:
            pqmim.checkpoint.CheckpointError: it does not reproduce its own test vector.
        """
        if self._prior is None and self._prior_checkpoint is not None:
            with self._prior_lock:
                self._prior = self._prior or load.load(self._prior_checkpoint, self.device)
        return self._prior

    @property
    def has_prior(self) -> bool:
        """Whether the weights hold an entropy model; does not load it."""
        return self._prior_checkpoint is not None

    def needed_prior(self) -> engine.Model:
        """The entropy model.

        Raises:
            NoPriorError: the weights hold none.
        """
        prior = self.prior
        if prior is None:
            raise NoPriorError(
                f"model {self.fingerprint[:16]} has no entropy model, so it makes codes but no "
                "bitstreams; use weights that hold one"
            )
        return prior

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the code grid of an image."""
        stride = self.config.stride
        return -(-height // stride), -(-width // stride)

    def bpp(self, quality: int) -> float:
        """Raw rate in bits per pixel, without the padding."""
        return quality * (self.config.codewords - 1).bit_length() / self.config.stride**2

    @plainly
    def encode(self, pixels: arrays.Pictures, quality: int | None = None) -> Tensor:
        """uint8 [B,3,H,W] -> codes uint8 (uint16 if K > 256) [B,h,w,quality], on the device.

        Raises:
            ValueError: another type or shape (:mod:`pqmim.arrays`), or a quality outside 1..M.
        """
        quality = self.checked_quality(quality)  # before the work
        return tiles.encode(self.model, self._padded(pixels), quality).to(self.code_dtype)

    @plainly
    def search(
        self, pixels: arrays.Pictures, quality: int | None = None,
        price: float = schedule.DEFAULT_PRICE,
        plan: Sequence[int] = schedule.DEFAULT_PLAN,
    ) -> tuple[Tensor, list[bytes]]:  # fmt: skip
        """The codes that are worth their bits, and their payloads (:mod:`pqmim.coding.search`).

        Args:
            pixels: uint8 [B,3,H,W], or another batch of :mod:`pqmim.arrays`.
            quality: sub-codes to keep; None: all.
            price: squared error that a bit is worth; a higher one gives smaller files.
            plan: the stage schedule.

        Returns:
            Codes uint8 [B,h,w,quality] on the CPU, and what :meth:`entropy_encode` makes of them.

        Raises:
            NoPriorError: the weights hold no entropy model.
            ValueError: see :meth:`encode`; or a price that is not above 0.
        """
        quality = self.checked_quality(quality)  # before the work
        return self.search_latent(self.latent(pixels), price, plan, quality)

    @plainly
    def latent(self, pixels: arrays.Pictures) -> Tensor:
        """uint8 [B,3,H,W] -> float [B,h,w,C]: what :meth:`search_latent` starts from."""
        return tiles.latent(self.model, self._padded(pixels)).permute(0, 2, 3, 1)

    @plainly
    def search_latent(
        self, latent: Tensor, price: float, plan: Sequence[int] = schedule.DEFAULT_PLAN,
        quality: int | None = None,
    ) -> tuple[Tensor, list[bytes]]:  # fmt: skip
        """The second half of :meth:`search`: float [B,h,w,C] -> codes and payloads."""
        prior, quantizer = self.needed_prior(), self.model.quantizer
        targets = [search.Target.of(rows, quantizer) for rows in latent]
        shape = (int(latent.shape[1]), int(latent.shape[2]), self.checked_quality(quality))
        codes, payloads = search.search_images(prior, targets, [shape] * len(latent), plan, price)
        return torch.from_numpy(np.stack(codes)), payloads

    def checked_quality(self, quality: int | None) -> int:
        """Sub-codes to keep; None: all.

        Raises:
            ValueError: more than the model has, or none.
        """
        quality = self.config.subcodes if quality is None else quality
        if not 1 <= quality <= self.config.subcodes:
            raise ValueError(f"quality {quality} is outside 1..{self.config.subcodes}")
        return quality

    def _padded(self, pixels: arrays.Pictures) -> Tensor:
        """Checked pixels, padded, on the device."""
        return reflect_pad(arrays.batch(pixels).to(self.device), self.config.stride)

    @plainly
    def decode(self, codes: Tensor, height: int, width: int, known: Tensor | None = None) -> Tensor:
        """Codes [B,h,w,m] of images of height x width -> uint8 [B,3,height,width].

        Args:
            codes: their values.
            height: of the images, in pixels.
            width: of the images.
            known: bool of the codes' shape; what is False there is absent, whatever it holds.

        Raises:
            ValueError: codes that cannot be of such an image or such a model, or another mask.
        """
        codes = arrays.codes(codes)
        self.check_codes(codes, height, width)
        if len(codes) == 0:
            return torch.empty((0, 3, height, width), dtype=torch.uint8, device=self.device)
        codes = codes.to(self.device, torch.int64)
        if known is None:
            return tiles.decode(self.model, codes)[..., :height, :width].contiguous()
        known = arrays.mask(known)
        if known.shape != codes.shape:
            shapes = f"{tuple(codes.shape)} as the codes, not {tuple(known.shape)}"
            raise ValueError(f"the mask must be bool {shapes}")
        absent = self.model.quantizer.absent[: codes.shape[3]]
        return self.decode_mixed(codes, known, absent, height, width)

    @plainly
    def decode_mixed(
        self, codes: Tensor, known: Tensor, other: Tensor, height: int, width: int
    ) -> Tensor:
        """Pixels, as :meth:`decode`, of codewords where they are ``known`` and of other vectors
        where they are not, float [m, d] or [B,h,w,m,d]."""
        quantizer = self.model.quantizer
        sent = quantizer.codewords_of(codes.to(self.device, torch.int64))
        sent = torch.where(known.to(self.device)[..., None], sent, other.to(sent))
        return tiles.decode_latent(self.model, quantizer.latent_of(sent))[
            ..., :height, :width
        ].contiguous()

    def check_codes(self, codes: Tensor, height: int, width: int) -> None:
        """Raises ValueError for codes that cannot be of such an image or such a model."""
        if codes.ndim != 4 or tuple(codes.shape[1:3]) != self.grid(height, width):
            rows, columns = self.grid(height, width)
            raise ValueError(
                f"codes {tuple(codes.shape)} are not [B, {rows}, {columns}, m] of "
                f"{height} x {width} pixels at stride {self.config.stride}"
            )
        if not 1 <= codes.shape[3] <= self.config.subcodes:
            raise ValueError(f"{codes.shape[3]} sub-codes, the model has {self.config.subcodes}")
        values, end = codes.to(torch.int64), self.config.codewords  # uint16 has no min
        if codes.numel() and not 0 <= int(values.min()) <= int(values.max()) < end:
            raise ValueError(f"codes outside 0..{self.config.codewords - 1}: of another model?")

    @plainly
    def entropy_encode(
        self, codes: Tensor, plan: Sequence[int] = schedule.DEFAULT_PLAN
    ) -> list[bytes]:
        """Codes uint8 [B,h,w,m] -> one bare payload an image, without container.

        Raises:
            NoPriorError: the weights hold no entropy model.
            ValueError: codes that are not of this model.
        """
        images = list(arrays.codes(codes).cpu().numpy())
        return streams.encode_images(self.needed_prior(), images, plan)

    @plainly
    def entropy_decode(
        self, payloads: Sequence[bytes], h: int, w: int, m: int,
        plan: Sequence[int] = schedule.DEFAULT_PLAN,
    ) -> Tensor:  # fmt: skip
        """Undo :meth:`entropy_encode`: payloads of one shape -> codes uint8 [B,h,w,m] on the CPU.

        m may be smaller than what was encoded, if it is a multiple of the prior's group.  Most
        damage decodes to wrong codes: compare a checksum of the result.

        Raises:
            NoPriorError: the weights hold no entropy model.
            pqmim.prior.range_coder.PayloadError: a payload is cut off, or no encoder wrote it.
            ValueError: a shape that is not of this model.
        """
        shapes = [(h, w, m)] * len(payloads)
        decoded = streams.decode_images(self.needed_prior(), payloads, shapes, plan)
        return torch.from_numpy(np.stack(decoded) if decoded else np.zeros((0, h, w, m), np.uint8))
