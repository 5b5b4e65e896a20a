"""The product quantizer: latents <-> codes.

The latent's M*d channels are M sub-spaces of d channels, each with its own codebook of K codewords
(PQ between VQ, M = 1, and scalar quantisation, d = 1).  Sub-codes are *nested*: sub-code 0 matters
most, and a decoder that is given the first m of them replaces the rest by a learned "absent"
vector. So one checkpoint serves every quality m = 1..M.

Training chooses codes by distance plus a *price*, lambda times the length of the code (entropy-
constrained vector quantisation, Chou, Lookabaugh and Gray 1989): a flat place takes the common
codewords, which cost next to nothing once they are entropy-coded.

Codebooks follow the latents by exponential moving averages (van den Oord et al. 2017, appendix A);
codewords that nothing uses are restarted from random latents of the batch (Jukebox, EnCodec).
Memory: the distance table is chunked to about 64 MB whatever the image size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pqmim.autoencoder.config import AutoencoderConfig

CHUNK_DISTANCES = 1 << 24  # floats of one distance table, 64 MB
DEAD_BELOW = 0.003  # a codeword is dead if used less than this share of its even share
RARE = 0.02  # uses added to every codeword, so that none has an infinite length


class ProductQuantizer(nn.Module):
    """Codebooks ``[M, K, d]`` and the maps between latents and codes."""

    codebook: Tensor  # [M, K, d] float32
    count: Tensor  # [M, K] moving average of uses per batch
    total: Tensor  # [M, K, d] moving average of the latents that chose the codeword
    gain: Tensor  # [M] squared error of the pixels for one of the latent

    def __init__(self, config: AutoencoderConfig, decay: float = 0.99) -> None:
        super().__init__()
        self.subcodes, self.codewords = config.subcodes, config.codewords
        self.dims, self.decay = config.subcode_dims, decay
        shape = (self.subcodes, self.codewords, self.dims)
        self.register_buffer("codebook", torch.randn(shape))
        self.register_buffer("count", torch.zeros(shape[:2]), persistent=False)
        self.register_buffer("total", torch.zeros(shape), persistent=False)
        self.register_buffer("gain", torch.ones(self.subcodes), persistent=False)
        self.absent = nn.Parameter(torch.zeros(self.subcodes, self.dims))

    def vectors(self, latent: Tensor) -> Tensor:
        """[B, M*d, h, w] -> [M, N, d] with N = B*h*w in row-major order."""
        rows = latent.permute(0, 2, 3, 1).reshape(-1, self.subcodes, self.dims)
        return rows.transpose(0, 1)

    def nearest(self, vectors: Tensor, price: Tensor | None = None) -> Tensor:
        """[m, N, d] -> int64 [m, N]: the codeword of least cost in each of the first m codebooks.

        Args:
            vectors: of the first m sub-spaces.
            price: [N], what a bit costs each vector in squared error of the pixels; None: nothing.
        """
        book = self.codebook[: len(vectors)]
        constant = book.square().sum(-1).mul(0.5).unsqueeze(1)  # [m, 1, K]
        if price is not None:  # one more channel: -price times the code length
            length = self.lengths()[: len(book)] / (2 * self.gain[: len(book), None])
            book = torch.cat([book, -length.unsqueeze(-1)], dim=2)
            paid = price[None, :, None].expand(len(vectors), -1, 1)
            vectors = torch.cat([vectors, paid.to(vectors.dtype)], dim=2)
        rows = max(1, CHUNK_DISTANCES // (len(book) * self.codewords))
        parts = [
            torch.baddbmm(constant, part, book.transpose(1, 2), alpha=-1.0).argmin(-1)
            for part in vectors.split(rows, dim=1)
        ]
        return torch.cat(parts, dim=1)

    def lengths(self) -> Tensor:
        """[M, K]: ideal length in bits of every codeword by itself, from the moving average."""
        uses = self.count + RARE * self.count.sum(1, keepdim=True) / self.codewords
        uses = uses.clamp_min(1e-9)  # before any use all are alike
        return -(uses / uses.sum(1, keepdim=True)).log2()

    def encode(self, latent: Tensor, quality: int) -> Tensor:
        """Latent [B, M*d, h, w] -> codes int64 [B, h, w, quality]."""
        batch, _, height, width = latent.shape
        codes = self.nearest(self.vectors(latent)[:quality])
        return codes.transpose(0, 1).reshape(batch, height, width, quality)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes integer [B, h, w, m], m <= M -> latent [B, M*d, h, w]; the rest is absent."""
        batch, height, width, quality = codes.shape
        index = codes.long() + torch.arange(quality, device=codes.device) * self.codewords
        sent = F.embedding(index, self.codebook.reshape(-1, self.dims))  # [B, h, w, m, d]
        absent = self.absent[quality:].expand(batch, height, width, -1, -1)
        latent = torch.cat([sent, absent.to(sent.dtype)], dim=3)
        return latent.reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    def forward(
        self, latent: Tensor, quality: Tensor, price: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise for training, with straight-through gradients.

        Args:
            latent: [B, M*d, h, w].
            quality: int [B], how many sub-codes of each image the decoder is given.
            price: float [B], what a bit costs in each image; see :meth:`nearest`.

        Returns:
            The decoder's input [B, M*d, h, w], the quantised latent without gradient, of the same
            shape with every sub-code present, and the codes [M, N].
        """
        batch, _, height, width = latent.shape
        vectors = self.vectors(latent)
        with torch.no_grad():
            codes = self.nearest(vectors, price.repeat_interleave(height * width))
            chosen = torch.stack([b[c] for b, c in zip(self.codebook, codes, strict=True)])
        through = vectors + (chosen - vectors).detach()
        kept = torch.arange(self.subcodes, device=latent.device)[:, None] < quality  # [M, B]
        kept = kept.repeat_interleave(height * width, dim=1).unsqueeze(-1)
        given = torch.where(kept, through, self.absent.unsqueeze(1))
        return (
            self._grid(given, batch, height, width),
            self._grid(chosen, batch, height, width),
            codes,
        )

    def _grid(self, vectors: Tensor, batch: int, height: int, width: int) -> Tensor:
        """[M, N, d] -> [B, M*d, h, w]."""
        return vectors.transpose(0, 1).reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    @torch.no_grad()
    def start(self, latent: Tensor, price: float, rounds: int = 12) -> None:
        """Data start: entropy-constrained k-means of the latents of many images, [B, M*d, h, w].

        A random draw of latents is no substitute: the sub-spaces are heavy-tailed, and training
        from a draw lost 5 dB at once and did not get them back (docs/log.md).
        """
        vectors = self.vectors(latent.float())
        for m, part in enumerate(vectors):
            self.codebook[m] = part[_draw(len(part), self.codewords, part.device)]
        self.count.fill_(1.0)
        paid = torch.full((vectors.shape[1],), price, device=latent.device)
        for _ in range(rounds):
            codes = self.nearest(vectors, paid)
            for m, (part, used) in enumerate(zip(vectors, codes, strict=True)):
                self.count[m] = torch.bincount(used, minlength=self.codewords)
                self.total[m] = torch.zeros_like(self.total[m]).index_add_(0, used, part)
                empty = (self.count[m] == 0).nonzero()[:, 0]
                self.count[m, empty] = 1.0
                self.total[m, empty] = part[_draw(len(part), len(empty), part.device)]
            self.codebook.copy_(self.total / self.count.unsqueeze(-1))

    @torch.no_grad()
    def follow(self, latent: Tensor, codes: Tensor) -> int:
        """One moving-average step towards the batch; returns how many dead codewords restarted."""
        restarted = 0
        for m, (vectors, used) in enumerate(zip(self.vectors(latent.float()), codes, strict=True)):
            uses = torch.bincount(used, minlength=self.codewords).to(vectors.dtype)
            sums = torch.zeros_like(self.total[m]).index_add_(0, used, vectors)
            self.count[m].lerp_(uses, 1 - self.decay)
            self.total[m].lerp_(sums, 1 - self.decay)
            even = len(used) / self.codewords
            dead = (self.count[m] < DEAD_BELOW * even).nonzero()[:, 0]
            if len(dead):
                fresh = vectors[_draw(len(vectors), len(dead), vectors.device)]
                self.total[m, dead], self.count[m, dead] = fresh * even, even
                restarted += len(dead)
            self.codebook[m] = self.total[m] / self.count[m].clamp_min(1e-6).unsqueeze(-1)
        return restarted

    def usage(self) -> list[float]:
        """Effective number of codewords in use (perplexity, 1..K) of each sub-codebook."""
        share = self.count / self.count.sum(1, keepdim=True).clamp_min(1e-9)
        entropy = -(share * share.clamp_min(1e-12).log()).sum(1)
        return [round(float(perplexity), 1) for perplexity in entropy.exp()]


def _draw(population: int, count: int, device: torch.device) -> Tensor:
    """``count`` random indices, distinct if the population allows it."""
    if population >= count:
        return torch.randperm(population, device=device)[:count]
    return torch.randint(population, (count,), device=device)
