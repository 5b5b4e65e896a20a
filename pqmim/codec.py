"""The codec: pixels -> latent -> codes -> bytes, and back.

    pixels uint8 [B,3,H,W] --pad--> encoder --latent--> quantizer --codes [B,h,w,m]-->
        prior --frequencies--> range coder --payload--> container --> bytes
    bytes --> container --payload--> range coder <--frequencies-- prior
        --codes--> quantizer --latent--> decoder --crop--> pixels uint8 [B,3,H,W]

``h = ceil(H / f)``, ``w = ceil(W / f)``; the first m of M sub-codes are kept (``quality``), raw
rate ``m * log2(K) / f**2`` bits per pixel.  Codes of the same batch shape on the same machine are
always the same; another kernel may flip a code that lies between two codewords, which the picture
does not show.  What is stored is the codes, and they are never computed twice.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqmim import bitstream, checkpoint, code_stream, integer, prior_checkpoint, schedule
from pqmim.autoencoder import PQVAE, channels_last, to_uint8
from pqmim.bitstream import MAX_PIXELS, BitstreamError, Stream
from pqmim.entropy import PayloadError

Codes = NDArray[np.uint8]  # [h, w, m]


class NoPriorError(ValueError):
    """The weights hold no entropy model, so there are codes but no bitstreams."""


class Codec:
    """A loaded model on one device; its methods may be called from several threads."""

    def __init__(
        self,
        model: PQVAE,
        fingerprint: str,
        device: str | torch.device = "cpu",
        prior: prior_checkpoint.Checkpoint | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = channels_last(model.eval().to(self.device))
        self.config, self.fingerprint = model.config, fingerprint
        self.code_dtype = torch.uint8 if self.config.codewords <= 256 else torch.uint16
        self._prior_checkpoint = prior
        self._prior: integer.Model | None = None
        self._prior_lock = threading.Lock()

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
        weights = checkpoint.parse(data, name)
        return cls(weights.model, weights.fingerprint, device, weights.prior)

    @property
    def prior(self) -> integer.Model | None:
        """The entropy model, if the weights hold one: loaded and tested at first use.

        Raises:
            pqmim.checkpoint.CheckpointError: it does not reproduce its own test vector.
        """
        with self._prior_lock:
            if self._prior is None and self._prior_checkpoint is not None:
                self._prior = integer.load(self._prior_checkpoint, self.device)
            return self._prior

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

    def compress(
        self,
        pixels: Tensor,
        quality: int | None = None,
        plan: Sequence[int] = schedule.DEFAULT_PLAN,
        stages: int | None = None,
    ) -> bytes:
        """uint8 [3,H,W] -> a ``.pqm`` file; see :meth:`compress_batch`."""
        return self.compress_batch(pixels[None], quality, plan, stages)[0]

    def compress_batch(
        self,
        pixels: Tensor,
        quality: int | None = None,
        plan: Sequence[int] = schedule.DEFAULT_PLAN,
        stages: int | None = None,
    ) -> list[bytes]:
        """uint8 [B,3,H,W] -> one ``.pqm`` file an image (``pqmim.bitstream``).

        Args:
            pixels: RGB.
            quality: sub-codes to keep; None: all.
            plan: the stage schedule (``pqmim.schedule``); more stages, fewer bytes, more time.
            stages: how many of its stages to send; None: all.

        Raises:
            NoPriorError: the weights hold no entropy model.
            ValueError: see :meth:`encode`; or an image or a plan that the format has no room for.
        """
        self._needed_prior()
        height, width = pixels.shape[-2:]
        return self.compress_codes(self.encode(pixels, quality), height, width, plan, stages)

    def compress_codes(
        self,
        codes: Tensor,
        height: int,
        width: int,
        plan: Sequence[int] = schedule.DEFAULT_PLAN,
        stages: int | None = None,
    ) -> list[bytes]:
        """Codes uint8 [B,h,w,m] of images of height x width -> one ``.pqm`` file an image.

        Raises:
            NoPriorError: the weights hold no entropy model.
            ValueError: codes, an image or a plan that do not fit this model or the format.
        """
        prior = self._needed_prior()
        if codes.ndim != 4 or tuple(codes.shape[1:3]) != self.grid(height, width):
            raise ValueError(f"codes {tuple(codes.shape)} are not of {height} x {width} pixels")
        subcodes = codes.shape[3]
        used = tuple(plan[: schedule.groups_of(subcodes, prior.config.group)])
        total = len(schedule.stage_groups(subcodes, plan, prior.config.group))
        sent = total if stages is None else stages
        head = Stream(self._model, height, width, subcodes, used, sent, b"")
        head.fields()  # refuses what the format has no room for, before the work
        images = list(codes.cpu().numpy())
        payloads = code_stream.encode_images(prior, images, plan, sent)
        known = self._known(head, sent)
        return [
            bitstream.pack(replace(head, payload=payload), np.where(known, image, 0).tobytes())
            for image, payload in zip(images, payloads, strict=True)
        ]

    def decompress(
        self, data: bytes, *, partial: bool = False, max_pixels: int = MAX_PIXELS
    ) -> Tensor:
        """A ``.pqm`` file -> uint8 [3,H,W].  What was not sent is absent, as lower quality is.

        Args:
            data: the file.
            partial: accept a file that was cut off anywhere after its header, and show the stages
                that are whole.  Its checksum cannot be checked then: other damage goes unnoticed.
            max_pixels: the largest image that is wanted.

        Raises:
            NoPriorError: the weights hold no entropy model.
            BitstreamError: damaged, foreign, too large, or made with another model.
        """
        if not partial:
            return self.decompress_batch([data], max_pixels=max_pixels)[0]
        prior = self._needed_prior()
        stream = self._parse(data, max_pixels, whole=False)
        shape = (*self.grid(stream.height, stream.width), stream.quality)
        codes, whole = code_stream.decode_prefix(
            prior, stream.payload, shape, stream.plan, stream.stages
        )
        if whole == 0:
            raise BitstreamError("cut off within the first stage: there is nothing to show")
        return self._show(codes, stream, whole)

    def decompress_batch(
        self, files: Sequence[bytes], *, max_pixels: int = MAX_PIXELS
    ) -> list[Tensor]:
        """``.pqm`` files of any sizes and qualities -> uint8 [3,H,W] each; all or none.

        Raises:
            NoPriorError: the weights hold no entropy model.
            BitstreamError: damaged, foreign, too large, or made with another model.
        """
        self._needed_prior()
        streams = [self._parse(data, max_pixels) for data in files]
        alike: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for i, stream in enumerate(streams):
            alike.setdefault((stream.plan, stream.stages), []).append(i)
        images: list[Tensor | None] = [None] * len(files)
        for members in alike.values():
            for i, codes in zip(
                members, self._decode_alike([streams[i] for i in members]), strict=True
            ):
                images[i] = self._show(codes, streams[i], streams[i].stages)
        return [image for image in images if image is not None]

    def decompress_codes(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Codes:
        """A whole ``.pqm`` file -> its codes uint8 [h,w,m]; errors as :meth:`decompress`."""
        return self._decode_alike([self._parse(data, max_pixels)])[0]

    def entropy_encode(
        self, codes: Tensor, plan: Sequence[int] = schedule.DEFAULT_PLAN
    ) -> list[bytes]:
        """Codes uint8 [B,h,w,m] -> one bare payload an image, without container.

        Raises:
            NoPriorError: the weights hold no entropy model.
            ValueError: codes that are not of this model.
        """
        images = list(codes.cpu().numpy())
        return code_stream.encode_images(self._needed_prior(), images, plan)

    def entropy_decode(
        self, payloads: Sequence[bytes], h: int, w: int, m: int,
        plan: Sequence[int] = schedule.DEFAULT_PLAN,
    ) -> Tensor:  # fmt: skip
        """Undo :meth:`entropy_encode`: payloads of one shape -> codes uint8 [B,h,w,m] on the CPU.

        m may be smaller than what was encoded, if it is a multiple of the prior's group.  Most
        damage decodes to wrong codes: compare a checksum of the result.

        Raises:
            NoPriorError: the weights hold no entropy model.
            pqmim.entropy.PayloadError: a payload is cut off, or no encoder wrote it.
            ValueError: a shape that is not of this model.
        """
        shapes = [(h, w, m)] * len(payloads)
        decoded = code_stream.decode_images(self._needed_prior(), payloads, shapes, plan)
        return torch.from_numpy(np.stack(decoded) if decoded else np.zeros((0, h, w, m), np.uint8))

    @property
    def _model(self) -> bytes:
        """What a file says of its model."""
        return bytes.fromhex(self.fingerprint)[: bitstream.MODEL_BYTES]

    def _needed_prior(self) -> integer.Model:
        prior = self.prior
        if prior is None:
            raise NoPriorError(
                f"model {self.fingerprint[:16]} has no entropy model, so it makes codes but no "
                "bitstreams; use weights that hold one"
            )
        return prior

    def _parse(self, data: bytes, max_pixels: int, *, whole: bool = True) -> Stream:
        """A file that this model can decode."""
        config = self._needed_prior().config
        stream = bitstream.parse(data)
        bitstream.check(
            stream, self.fingerprint, self.grid(stream.height, stream.width),
            (config.subcodes, config.codewords, config.group), max_pixels, whole=whole,
        )  # fmt: skip
        return stream

    def _decode_alike(self, streams: Sequence[Stream]) -> list[Codes]:
        """The checked codes of streams of one plan."""
        shapes = [(*self.grid(s.height, s.width), s.quality) for s in streams]
        payloads, first = [s.payload for s in streams], streams[0]
        try:
            decoded = code_stream.decode_images(
                self._needed_prior(), payloads, shapes, first.plan, first.stages, to_end=True
            )
        except PayloadError as error:
            raise BitstreamError(str(error)) from error
        for stream, codes in zip(streams, decoded, strict=True):
            if stream.checksum(codes.tobytes()) != stream.crc32:
                raise BitstreamError("the checksum does not match: the file is damaged")
        return decoded

    def _known(self, stream: Stream, stages: int) -> NDArray[np.bool_]:
        """[h, w, m]: which codes the first ``stages`` stages hold."""
        height, width = self.grid(stream.height, stream.width)
        group = self._needed_prior().config.group
        return schedule.stage_map(height, width, stream.quality, stream.plan, group) < stages

    @torch.no_grad()
    def _show(self, codes: Codes, stream: Stream, stages: int) -> Tensor:
        """Pixels [3,H,W] of codes of which the first ``stages`` stages are there."""
        grid = torch.from_numpy(codes)[None]
        if stages == stream.planned:
            return self.decode(grid, stream.height, stream.width)[0]
        quantizer = self.model.quantizer
        latent = quantizer.decode(grid.to(self.device))
        absent = quantizer.absent.reshape(1, -1, 1, 1).to(latent.dtype)
        known = torch.zeros(1, *codes.shape[:2], self.config.subcodes, dtype=torch.bool)
        known[..., : stream.quality] = torch.from_numpy(self._known(stream, stages))
        mask = known.permute(0, 3, 1, 2).repeat_interleave(self.config.subcode_dims, 1)
        latent = torch.where(mask.to(self.device), latent, absent)
        pixels = to_uint8(self.model.decoder(latent))
        return pixels[0, :, : stream.height, : stream.width].contiguous()


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
