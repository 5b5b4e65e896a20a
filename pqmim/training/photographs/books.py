"""Codebooks and static code lengths that follow the latents, all sub-codes at once.

Each crop of a batch has a price of a bit, one of ``PRICES``; crops of one price lie together.
Codes are chosen by distance plus price times the code's length at that price, so the codebooks
become what an entropy coder wants, and one model serves the whole curve.

Codebooks follow by exponential moving averages (van den Oord et al. 2017, appendix A); codewords
that nothing uses are restarted from random latents of the batch (Jukebox, EnCodec).  Nothing here
asks the device for a number: which codewords are dead is a mask, and restarts are a ``where``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pqmim.autoencoder.quantizer import ProductQuantizer
from pqmim.training.starts import code_lengths

# Squared error in units of (level / 127.5) ** 2, summed over a patch, that a bit is worth.
PRICES = (0.0012, 0.003, 0.0075, 0.018, 0.04, 0.08, 0.15, 0.3)
DECAY = 0.99
DEAD_BELOW = 0.003  # a codeword is dead if used less than this share of its even share
SHARED = 0.75  # of the rounds of k-means have one table of lengths for all prices


class Books:
    """What a run knows of the codewords beside themselves: moving averages of their uses."""

    def __init__(self, quantizer: ProductQuantizer) -> None:
        book, levels = quantizer.codebook, len(quantizer.config.prices)
        self.quantizer = quantizer
        self.uses = torch.zeros(levels, *book.shape[:2], device=book.device)  # [P, M, K], a crop
        self.count = torch.zeros(book.shape[:2], device=book.device)  # [M, K], a batch
        self.total = torch.zeros_like(book)  # [M, K, d]

    def tensors(self) -> list[Tensor]:
        """All state, to be saved and loaded."""
        return [self.uses, self.count, self.total]

    def quantise(self, rows: Tensor, penalties: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Choose codes of every layer.

        Args:
            rows: latents [P, n, C], by price.
            penalties: [P, M, K], what a codeword's length costs (:meth:`penalties`).

        Returns:
            Codes int64 [P, n, M], and what each layer chose them for, [m, P * n, d].
        """
        quantizer, codes, seen = self.quantizer, [], []
        levels, count = rows.shape[:2]
        for span in quantizer.config.spans:
            vectors = quantizer.rows(rows)[:, :, span].permute(2, 0, 1, 3)  # [m, P, n, d]
            book = quantizer.codebook[span]
            constant = penalties[:, span].transpose(0, 1) + book.square().sum(-1).mul(0.5)[:, None]
            scores = torch.baddbmm(
                constant.flatten(0, 1).unsqueeze(1), vectors.flatten(0, 1),
                book.transpose(1, 2).repeat_interleave(levels, 0), alpha=-1.0,
            )  # [m * P, n, K]  # fmt: skip
            chosen = scores.argmin(-1).unflatten(0, (-1, levels)).permute(1, 2, 0)
            codes.append(chosen)
            seen.append(vectors.reshape(len(vectors), levels * count, -1))
            if span.stop < quantizer.config.subcodes:
                words = quantizer.codewords_of(chosen, span.start)
                rows = rows - quantizer.assemble(words, span.start)
        return torch.cat(codes, -1), seen

    def penalties(self) -> Tensor:
        """[P, M, K]: price times length, as it adds to half of the squared distance."""
        quantizer = self.quantizer
        prices = torch.tensor(quantizer.config.prices, device=self.uses.device)[:, None, None]
        return quantizer.penalty(quantizer.lengths, prices)

    def counted(self, codes: Tensor) -> Tensor:
        """Uses [P, M, K] of codes [P, n, M]."""
        levels, _, subcodes = codes.shape
        words = self.count.shape[1]
        slot = torch.arange(levels, device=codes.device)[:, None, None] * subcodes
        slot = (slot + torch.arange(subcodes, device=codes.device)) * words
        flat = torch.zeros(levels * subcodes * words, device=codes.device)
        index = (codes + slot).flatten()
        return flat.index_add_(0, index, torch.ones_like(index, dtype=flat.dtype)).reshape(
            levels, subcodes, words
        )

    def sums(self, codes: Tensor, latents: Tensor) -> Tensor:
        """What each codeword stands for, summed, [M, K, d]: of codes [P, n, M] and what they were
        chosen for, [M, P * n, d]."""
        flat = codes.flatten(0, 1).T
        index = flat + torch.arange(len(flat), device=flat.device)[:, None] * self.count.shape[1]
        total = torch.zeros_like(self.total).flatten(0, 1)
        total.index_add_(0, index.flatten(), latents.flatten(0, 1))
        return total.reshape(self.total.shape)

    @torch.no_grad()
    def follow(self, codes: Tensor, seen: list[Tensor], numbers: Tensor) -> None:
        """One moving-average step towards a batch of :meth:`quantise`.

        ``numbers`` [M, K] in 0..1 choose the latents that dead codewords restart from.
        """
        uses, latents = self.counted(codes), torch.cat(seen)  # [M, N, d]
        self.uses.lerp_(uses, 1 - DECAY)
        self.count.lerp_(uses.sum(0), 1 - DECAY)
        self.total.lerp_(self.sums(codes, latents), 1 - DECAY)
        even = latents.shape[1] / self.count.shape[1]
        dead = self.count < DEAD_BELOW * even
        fresh = picked(latents, numbers) * even
        self.total.copy_(torch.where(dead[:, :, None], fresh, self.total))
        self.count.copy_(torch.where(dead, even, self.count))
        self.quantizer.codebook.copy_(self.total / self.count.clamp_min(1e-6)[:, :, None])
        self.quantizer.lengths.copy_(code_lengths(self.uses))

    @torch.no_grad()
    def settle(
        self, batches: list[Tensor], rounds: int, share: float, numbers: torch.Generator
    ) -> None:
        """Entropy-constrained k-means over latents [P, n, C] in batches, from the codebooks as they
        are: a start of data.  From random draws of latents training lost 5 dB at once.

        All prices share their code lengths at first.  Of words that lie close together one becomes
        the common one; with lengths of its own from the start each price would take another, and
        the entropy model would have to tell the prices apart.

        ``share`` is a training batch's of all these latents: what follows counts such batches.
        """
        for turn in range(rounds):
            uses, total = torch.zeros_like(self.uses), torch.zeros_like(self.total)
            for rows in batches:
                codes, seen = self.quantise(rows, self.penalties())
                latents = torch.cat(seen)
                uses += self.counted(codes)
                total += self.sums(codes, latents)
            count = uses.sum(0)
            draws = torch.rand(count.shape, generator=numbers).to(count.device)
            fresh = picked(latents, draws)
            self.total.copy_(torch.where(count[:, :, None] > 0, total, fresh))
            self.count.copy_(count.clamp_min(1.0))
            self.uses.copy_(uses)
            self.quantizer.codebook.copy_(self.total / self.count[:, :, None])
            shared = turn < rounds * SHARED
            self.quantizer.lengths.copy_(code_lengths(count if shared else self.uses))
        for tensor in (self.total, self.count, self.uses):
            tensor.mul_(share)


def by_price(rows: Tensor, levels: int) -> Tensor:
    """Latents [B, h, w, C] of crops in the order of their prices -> [P, n, C]."""
    return rows.flatten(0, 2).unflatten(0, (levels, -1))


def picked(latents: Tensor, numbers: Tensor) -> Tensor:
    """[M, K, d] of latents [M, N, d], by random numbers [M, K] in 0..1."""
    count = latents.shape[1]
    pick = (numbers * count).long().clamp_max_(count - 1)
    return latents.gather(1, pick[:, :, None].expand(-1, -1, latents.shape[2]))
