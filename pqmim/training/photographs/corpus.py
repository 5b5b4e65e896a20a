"""Windows of codes for stage 2, made on the device from crops of the photographs.

A pool of windows is filled once and renewed a little every step, so that the entropy model meets
crops, scales and mirrors without end while the encoder runs seldom.  Window i of the pool has the
price i modulo P + 1 of a bit, with static code lengths; the first of these is none, the nearest
codewords, which is what raw codes are.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pqmim.autoencoder.network import PQVAE
from pqmim.prior.config import WINDOW, PriorConfig
from pqmim.training.photographs.autoencoder import ALL_BELOW, latent_rows
from pqmim.training.photographs.books import PRICES, Books, by_price
from pqmim.training.photographs.photos import Photos
from pqmim.training.starts import code_lengths

AT_ONCE = 4  # windows of each price that the encoder sees
MEASURED, ROUNDS = 16, 6  # batches of windows, and rounds of choosing and counting, of `priced`


class Corpus:
    """A pool of windows of codes, uint8 [n, 16, 16, M], by price."""

    def __init__(
        self, model: PQVAE, photos: Photos, rounds: int, config: PriorConfig, seed: int
    ) -> None:
        self.model, self.photos, self.seed, self.made = model, photos, seed, 0
        self.books = Books(model.quantizer)
        model.refresh_gain()
        none = torch.zeros_like(model.quantizer.lengths[:1])
        self.penalties = torch.cat([none, self.books.penalties()])
        self.levels = len(self.penalties)
        size = (rounds * AT_ONCE, self.levels, WINDOW, WINDOW, config.subcodes)
        self.pool = torch.zeros(size, dtype=torch.uint8, device=photos.device)
        layer = [next(i for i, s in enumerate(model.config.spans) if g * config.group < s.stop)
                 for g in range(config.groups)]  # fmt: skip
        fine = 1 + sum(price < ALL_BELOW for price in model.config.prices)
        # How many of the prices, from the lowest, a group is trained at: all where it is sent.
        self.allowed = [self.levels if number == 0 else fine for number in layer]
        for _ in range(rounds):
            self.renew()

    @torch.no_grad()
    def renew(self) -> None:
        """Make some windows anew, the oldest ones."""
        count = AT_ONCE * self.levels
        pixels = self.photos.cut(self.photos.draw(count, self.seed, self.made))
        rows = by_price(latent_rows(self.model, pixels), self.levels)
        codes, _ = self.books.quantise(rows, self.penalties)
        first = self.made * AT_ONCE % len(self.pool)
        new = codes.to(torch.uint8).reshape(self.levels, AT_ONCE, WINDOW, WINDOW, -1)
        self.pool[first : first + AT_ONCE] = new.transpose(0, 1)
        self.made += 1

    def draw(self, allowed: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Windows [B, 16, 16, M] by random numbers [B, 2], and the place of each one's price;
        ``allowed`` int64 [B] of them for each."""
        level = torch.minimum((numbers[:, 0] * allowed).long(), allowed - 1)
        which = (numbers[:, 1] * len(self.pool)).long().clamp_max(len(self.pool) - 1)
        return self.pool[which, level], level


@torch.no_grad()
def priced(model: PQVAE, images: list[Tensor], seed: int) -> PQVAE:
    """The model with static code lengths at the prices of training; itself, if it has some.

    Lengths follow from the codes that they lead to, so choosing and counting take turns, at first
    with one table for all prices.
    """
    if model.config.prices:
        return model
    device = next(model.parameters()).device
    found = PQVAE(dataclasses.replace(model.config, prices=PRICES)).to(device).eval()
    found.load_state_dict(model.state_dict() | {"quantizer.lengths": found.quantizer.lengths})
    found.refresh_gain()
    photos = Photos(images, WINDOW * model.config.stride, device, scales=(1.0,))
    books, levels = Books(found.quantizer), len(PRICES)
    batches = [
        by_price(latent_rows(found, photos.cut(photos.draw(levels, seed, i))), levels)
        for i in range(MEASURED)
    ]
    for turn in range(ROUNDS):
        uses = torch.zeros_like(books.uses)
        for rows in batches:
            uses += books.counted(books.quantise(rows, books.penalties())[0])
        shared = turn < ROUNDS // 2
        found.quantizer.lengths.copy_(code_lengths(uses.sum(0) if shared else uses))
    return found.requires_grad_(False)
