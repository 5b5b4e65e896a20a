"""The product quantizer: latents <-> codes.

The latent's C channels are dealt out to M sub-codes of up to d channels each, and each sub-code has
its own codebook of K codewords (PQ between VQ, M = 1, and scalar quantisation, d = 1).  Sub-codes
are *nested*: sub-code 0 matters most, and a decoder that is given the first m of them replaces the
rest by a learned "absent" vector. So one checkpoint serves every quality m = 1..M.

Where one layer of sub-codes has spent its bits, the next one is dealt the channels anew, and its
codewords stand for what the layers before it have left of them (residual quantisation over product
quantisation).  The latent is the sum over the layers.

Codes may be chosen by distance plus a *price*, lambda times the length of the code (entropy-
constrained vector quantisation, Chou, Lookabaugh and Gray 1989): a flat place takes the common
codewords, which cost next to nothing once they are entropy-coded.  ``lengths`` holds static code
lengths at some prices, as training left them; the entropy model knows better.

Memory: the distance table is chunked to about 64 MB whatever the image size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pqmim.autoencoder.config import AutoencoderConfig, ConfigError

CHUNK_DISTANCES = 1 << 24  # floats of one distance table, 64 MB
NONE = -1  # in ``deal``: no channel


class ProductQuantizer(nn.Module):
    """Codebooks ``[M, K, d]`` and the maps between latents and codes."""

    codebook: Tensor  # [M, K, d] float32, 0 where a sub-code has no channel
    absent: nn.Parameter  # [M, d]
    gain: Tensor  # [M] squared error of the pixels for one of the latent
    deal: Tensor  # [M, d] int16: the channel, or NONE; one layer has them in their order
    lengths: Tensor  # [P, M, K] bits at each of the prices

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.subcodes, config.codewords, config.subcode_dims)
        self.register_buffer("codebook", torch.randn(shape))
        self.register_buffer("gain", torch.ones(config.subcodes), persistent=False)
        self.absent = nn.Parameter(torch.zeros(config.subcodes, config.subcode_dims))
        dealt = torch.arange(config.subcodes * config.subcode_dims) % config.latent_dims
        self.register_buffer(
            "deal", dealt.reshape(-1, config.subcode_dims).to(torch.int16),
            persistent=bool(config.layers),
        )  # fmt: skip
        even = torch.full((len(config.prices), *shape[:2]), math.log2(config.codewords))
        self.register_buffer("lengths", even, persistent=bool(config.prices))

    def check(self) -> None:
        """Refuse a deal that no latent has.

        Raises:
            ConfigError: a channel that there is not.
        """
        if int(self.deal.min()) < NONE or int(self.deal.max()) >= self.config.latent_dims:
            raise ConfigError(f"quantizer.deal names channels outside {self.config.latent_dims}")

    def rows(self, latent: Tensor) -> Tensor:
        """[..., C] -> [..., M, d]: what each sub-code has of it; 0 where that is no channel."""
        if not self.config.layers:
            return latent.unflatten(-1, (self.config.subcodes, self.config.subcode_dims))
        return F.pad(latent, (0, 1))[..., self._places()]

    def assemble(self, vectors: Tensor, first: int = 0) -> Tensor:
        """[..., m, d] of the sub-codes ``first``, ... -> their sum [..., C]."""
        count, channels = vectors.shape[-2], self.config.latent_dims
        if not self.config.layers:
            before = first * self.config.subcode_dims
            after = channels - before - count * self.config.subcode_dims
            return F.pad(vectors.flatten(-2), (before, after))
        places = self._places()[first : first + count].flatten()
        total = vectors.new_zeros(*vectors.shape[:-2], channels + 1)
        return total.index_add(-1, places, vectors.flatten(-2))[..., :channels]

    def _places(self) -> Tensor:
        """``deal`` as int64, with a channel of its own for none."""
        return torch.where(self.deal < 0, self.config.latent_dims, self.deal).to(torch.int64)

    def codewords_of(self, codes: Tensor, first: int = 0) -> Tensor:
        """Codes integer [..., m] of the sub-codes ``first``, ... -> codewords [..., m, d]."""
        offset = torch.arange(first, first + codes.shape[-1], device=codes.device)
        index = codes.long() + offset * self.config.codewords
        return F.embedding(index, self.codebook.reshape(-1, self.config.subcode_dims))

    def nearest(self, vectors: Tensor, first: int = 0, penalty: Tensor | None = None) -> Tensor:
        """[m, N, d] -> int64 [m, N]: codewords of least cost in the codebooks ``first``, ...

        ``penalty`` [m, K] adds to half of the squared distance.
        """
        book = self.codebook[first : first + len(vectors)]
        constant = book.square().sum(-1).mul(0.5)
        if penalty is not None:
            constant = constant + penalty
        constant = constant.unsqueeze(1)  # [m, 1, K]
        rows = max(1, CHUNK_DISTANCES // (len(book) * self.config.codewords))
        parts = [
            torch.baddbmm(constant, part, book.transpose(1, 2), alpha=-1.0).argmin(-1)
            for part in vectors.split(rows, dim=1)
        ]
        return torch.cat(parts, dim=1)

    def choose(self, rows: Tensor, quality: int, price: float = 0.0) -> Tensor:
        """Rows of the latent [N, C] -> codes int64 [N, quality], at a price by static lengths."""
        found: list[Tensor] = []
        lengths = self.lengths_at(price) if price else None
        for span in self.config.spans:
            span = slice(span.start, min(span.stop, quality))
            if span.start >= span.stop:
                break
            vectors = self.rows(rows)[:, span].transpose(0, 1)
            penalty = None if lengths is None else self.penalty(lengths, price)[span]
            found.append(self.nearest(vectors, span.start, penalty).T)
            if span.stop < quality:
                rows = rows - self.assemble(self.codewords_of(found[-1], span.start), span.start)
        return torch.cat(found, 1)

    def penalty(self, lengths: Tensor, price: float | Tensor) -> Tensor:
        """[..., M, K] in bits, at a price -> what they add to half of the squared distance."""
        return lengths * (price / (2 * self.gain[:, None]))

    def lengths_at(self, price: float) -> Tensor | None:
        """[M, K] static code lengths in bits at a price: a mixture of the nearest prices' codes."""
        prices = self.config.prices
        if not prices:
            return None
        above = next((i for i, p in enumerate(prices) if p >= price), len(prices) - 1)
        below = max(0, above - 1)
        if not prices[below] < price < prices[above]:
            return self.lengths[above]
        share = math.log(price / prices[below]) / math.log(prices[above] / prices[below])
        near = torch.exp2(-self.lengths[below : above + 1])
        return -torch.lerp(near[0], near[1], share).log2()

    def encode(self, latent: Tensor, quality: int) -> Tensor:
        """Latent [B, C, h, w] -> the nearest codes int64 [B, h, w, quality]."""
        rows = latent.permute(0, 2, 3, 1)
        return self.choose(rows.flatten(0, 2), quality).reshape(*rows.shape[:3], quality)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes integer [B, h, w, m], m <= M -> latent [B, C, h, w]; the rest is absent."""
        return self.latent_of(self.codewords_of(codes))

    def latent_of(self, vectors: Tensor) -> Tensor:
        """Vectors [B, h, w, m, d], m <= M -> latent [B, C, h, w]; the rest is absent."""
        absent = self.absent[vectors.shape[3] :].expand(*vectors.shape[:3], -1, -1)
        whole = torch.cat([vectors, absent.to(vectors.dtype)], dim=3)
        return self.assemble(whole).permute(0, 3, 1, 2)
