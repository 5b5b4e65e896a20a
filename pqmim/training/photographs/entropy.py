"""Stage 2: train the masked entropy model on the codes of a finished autoencoder.

The loss is the code length of the asked cells and nothing else (label smoothing would bias the
probabilities).  The last ``integer_share`` of the budget trains through the integer form itself, at
a lower rate.  As in stage 1 a step asks the device for nothing, and on a GPU it is one recorded
graph; the learning rate follows the share of the time budget that is used.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pqmim.coding import schedule
from pqmim.prior import exact
from pqmim.prior.config import WINDOW, PriorConfig
from pqmim.training.network import Prior
from pqmim.training.photographs.corpus import Corpus
from pqmim.training.photographs.graph import Replayed, towards
from pqmim.training.photographs.masking import NUMBERS, Masked, Masks
from pqmim.training.prior import CHAIN_RATE, OCTAVES_PER_LOGIT
from pqmim.training.to_integers import Powers, calibrate, quantise

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
    if powers is None:
        hidden = prior.hidden(masked.tokens, masked.present)
    else:
        net = quantise(prior, powers)
        hidden = exact.hidden(net, masked.tokens, masked.present)
    parts = []
    for group in range(config.groups):
        first = groups.index(group)
        mine = slice(first, first + groups.count(group))
        span = slice(group * config.group, (group + 1) * config.group)
        rows, codes = hidden[mine].flatten(0, 1), masked.codes[mine].flatten(0, 2)
        octaves = []
        for head, part in config.parts(span):
            before = codes[:, : part.start - span.start]
            if powers is None:
                octaves.append(prior.logits(rows, head, before))
            else:
                octaves.append(exact.logits(net, rows, head, before) * OCTAVES_PER_LOGIT)
        nats = F.cross_entropy(
            torch.cat(octaves, 1).flatten(0, 1).float() * math.log(2), codes.flatten(),
            reduction="none",
        )  # fmt: skip
        parts.append(nats.reshape(-1, WINDOW * WINDOW, config.group))
    bits = torch.cat(parts) / math.log(2)
    return bits * masked.asked.flatten(1, 2)


class PriorTrainer:
    """The state of one run."""

    def __init__(self, recipe: PriorRecipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        self.model = Prior(recipe.model).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.masks = Masks(recipe.model, recipe.batch, recipe.plan, device)
        self.optimizer = self._optimizer()
        self.powers: Powers | None = None
        self.rate = torch.tensor(0.5, device=device)
        self.step, self.seconds, self.since = 0, 0.0, 0
        self.run = Replayed(self._step)

    def _optimizer(self) -> torch.optim.Optimizer:
        named = list(self.model.named_parameters())
        chain = [p for name, p in named if name == "chain"]
        decayed = [p for name, p in named if name != "chain" and p.ndim == 2]
        others = [p for name, p in named if name != "chain" and p.ndim != 2]
        groups = [(decayed, self.recipe.weight_decay, 1.0), (others, 0.0, 1.0),
                  (chain, 0.0, CHAIN_RATE)]  # fmt: skip
        return torch.optim.AdamW(
            [{"params": params, "weight_decay": decay, "rate": rate,
              "lr": torch.tensor(0.0, device=self.device)} for params, decay, rate in groups],
            betas=(0.9, 0.98), fused=True, capturable=self.device.type == "cuda",
        )  # fmt: skip

    def state(self) -> dict[str, object]:
        """Everything, to be saved."""
        return {
            "recipe": dataclasses.asdict(self.recipe), "step": self.step, "seconds": self.seconds,
            "model": self.model.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "powers": None if self.powers is None else dataclasses.asdict(self.powers),
        }  # fmt: skip

    def restore(self, state: dict) -> None:
        """Go on from :meth:`state`."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.powers = None if state["powers"] is None else Powers(**state["powers"])
        self.step, self.seconds = state["step"], state["seconds"]

    def learning_rate(self) -> float:
        """Warm-up, cosine to 2 % of the peak over the float phase; then constant, falling to 0."""
        recipe, used = self.recipe, self.seconds / (60 * self.recipe.minutes)
        if used < recipe.warmup:
            return recipe.peak_lr * max(used / recipe.warmup, 0.01)
        if self.powers is not None:
            left = max(0.0, 1 - used) / max(recipe.integer_share, 1e-9)
            return recipe.peak_lr * recipe.integer_lr * min(1.0, left)
        done = (used - recipe.warmup) / (1 - recipe.integer_share - recipe.warmup)
        return recipe.peak_lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

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
        recipe, lr = self.recipe, self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr * group["rate"])
        self.rate.fill_(1 - min(recipe.weight_average, (1 + self.since) / (10 + self.since)))
        if self.step % recipe.renew_every == 0:
            corpus.renew()
        masked, _ = self.masked(corpus, recipe.seed * 1_000_003 + self.step)
        report = self.run(masked.tokens, masked.present, masked.codes, masked.asked)
        self.step, self.since = self.step + 1, self.since + 1
        return report

    def _step(self, tokens: Tensor, present: Tensor, codes: Tensor, asked: Tensor) -> Tensor:
        enabled = self.device.type == "cuda" and self.powers is None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False):
            bits = loss_bits(
                self.model, self.powers, Masked(tokens, present, codes, asked), self.masks.groups
            )
        loss = bits.sum() / asked.sum().clamp_min(1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        towards(self.average.parameters(), self.model.parameters(), self.rate)
        return torch.stack([loss.detach(), norm])

    @torch.no_grad()
    def calibrated(self, corpus: Corpus) -> Powers:
        """Powers of the averaged weights as they are now."""
        parts = [self.masked(corpus, -1 - i)[0] for i in range(8)]
        return calibrate(self.average, [(m.tokens, m.present) for m in parts])

    def start_integers(self, corpus: Corpus) -> None:
        """Go on from the averaged weights, through the integers."""
        self.model.load_state_dict(self.average.state_dict())
        self.powers = self.calibrated(corpus)
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
