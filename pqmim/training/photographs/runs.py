"""A run of either stage: its folder, log, checkpoints and end.

``RUN/checkpoint.pt`` is written every few minutes and goes on where it was written; the batches
that follow are those that the interrupted run would have seen.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from pqmim.autoencoder.network import PQVAE
from pqmim.meter import Meter
from pqmim.prior.config import WINDOW
from pqmim.prior.integers import Checkpoint
from pqmim.training import crops
from pqmim.training.masters import masters
from pqmim.training.photographs.autoencoder import Recipe, Trainer
from pqmim.training.photographs.corpus import Corpus
from pqmim.training.photographs.entropy import PriorRecipe, PriorTrainer
from pqmim.training.photographs.photos import Photos
from pqmim.training.photographs.validate import validate
from pqmim.training.starts import start_from_codebook
from pqmim.training.state import State
from pqmim.training.to_integers import export

CHECKPOINT = "checkpoint.pt"
LOOK_S, CHECK_S, SAVE_S = 5.0, 60.0, 300.0  # between looks at the numbers, validations, savings
HELD_OUT, HELD_OUT_SIZE = 16, 256
CHECKS = 16  # of a run, at most
CHECKED_ROUNDS = 4  # of the held-out windows of stage 2
TYPICAL_PRICE = 0.02  # whose code lengths stage 2 begins with


def note(log: TextIO, **line: object) -> None:
    """A line of a run's log."""
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}
    log.write(json.dumps(rounded) + "\n")
    log.flush()


class Clock:
    """What is due, by the seconds of the budget that are used.

    Steps run ahead of a GPU; the time counts when the numbers are looked at, every ``LOOK_S``.
    """

    def __init__(self, seconds: float) -> None:
        self.begun, self.before = time.perf_counter(), seconds
        self.due = {"look": seconds, "check": seconds, "save": seconds + SAVE_S}
        self.apart = 0.0  # spent on validation, which is not training

    def seconds(self) -> float:
        """Of the budget, so far."""
        return self.before + time.perf_counter() - self.begun - self.apart

    def is_due(self, what: str, every: float) -> bool:
        """Whether it is time; then the next time is set."""
        now = self.seconds()
        if now < self.due[what]:
            return False
        self.due[what] = now + every
        return True

    def aside(self, call: Callable[[], dict[str, float]]) -> dict[str, float]:
        """A call whose time does not count."""
        begun = time.perf_counter()
        value = call()
        self.apart += time.perf_counter() - begun
        return value


def train_autoencoder(
    recipe: Recipe, images: list[Tensor], held_out: list[Tensor], out: Path,
    device: torch.device, other: PQVAE | None = None, meter: Meter | None = None,
) -> PQVAE:  # fmt: skip
    """Run the recipe to the end of its budget and give the averaged model.

    A new run begins with ``other``: with all of it if its shape is the same, else with its trunks.
    """
    out.mkdir(parents=True, exist_ok=True)
    photos = Photos(images, recipe.crop, device)
    checks = crops.center_crops(held_out, HELD_OUT_SIZE, HELD_OUT).to(device)
    trainer, path = Trainer(recipe, device), out / CHECKPOINT
    if path.exists():
        trainer.load(path)
    else:
        trainer.start(photos, other)
    megapixels, first, began = recipe.batch * recipe.crop**2 / 1e6, trainer.step, trainer.seconds

    def told(loss: float, error: float, norm: float) -> tuple[dict[str, float], str]:
        rate = (trainer.step - first) * megapixels / max(trainer.seconds - began, 1e-9)
        line = {"loss": loss, "mse": error, "norm": norm, "megapixels_per_s": rate}
        return line, f"loss {loss:.3f}, {rate:.2f} Mpx/s"

    def check() -> dict[str, float]:
        return validate(trainer.average, checks)

    with open(out / "log.jsonl", "a") as log:
        if trainer.step == 0:
            note(log, recipe=dataclasses.asdict(recipe), images=len(images), device=str(device))
        _loop(trainer, lambda: trainer.train_step(photos), told, check, log, path, meter)
        note(log, step=trainer.step, minutes=trainer.seconds / 60, **check())
        trainer.save(path)
    return trainer.average


def train_prior(
    recipe: PriorRecipe, model: PQVAE, images: list[Tensor], held_out: list[Tensor], out: Path,
    device: torch.device, other: Checkpoint | None = None, meter: Meter | None = None,
) -> Checkpoint:  # fmt: skip
    """Run the recipe to the end of its budget and give the integers.

    A new run begins with ``other``, an entropy model of the same shape, or with what the codebooks
    of ``model`` say.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = model.to(device)
    size = WINDOW * model.config.stride
    corpus = Corpus(model, Photos(images, size, device), recipe.pool, recipe.model, recipe.seed)
    checks = Corpus(model, Photos(held_out, size, device), CHECKED_ROUNDS, recipe.model, 1)
    trainer, path = PriorTrainer(recipe, device), out / CHECKPOINT
    if path.exists():
        trainer.load(path)
    else:
        _start_prior(trainer, model, other)

    def step() -> Tensor:
        if trainer.is_due_for_integers():
            trainer.go_over(corpus)
        return trainer.train_step(corpus)

    def told(bits: float, norm: float) -> tuple[dict[str, float], str]:
        return {"train_bits": bits, "norm": norm}, f"{bits:.3f} bits a code"

    def check() -> dict[str, float]:
        return trainer.validate(checks)

    with open(out / "log.jsonl", "a") as log:
        if trainer.step == 0:
            note(log, recipe=dataclasses.asdict(recipe), images=len(images), device=str(device))
        _loop(trainer, step, told, check, log, path, meter)
        if trainer.powers is None:
            trainer.go_over(corpus)
        note(log, step=trainer.step, minutes=trainer.seconds / 60, **check())
        trainer.save(path)
    assert trainer.powers is not None
    return export(trainer.average, trainer.powers)


@torch.no_grad()
def _start_prior(trainer: PriorTrainer, model: PQVAE, other: Checkpoint | None) -> None:
    if other is not None:
        trainer.model.load_state_dict(masters(other, trainer.device)[0].state_dict())
    else:
        lengths = model.quantizer.lengths_at(TYPICAL_PRICE)
        assert lengths is not None
        start_from_codebook(trainer.model, model.quantizer.codebook, lengths, trainer.recipe.seed)
    trainer.average.load_state_dict(trainer.model.state_dict())


def _loop(
    trainer: State, step: Callable[[], Tensor],
    told: Callable[..., tuple[dict[str, float], str]], check: Callable[[], dict[str, float]],
    log: TextIO, path: Path, meter: Meter | None,
) -> None:  # fmt: skip
    """Steps until the budget is used; ``told`` makes a line and a few words of their numbers."""
    clock, budget = Clock(trainer.seconds), 60 * trainer.recipe.minutes
    while trainer.seconds < budget:
        report = step()
        trainer.seconds = clock.seconds()
        if not clock.is_due("look", LOOK_S):
            continue
        numbers = report.tolist()  # waits for the device
        trainer.seconds = clock.seconds()
        line, words = told(*numbers)
        line = {"step": trainer.step, "minutes": trainer.seconds / 60, **line}
        if meter is not None:
            meter.show_run(trainer.seconds, trainer.step, words)
        if clock.is_due("check", max(CHECK_S, budget / CHECKS)):
            line |= clock.aside(check)
        note(log, **line)
        if clock.is_due("save", SAVE_S):
            trainer.save(path)
