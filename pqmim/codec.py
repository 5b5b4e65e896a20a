"""The codec: pixels to ``.pqm`` files and back, by a tokenizer that is one weights file.

The methods are thin: files are made in ``pqmim.files``, and what was not sent is filled in
``pqmim.completion``; both take a :class:`pqmim.tokenizer.Tokenizer`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pqmim import arrays
from pqmim.coding import schedule
from pqmim.completion import filling
from pqmim.completion.rule import Rule
from pqmim.context import plainly
from pqmim.files import budget, single
from pqmim.files.container import READ_PIXELS
from pqmim.tokenizer import NoPriorError, Tokenizer

__all__ = ["Codec", "NoPriorError"]


class Codec(Tokenizer):
    """A loaded model on one device; its methods may be called from several threads.

    Pixels come as :mod:`pqmim.arrays` says; what methods give is tensors and bytes.
    """

    @plainly
    def compress(
        self, pixels: arrays.Picture, quality: int | None = None,
        plan: Sequence[int] = schedule.DEFAULT_PLAN, stages: int | None = None,
        price: float = schedule.DEFAULT_PRICE,
    ) -> bytes:  # fmt: skip
        """One image -> a ``.pqm`` file, the same as ``pqmim compress`` makes with these arguments;
        see :func:`pqmim.files.single.compress_batch`."""
        image = arrays.one(pixels)[None]
        return single.compress_batch(self, image, quality, plan, stages, price)[0]

    @plainly
    def compress_batch(
        self, pixels: arrays.Pictures, quality: int | None = None,
        plan: Sequence[int] = schedule.DEFAULT_PLAN, stages: int | None = None,
        price: float = schedule.DEFAULT_PRICE,
    ) -> list[bytes]:  # fmt: skip
        """Images, in a list of any sizes -> one ``.pqm`` file each; see :meth:`compress`."""
        files: dict[int, bytes] = {}
        for places, batch in arrays.by_size(pixels):
            made = single.compress_batch(self, batch, quality, plan, stages, price)
            files.update(zip(places, made, strict=True))
        return [files[i] for i in range(len(files))]

    @plainly
    def compress_codes(
        self, codes: Tensor, height: int, width: int,
        plan: Sequence[int] = schedule.DEFAULT_PLAN, stages: int | None = None,
    ) -> list[bytes]:  # fmt: skip
        """Codes [B,h,w,m] -> one ``.pqm`` file an image; see :mod:`pqmim.files.single`."""
        return single.compress_codes(self, arrays.codes(codes), height, width, plan, stages)

    @plainly
    def compress_to(self, pixels: arrays.Picture, max_bytes: int) -> bytes:
        """One image -> a ``.pqm`` file of at most so many bytes (:mod:`pqmim.files.budget`)."""
        return budget.search(self, arrays.one(pixels), max_bytes).data

    @plainly
    def decompress(
        self, data: bytes, *, partial: bool = False, fill: filling.Fill | None = None,
        max_pixels: int = READ_PIXELS,
    ) -> Tensor:  # fmt: skip
        """A ``.pqm`` file -> uint8 [3,H,W]; see :func:`pqmim.files.single.decompress`."""
        return single.decompress(self, data, partial=partial, fill=fill, max_pixels=max_pixels)

    @plainly
    def decompress_batch(
        self, data: Sequence[bytes], *, max_pixels: int = READ_PIXELS
    ) -> list[Tensor]:
        """``.pqm`` files of any sizes and qualities -> uint8 [3,H,W] each; all or none."""
        return single.decompress_batch(self, data, max_pixels=max_pixels)

    @plainly
    def decompress_codes(self, data: bytes, *, max_pixels: int = READ_PIXELS) -> Tensor:
        """A whole ``.pqm`` file -> its codes uint8 [h,w,m]."""
        return torch.from_numpy(single.decompress_codes(self, data, max_pixels=max_pixels))

    @plainly
    def complete(
        self, codes: Tensor, known: Tensor, *,
        steps: int = 8, temperature: float = 1.0, seed: int | Sequence[int] = 0,
    ) -> Tensor:  # fmt: skip
        """Codes of which some are ``known`` -> all (:func:`pqmim.completion.filling.complete`)."""
        rule = Rule(steps, temperature, seed)
        return filling.complete(self, arrays.codes(codes), arrays.mask(known), rule)

    @plainly
    def preview(self, codes: Tensor, known: Tensor, height: int, width: int) -> Tensor:
        """Pixels of known codes, and the mean of others (:mod:`pqmim.completion.filling`)."""
        return filling.preview(self, arrays.codes(codes), arrays.mask(known), height, width)
