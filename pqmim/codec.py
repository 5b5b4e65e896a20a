"""The codec: pixels to ``.pqm`` files and back, by a tokenizer that is one weights file.

The methods are thin: files are made in ``pqmim.files``, and what was not sent is filled in
``pqmim.completion``; both take a :class:`pqmim.tokenizer.Tokenizer`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pqmim.coding import schedule
from pqmim.completion import filling
from pqmim.completion.rule import Rule
from pqmim.context import plainly
from pqmim.files import budget, single
from pqmim.files.container import MAX_PIXELS
from pqmim.tokenizer import NoPriorError, Tokenizer

__all__ = ["Codec", "Codes", "NoPriorError"]

Codes = NDArray[np.uint8]  # [h, w, m]


class Codec(Tokenizer):
    """A loaded model on one device; its methods may be called from several threads."""

    @plainly
    def compress(
        self, pixels: Tensor, quality: int | None = None,
        plan: Sequence[int] = schedule.DEFAULT_PLAN, stages: int | None = None, price: float = 0.0,
    ) -> bytes:  # fmt: skip
        """uint8 [3,H,W] -> a ``.pqm`` file; see :func:`pqmim.files.single.compress_batch`."""
        return single.compress_batch(self, pixels[None], quality, plan, stages, price)[0]

    @plainly
    def compress_batch(
        self, pixels: Tensor, quality: int | None = None,
        plan: Sequence[int] = schedule.DEFAULT_PLAN, stages: int | None = None, price: float = 0.0,
    ) -> list[bytes]:  # fmt: skip
        """uint8 [B,3,H,W] -> one ``.pqm`` file an image; see :mod:`pqmim.files.single`."""
        return single.compress_batch(self, pixels, quality, plan, stages, price)

    @plainly
    def compress_codes(
        self, codes: Tensor, height: int, width: int,
        plan: Sequence[int] = schedule.DEFAULT_PLAN, stages: int | None = None,
    ) -> list[bytes]:  # fmt: skip
        """Codes [B,h,w,m] -> one ``.pqm`` file an image; see :mod:`pqmim.files.single`."""
        return single.compress_codes(self, codes, height, width, plan, stages)

    @plainly
    def compress_to(self, pixels: Tensor, max_bytes: int) -> bytes:
        """uint8 [3,H,W] -> a ``.pqm`` file of at most so many bytes (:mod:`pqmim.files.budget`)."""
        return budget.search(self, pixels, max_bytes).data

    @plainly
    def decompress(
        self, data: bytes, *, partial: bool = False, fill: filling.Fill | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Tensor:  # fmt: skip
        """A ``.pqm`` file -> uint8 [3,H,W]; see :func:`pqmim.files.single.decompress`."""
        return single.decompress(self, data, partial=partial, fill=fill, max_pixels=max_pixels)

    @plainly
    def decompress_batch(
        self, data: Sequence[bytes], *, max_pixels: int = MAX_PIXELS
    ) -> list[Tensor]:
        """``.pqm`` files of any sizes and qualities -> uint8 [3,H,W] each; all or none."""
        return single.decompress_batch(self, data, max_pixels=max_pixels)

    @plainly
    def decompress_codes(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Codes:
        """A whole ``.pqm`` file -> its codes uint8 [h,w,m]."""
        return single.decompress_codes(self, data, max_pixels=max_pixels)

    @plainly
    def complete(
        self, codes: Tensor, known: Tensor, *,
        steps: int = 8, temperature: float = 1.0, seed: int | Sequence[int] = 0,
    ) -> Tensor:  # fmt: skip
        """Codes of which some are ``known`` -> all (:func:`pqmim.completion.filling.complete`)."""
        seeds = seed if isinstance(seed, int) else tuple(seed)
        return filling.complete(self, codes, known, Rule(steps, temperature, seeds))

    @plainly
    def preview(self, codes: Tensor, known: Tensor, height: int, width: int) -> Tensor:
        """Pixels of known codes, and the mean of others (:mod:`pqmim.completion.filling`)."""
        return filling.preview(self, codes, known, height, width)
