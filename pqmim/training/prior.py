"""Stage 2: train the masked entropy model on the codes of a finished autoencoder.

Windows of 16 x 16 positions are cut anywhere from the grids of codes.  Each sample works on one
group of sub-codes, as the decoder does: coarser groups are known, finer ones masked, and of its own
group a share of the positions is known.  Half of the samples take that share uniformly at random
and its positions at random, the other half take a stage of the plan.  The loss is the code length
of the group's masked cells and nothing else (label smoothing would bias the probabilities).

The last ``integer_share`` of the budget trains through the integer form itself, at a lower rate.
The learning rate follows the share of the time budget that is used.  The loop over the steps is in
``pqmim.training.prior_run``.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pqmim.coding import payloads, schedule
from pqmim.prior import exact, load
from pqmim.prior.config import WINDOW, PriorConfig
from pqmim.training.network import Prior
from pqmim.training.state import State, adamw, towards
from pqmim.training.to_integers import Powers, calibrate, export, quantise

Codes = NDArray[np.uint8]  # [h, w, M]
OCTAVES_PER_LOGIT = 1 / exact.OCTAVE
CALIBRATED = 8  # batches that give the powers
CHAIN_RATE = 10.0  # relative: what the chain adds to is ten times as large as an embedding


@dataclass(frozen=True)
class PriorRecipe:
    """Everything that decides the weights, apart from the codes."""

    model: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    plan: tuple[int, ...] = schedule.DEFAULT_PLAN
    minutes: float = 60.0
    batch: int = 16  # windows
    peak_lr: float = 2e-3
    warmup: float = 0.03  # share of the budget
    weight_decay: float = 0.02
    weight_average: float = 0.998
    partial_share: float = 0.1  # batches of windows that stick out of the image
    coarse_share: float = 0.2  # samples that stop within their group, as quality 1..3 does
    integer_share: float = 0.15  # of the budget trains through the integers
    integer_lr: float = 0.1  # of the peak
    seed: int = 0


@dataclass
class Batch:
    """Masked windows; samples are in order of their group."""

    tokens: Tensor  # int64 [B, 16, 16, M]
    present: Tensor | None  # bool [B, 16, 16]
    targets: Tensor  # int64 [B, 16, 16, M]
    masked: Tensor  # bool [B, 16, 16, M], the cells of the loss
    groups: list[int]  # of each sample


def draw_window(codes: Codes, partial: bool, rng: np.random.Generator) -> tuple[Codes, Tensor]:
    """A random window [16, 16, M] of one grid, zero-padded, and which positions are present."""
    size = [min(WINDOW, n) for n in codes.shape[:2]]
    if partial:
        size = [int(rng.integers(1, n + 1)) for n in size]
    top, left = (int(rng.integers(0, n - s + 1)) for n, s in zip(codes.shape, size, strict=False))
    window = np.zeros((WINDOW, WINDOW, codes.shape[2]), dtype=np.uint8)
    window[: size[0], : size[1]] = codes[top : top + size[0], left : left + size[1]]
    present = torch.zeros(WINDOW, WINDOW, dtype=torch.bool)
    present[: size[0], : size[1]] = True
    return window, present


def draw_known(byte: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Positions [16, 16] whose codes of the current group are known already."""
    if rng.random() < 0.5:
        stage = int(rng.integers(0, schedule.spatial_stages(byte)))
        return schedule.position_stages(byte) < stage
    return rng.random((WINDOW, WINDOW)) < rng.random()


def draw_batch(images: Sequence[Codes], recipe: PriorRecipe, rng: np.random.Generator) -> Batch:
    """One batch, decided by the generator alone."""
    config = recipe.model
    # The first groups cost most of the bits and take longest to learn.
    share = 1 / np.arange(2, config.groups + 2)
    groups = sorted(rng.choice(config.groups, recipe.batch, p=share / share.sum()).tolist())
    targets, presents, masks = [], [], []
    partial = rng.random() < recipe.partial_share
    for group in groups:
        window, present = draw_window(images[int(rng.integers(len(images)))], partial, rng)
        last = (group + 1) * config.group
        if rng.random() < recipe.coarse_share:
            last -= int(rng.integers(0, config.group))
        unknown = np.ones(window.shape, dtype=np.bool_)
        unknown[..., : group * config.group] = False
        known = draw_known(recipe.plan[group], rng)
        unknown[known, group * config.group : last] = False
        targets.append(window)
        presents.append(present)
        masks.append(unknown)
    unknown_cells = torch.from_numpy(np.stack(masks))
    present = torch.stack(presents)
    values = torch.from_numpy(np.stack(targets).astype(np.int64))
    unknown_cells |= ~present[..., None]
    masked = unknown_cells & present[..., None]
    for row, group in zip(masked, groups, strict=True):
        row[..., : group * config.group] = False
        row[..., (group + 1) * config.group :] = False
    tokens = values.masked_fill(unknown_cells, config.mask)
    return Batch(tokens, None if bool(present.all()) else present, values, masked, groups)


def batches(
    images: Sequence[Codes], recipe: PriorRecipe, first: int, device: torch.device
) -> Iterator[Batch]:
    """Batch ``first``, ``first + 1``, ... of the run; each depends on the seed and its number."""
    step = first
    while True:
        batch = draw_batch(images, recipe, np.random.default_rng((recipe.seed, step)))
        present = None if batch.present is None else batch.present.to(device)
        yield dataclasses.replace(
            batch,
            tokens=batch.tokens.to(device), present=present,
            targets=batch.targets.to(device), masked=batch.masked.to(device),
        )  # fmt: skip
        step += 1


def hidden_states(
    prior: Prior, powers: Powers | None, tokens: Tensor, present: Tensor | None
) -> tuple[exact.Network | None, Tensor]:
    """The integer form, if given ``powers``, and the hidden states [B, 256, dims] of windows."""
    if powers is None:
        return None, prior.hidden(tokens, present)
    net = quantise(prior, powers)
    return net, exact.hidden(net, tokens, present)


def group_octaves(
    prior: Prior, net: exact.Network | None, group: int, rows: Tensor, codes: Tensor
) -> Tensor:
    """What one group's heads say, [n, group, K] log2 probabilities up to a constant.

    Args:
        net: the integer form, which is asked if it is given, through the gradient of its floats.
        rows: hidden states [n, dims].
        codes: int64 [n, group], of which the chain sees the earlier ones.
    """
    config = prior.config
    span, octaves = slice(group * config.group, (group + 1) * config.group), []
    for head, part in config.parts(span):
        before = codes[:, : part.start - span.start]
        if net is None:
            octaves.append(prior.logits(rows, head, before))
        else:
            octaves.append(exact.logits(net, rows, head, before) * OCTAVES_PER_LOGIT)
    return torch.cat(octaves, 1)


class PriorState(State):
    """The state of a run of stage 2, on whatever windows; ``powers`` in its integer phase."""

    model: Prior
    average: Prior

    def __init__(self, recipe: Any, device: torch.device) -> None:
        super().__init__(device)
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.model = Prior(recipe.model).to(device)
        self.average = copy.deepcopy(self.model)
        named = list(self.model.named_parameters())
        rest = [p for name, p in named if name != "chain"]
        self.optimizer = adamw(
            [{"params": [p for p in rest if p.ndim == 2], "share": 1.0,
              "weight_decay": recipe.weight_decay},
             {"params": [p for p in rest if p.ndim != 2], "share": 1.0},
             {"params": [p for name, p in named if name == "chain"], "share": CHAIN_RATE}],
            device, betas=(0.9, 0.98),
        )  # fmt: skip
        self.powers: Powers | None = None

    def state(self) -> dict[str, Any]:
        """Everything, to be saved."""
        powers = None if self.powers is None else dataclasses.asdict(self.powers)
        return super().state() | {"powers": powers}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        super().restore(state)
        self.powers = None if state["powers"] is None else Powers(**state["powers"])

    def learning_rate(self) -> float:
        """Warm-up, cosine to 2 % of the peak over the float phase; then constant, falling to 0."""
        recipe, used = self.recipe, self.used
        if used < recipe.warmup:
            return recipe.peak_lr * max(used / recipe.warmup, 0.01)
        if self.powers is not None:
            left = max(0.0, 1 - used) / max(recipe.integer_share, 1e-9)
            return recipe.peak_lr * recipe.integer_lr * min(1.0, left)
        done = (used - recipe.warmup) / (1 - recipe.integer_share - recipe.warmup)
        return recipe.peak_lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def is_due_for_integers(self) -> bool:
        """Whether the rest of the budget is that of the integer phase, which has not begun."""
        return self.powers is None and self.used >= 1 - self.recipe.integer_share

    @torch.no_grad()
    def calibrated(self, windows: Iterable[tuple[Tensor, Tensor | None]]) -> Powers:
        """Powers of the averaged weights as they are now, by tokens and what is present."""
        return calibrate(self.average, list(windows))

    def start_integers(self, windows: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Go on from the averaged weights, through the integers."""
        self.model.load_state_dict(self.average.state_dict())
        self.powers = self.calibrated(windows)


def loss_bits(prior: Prior, powers: Powers | None, batch: Batch) -> Tensor:
    """Mean code length of the masked cells in bits; through the integers if given ``powers``."""
    config = prior.config
    net, hidden = hidden_states(prior, powers, batch.tokens, batch.present)
    total = hidden.new_zeros(())
    for group in range(config.groups):
        span = slice(group * config.group, (group + 1) * config.group)
        mine = torch.tensor([g == group for g in batch.groups], device=hidden.device)
        masked = batch.masked[mine][..., span].flatten(0, 2)  # [n, group]
        rows = masked.any(-1)
        chosen = hidden[mine].flatten(0, 1)[rows]
        codes = batch.targets[mine][..., span].flatten(0, 2)[rows]
        octaves = group_octaves(prior, net, group, chosen, codes).flatten(0, 1)
        nats = F.cross_entropy(octaves * math.log(2), codes.flatten(), reduction="none")
        total = total + nats[masked[rows].flatten()].sum()
    return total / batch.masked.sum().clamp_min(1) / math.log(2)


class Trainer(PriorState):
    """A run on grids of codes of an archive."""

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One update."""
        lr = self.learning_rate()
        self.set_rates(lr)
        loss = loss_bits(self.model, self.powers, batch)
        norm = self.descend(loss)
        towards(self.average.parameters(), self.model.parameters(), self.rate)
        self.step += 1
        return {"bits": float(loss.detach()), "norm": float(norm), "lr": lr}

    def some_windows(
        self, images: Sequence[Codes], count: int = CALIBRATED
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Batches of windows to calibrate with, always the same."""
        stream = batches(images, self.recipe, 10**9, self.device)
        return [(batch.tokens, batch.present) for batch in itertools.islice(stream, count)]


def validate(trainer: Trainer, held_out: Sequence[Codes]) -> dict[str, float]:
    """Bits per code of held-out images with the real stages, through the exact frequencies."""
    powers = trainer.powers or trainer.calibrated(trainer.some_windows(held_out, 4))
    checkpoint = export(trainer.average, copy.deepcopy(powers))
    model = load.load(checkpoint, trainer.device)
    bits = payloads.bits_per_code(model, held_out, trainer.recipe.plan)
    return {"bits_per_code": sum(bits) / len(bits), **{f"group_{g}": b for g, b in enumerate(bits)}}
