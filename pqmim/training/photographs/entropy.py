"""Stage 2: train the masked entropy model on the codes of a finished autoencoder.

The loss is the code length of the asked cells and nothing else (label smoothing would bias the
probabilities).  The last ``integer_share`` of the budget trains through the integer form itself, at
a lower rate.  As in stage 1 a step asks the device for nothing, and on a GPU it is one recorded
graph; the learning rate follows the share of the time budget that is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pqmim.coding import schedule
from pqmim.prior.config import WINDOW, PriorConfig
from pqmim.training.network import Prior
from pqmim.training.photographs.corpus import Corpus
from pqmim.training.photographs.graph import Replayed
from pqmim.training.photographs.masking import NUMBERS, Masked, Masks
from pqmim.training.prior import CALIBRATED, PriorState, group_octaves, hidden_states
from pqmim.training.state import towards
from pqmim.training.to_integers import Powers

SIZES = {  # of the model: dims, heads, hidden, blocks with neighbours or without
    "small": (128, 4, 512, (True, False, True, False)),
    "base": (160, 5, 640, (True, False, True, False, True)),
    "large": (256, 8, 1024, (True, False, True, False, True, False)),
}
GROUP = 8  # sub-codes, where there are more than 32 of them


def sized(size: str, subcodes: int, codewords: int) -> PriorConfig:
    """The description of an entropy model by its size."""
    dims, heads, hidden, local = SIZES[size]
    group = GROUP if subcodes > 32 and subcodes % GROUP == 0 else 4 if subcodes % 4 == 0 else 1
    return PriorConfig(subcodes, codewords, group, dims, heads, hidden, local)


@dataclass(frozen=True)
class PriorRecipe:
    """Everything that decides the weights, apart from the images."""

    model: PriorConfig
    plan: tuple[int, ...] = schedule.DEFAULT_PLAN
    minutes: float = 60.0
    batch: int = 24  # windows
    pool: int = 24  # rounds of windows in the corpus
    renew_every: int = 4  # steps
    peak_lr: float = 2e-3
    warmup: float = 0.03  # share of the budget
    weight_decay: float = 0.02
    weight_average: float = 0.998
    integer_share: float = 0.15  # of the budget trains through the integers
    integer_lr: float = 0.1  # of the peak
    seed: int = 0

    @classmethod
    def on(cls, device: torch.device, model: PriorConfig, minutes: float) -> PriorRecipe:
        """What suits a device."""
        if device.type != "cuda":
            return cls(model, minutes=minutes, batch=max(24, model.groups))
        return cls(model, minutes=minutes, batch=128, pool=512, renew_every=1, peak_lr=3e-3)


def loss_bits(prior: Prior, powers: Powers | None, masked: Masked, groups: list[int]) -> Tensor:
    """Code lengths in bits of every cell that is asked for, 0 elsewhere, [B, 256, group]."""
    config = prior.config
    net, hidden = hidden_states(prior, powers, masked.tokens, masked.present)
    parts = []
    for group in range(config.groups):
        first = groups.index(group)
        mine = slice(first, first + groups.count(group))
        rows, codes = hidden[mine].flatten(0, 1), masked.codes[mine].flatten(0, 2)
        octaves = group_octaves(prior, net, group, rows, codes).flatten(0, 1).float()
        nats = F.cross_entropy(octaves * math.log(2), codes.flatten(), reduction="none")
        parts.append(nats.reshape(-1, WINDOW * WINDOW, config.group))
    bits = torch.cat(parts) / math.log(2)
    return bits * masked.asked.flatten(1, 2)


class PriorTrainer(PriorState):
    """A run on codes of photographs that are made while it runs."""

    def __init__(self, recipe: PriorRecipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        self.masks = Masks(recipe.model, recipe.batch, recipe.plan, device)
        self.run = Replayed(self._step)

    def masked(self, corpus: Corpus, seed: int) -> tuple[Masked, Tensor]:
        """A batch by a seed, and the place of each window's price."""
        batch, generator = self.recipe.batch, torch.Generator().manual_seed(seed % 2**63)
        numbers = torch.rand(batch, NUMBERS + 2, generator=generator)
        places = torch.rand(batch, WINDOW, WINDOW, generator=generator)
        numbers, places = numbers.to(self.device), places.to(self.device)
        allowed = torch.tensor(corpus.allowed, device=self.device)[self.masks.group]
        codes, level = corpus.draw(allowed, numbers[:, NUMBERS:])
        return self.masks.of(codes, numbers[:, :NUMBERS], places), level

    def train_step(self, corpus: Corpus) -> Tensor:
        """One update; [bits a code, gradient norm], not looked at."""
        recipe = self.recipe
        self.set_rates(self.learning_rate())
        if self.step % recipe.renew_every == 0:
            corpus.renew()
        masked, _ = self.masked(corpus, recipe.seed * 1_000_003 + self.step)
        report = self.run(masked.tokens, masked.present, masked.codes, masked.asked)
        self.step += 1
        return report

    def _step(self, tokens: Tensor, present: Tensor, codes: Tensor, asked: Tensor) -> Tensor:
        enabled = self.device.type == "cuda" and self.powers is None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False):
            bits = loss_bits(
                self.model, self.powers, Masked(tokens, present, codes, asked), self.masks.groups
            )
        loss = bits.sum() / asked.sum().clamp_min(1)
        norm = self.descend(loss)
        towards(self.average.parameters(), self.model.parameters(), self.rate)
        return torch.stack([loss.detach(), norm])

    @torch.no_grad()
    def go_over(self, corpus: Corpus) -> None:
        """Begin the integer phase, with powers for what the corpus holds."""
        parts = [self.masked(corpus, -1 - i)[0] for i in range(CALIBRATED)]
        self.start_integers((part.tokens, part.present) for part in parts)
        self.run = Replayed(self._step)

    @torch.no_grad()
    def validate(self, corpus: Corpus, batches: int = 4) -> dict[str, float]:
        """Bits a code of a corpus of held-out windows, beside those of static lengths at the same
        prices; both over the cells that are asked for."""
        lengths = corpus.model.quantizer.lengths
        lengths = torch.cat([lengths[:1], lengths])  # nearest codewords, as those of a low price
        found = {"bits": 0.0, "static_bits": 0.0}
        cells = 0.0
        for number in range(batches):
            masked, level = self.masked(corpus, -100 - number)
            bits = loss_bits(self.average, self.powers, masked, self.masks.groups)
            subcode = self.masks.group[:, None] * self.recipe.model.group
            subcode = subcode + torch.arange(self.recipe.model.group, device=self.device)
            own = lengths[level[:, None], subcode]  # [B, group, K]
            codes = masked.codes.flatten(1, 2).transpose(1, 2)  # [B, group, 256]
            static = own.gather(2, codes).transpose(1, 2) * masked.asked.flatten(1, 2)
            found["bits"] += float(bits.sum())
            found["static_bits"] += float(static.sum())
            cells += float(masked.asked.sum())
        return {name: value / max(cells, 1.0) for name, value in found.items()}
