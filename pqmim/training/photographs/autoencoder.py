"""Stage 1: train the PQ-VAE for mean squared error, all qualities and prices at once.

Nested sub-codes: most crops keep the sub-codes that are sent at their price (``natural``), some the
first layer, some a random prefix of it.  Each crop's error is divided by the usual error at its
price and sub-codes, so every rate gains the same share (the loss is a stand-in for mean PSNR) and
the coarse ones do not drown the fine ones.

The learning rate follows the share of the time budget that is used, not a step count: the budget is
what is known in advance.  A step asks the device for nothing; the loop looks at its numbers every
few seconds.  On a GPU the step is one recorded graph in bf16, with tensors channels last.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pqmim.autoencoder.config import AutoencoderConfig
from pqmim.autoencoder.network import PQVAE, channels_last, to_float
from pqmim.training.photographs.books import PRICES, Books, by_price
from pqmim.training.photographs.graph import Replayed
from pqmim.training.photographs.photos import Photos
from pqmim.training.photographs.starts import (
    LAYERS,
    Layer,
    draw_codebooks,
    start_model,
    transplant,
    with_layers,
)  # fmt: skip
from pqmim.training.state import State, adamw, towards

ALL_BELOW = 0.06  # prices at which all layers are sent; above it the first
NATURAL, FIRST = 0.7, 0.1  # of the crops; the others keep a random prefix of the first layer
USUAL_RATE = 0.02  # of the usual error's moving average
START_BATCHES, ROUNDS = 8, 12
SIZES = {  # of the model: widths, blocks of the encoder and of the decoder
    "small": ((192, 256), (2, 3), (4, 5)),
    "base": ((192, 320), (2, 4), (5, 7)),
    "large": ((256, 448), (3, 6), (6, 10)),
}


def sized(size: str, layers: tuple[Layer, ...] = LAYERS) -> AutoencoderConfig:
    """The description of a model by its size."""
    widths, encoder, decoder = SIZES[size]
    config = AutoencoderConfig(widths=widths, encoder_blocks=encoder, decoder_blocks=decoder)
    return with_layers(config, layers, PRICES)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the images."""

    model: AutoencoderConfig = dataclasses.field(default_factory=lambda: sized("small"))
    layers: tuple[Layer, ...] = LAYERS
    minutes: float = 85.0
    crop: int = 160
    batch: int = 8  # crops, a multiple of the prices
    peak_lr: float = 2e-4
    encoder_lr: float = 0.5  # relative: the straight-through gradient drives the latents apart
    linear_lr: float = 0.02  # of the linear maps, relative: they see 768 correlated pixels
    warmup: float = 0.02  # share of the budget
    commitment: float = 1.0  # cancels the bias of the straight-through gradient
    weight_average: float = 0.999
    seed: int = 0

    @classmethod
    def on(cls, device: torch.device, size: str, minutes: float) -> Recipe:
        """What suits a device: on a GPU more crops a step, at a higher rate."""
        if device.type != "cuda":
            return cls(model=sized(size), minutes=minutes)
        return cls(model=sized(size), minutes=minutes, crop=256, batch=32, peak_lr=5e-4)


def learning_rate(recipe: Recipe, used: float) -> float:
    """Linear warm-up, then a cosine to 1 % of the peak; ``used`` is the share of the budget."""
    if used < recipe.warmup:
        return recipe.peak_lr * max(used / recipe.warmup, 0.01)
    done = min(1.0, (used - recipe.warmup) / (1 - recipe.warmup))
    return recipe.peak_lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(model: PQVAE, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; the encoder and the linear maps have lower rates."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        share = recipe.encoder_lr if name.startswith("encoder.") else 1.0
        share = recipe.linear_lr if ".linear." in name else share
        groups.setdefault(share, []).append(parameter)
    device = next(model.parameters()).device
    listed = [{"params": list_, "share": share} for share, list_ in groups.items()]
    return adamw(listed, device, betas=(0.9, 0.99))


class Trainer(State):
    """The state of one run."""

    model: PQVAE
    average: PQVAE

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__(device)
        self.recipe: Recipe = recipe
        levels = len(recipe.model.prices)
        if recipe.batch % levels:
            raise ValueError(f"batch {recipe.batch} is not a multiple of the {levels} prices")
        torch.manual_seed(recipe.seed)
        self.model = channels_last(PQVAE(recipe.model).to(device))
        self.average = channels_last(PQVAE(recipe.model).to(device)).requires_grad_(False)
        self.books = Books(self.model.quantizer)
        self.optimizer = make_optimizer(self.model, recipe)
        layers = recipe.model.layers
        # Usual errors by price, and by what is kept: all, the first layer, 1, 2-3, 4-7, ... of it.
        kinds = 2 + layers[0].bit_length()
        self.usual = torch.full((levels, kinds), 0.01, device=device)
        self.run = Replayed(self._step)

    def state(self) -> dict[str, Any]:
        """Everything, to be saved."""
        return super().state() | {"usual": self.usual, "books": self.books.tensors()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        super().restore(state)
        for mine, saved in zip(self.books.tensors(), state["books"], strict=True):
            mine.copy_(saved)
        self.usual.copy_(state["usual"])

    @torch.no_grad()
    def start(self, photos: Photos, other: PQVAE | None = None) -> None:
        """Begin as a transform codec; or with the trunks of another model, or all of it."""
        count = 64 // len(self.recipe.model.prices) * len(self.recipe.model.prices)
        seed = self.recipe.seed
        parts = [photos.cut(photos.draw(count, seed, -1 - i)) for i in range(START_BATCHES)]
        generator = torch.Generator().manual_seed(seed)
        if other is not None and other.config == self.recipe.model:
            self.model.load_state_dict(other.state_dict())
            rounds = 2
        else:
            start_model(self.model, to_float(torch.cat(parts)), self.recipe.layers)
            if other is not None:
                transplant(self.model, other)
            rounds = ROUNDS
        self.model.refresh_gain()
        latents = [latent_rows(self.model, part) for part in parts]
        if rounds == ROUNDS:
            rows = torch.cat([own.flatten(0, 2) for own in latents])
            draw_codebooks(self.model, rows, generator)
        levels = len(self.recipe.model.prices)
        share = self.recipe.batch / (count * START_BATCHES)
        self.books.settle([by_price(own, levels) for own in latents], rounds, share, generator)
        self.average.load_state_dict(self.model.state_dict())

    def train_step(self, photos: Photos) -> Tensor:
        """One update; [loss, mean squared error, gradient norm], not looked at."""
        recipe, size = self.recipe, self.recipe.batch
        self.set_rates(learning_rate(recipe, self.used))
        numbers = photos.draw(size, recipe.seed, self.step)
        generator = torch.Generator().manual_seed(recipe.seed * 7919 + self.step)
        kinds = torch.rand(size, 2, generator=generator).to(self.device, non_blocking=True)
        model = recipe.model
        dead = torch.rand(model.subcodes, model.codewords, generator=generator)
        report = self.run(photos.cut(numbers), kinds, dead.to(self.device, non_blocking=True))
        self.step += 1
        return report

    def _kept(self, kinds: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """How many sub-codes each crop keeps, and its column of the usual errors, int64 [B]."""
        config = self.recipe.model
        first, every = config.layers[0], config.subcodes
        prices = torch.tensor(config.prices, device=self.device)[level]
        some = 1 + (kinds[:, 1] * first).long().clamp_max(first - 1)
        natural = torch.where(prices < ALL_BELOW, every, first)
        kept = torch.where(kinds[:, 0] < NATURAL + FIRST, first, some)
        kept = torch.where(kinds[:, 0] < NATURAL, natural, kept)
        column = 2 + kept.float().log2().floor().long()
        column = torch.where(kept == first, 1, column)
        return kept, torch.where(kept == every, 0, column)

    def _step(self, pixels: Tensor, kinds: Tensor, dead: Tensor) -> Tensor:
        """The whole update on the device; see :meth:`train_step`."""
        model, levels = self.model, len(self.recipe.model.prices)
        x = to_float(pixels)
        level = torch.arange(levels, device=x.device).repeat_interleave(len(x) // levels)
        kept, column = self._kept(kinds, level)
        model.refresh_gain()
        with self._autocast():
            latent = model.encoder(x).float()
        rows = latent.permute(0, 2, 3, 1)  # [B, h, w, C]
        with torch.no_grad():
            codes, seen = self.books.quantise(
                by_price(rows.detach(), levels), self.books.penalties()
            )
            words = model.quantizer.codewords_of(codes.reshape(*rows.shape[:3], -1))
        given, there = self._given(words, kept)
        drift = (rows - given.detach()) * there
        through = given + drift - drift.detach()
        with self._autocast():
            y = model.decoder(through.permute(0, 3, 1, 2))
        error = (y.float() - x).square().mean(dim=(1, 2, 3))
        usual = self.usual[level, column]
        off = self._shown(drift, x)
        loss = ((error + self.recipe.commitment * off) / usual).mean()
        norm = self.descend(loss)
        self.books.follow(codes, seen, dead)
        with torch.no_grad():
            change = USUAL_RATE * (error.detach() - usual)
            self.usual.index_put_((level, column), change, accumulate=True)
            self.usual.clamp_min_(1e-6)
            towards(self.average.parameters(), model.parameters(), self.rate)
            for mine, its in zip(self.average.buffers(), model.buffers(), strict=True):
                mine.copy_(its)
        return torch.stack([loss.detach(), error.detach().mean(), norm])

    def _given(self, words: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder is given [B, h, w, C] of codewords [B, h, w, M, d], and which channels
        are there at all, [B, 1, 1, C]."""
        quantizer = self.model.quantizer
        subcodes = quantizer.config.subcodes
        sent = torch.arange(subcodes, device=words.device) < kept[:, None]  # [B, M]
        mask = sent[:, None, None, :, None]
        given = quantizer.assemble(torch.where(mask, words, quantizer.absent))
        ones = sent[:, :, None].expand(-1, -1, words.shape[-1]).float()
        there = quantizer.assemble(ones).clamp_max(1.0)
        return given, there[:, None, None]

    def _shown(self, drift: Tensor, x: Tensor) -> Tensor:
        """Squared quantisation error as the linear decoder shows it in the pixels, [B].

        In a linear codec the straight-through gradient D'(Dq - x) plus that of this term, D'D(z -
        q), is the gradient of the error without quantisation, D'(Dz - x): free of the bias that
        otherwise drives latents and codewords apart.  The linear decoder's columns are principal
        components, so nearly orthogonal, that the channels' own power stands for the product.
        """
        pixels = x[0].numel() / (drift.shape[1] * drift.shape[2])  # values of a patch
        return (drift.square() * self.model.decoder.power()).sum(-1).mean(dim=(1, 2)) / pixels

    def _autocast(self) -> torch.autocast:
        """bf16 on a GPU; on the CPU it is slower than float32."""
        enabled = self.device.type == "cuda"
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False
        )


def latent_rows(model: PQVAE, pixels: Tensor) -> Tensor:
    """uint8 [B,3,H,W] -> latents [B, h, w, C]."""
    return model.encoder(to_float(pixels)).permute(0, 2, 3, 1)


def quantised(model: PQVAE, rows: Tensor, quality: int, price: float) -> tuple[Tensor, Tensor]:
    """Codes [B, h, w, quality] of latents at a price, and the static bits of each crop, [B]."""
    quantizer = model.quantizer
    codes = quantizer.choose(rows.flatten(0, 2), quality, price)
    lengths = quantizer.lengths_at(price or 1e-9)
    assert lengths is not None
    bits = lengths[:quality].gather(1, codes.T).sum(0)
    return codes.reshape(*rows.shape[:3], quality), bits.reshape(len(rows), -1).sum(1)


def mean_error(model: PQVAE, codes: Tensor, pixels: Tensor) -> Tensor:
    """Mean squared error of each image in levels, [B]."""
    shown = model.decode(codes)
    return F.mse_loss(shown.float(), pixels.float(), reduction="none").mean(dim=(1, 2, 3))
