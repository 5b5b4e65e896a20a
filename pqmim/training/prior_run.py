"""Stage 2 by one worker or by several that train one model together; see ``pqmim.training.prior``.

Several are the processes of a ``torch.distributed`` group.  Each draws batches of its own; the
gradients, clipped by each worker, are averaged before the optimiser's step, so that all hold the
same weights.  Clock, calibration and log are worker 0's.  Costs an all-reduce of the model a step:
of 5 M parameters 20 MB.

A run may go on from the integers of a finished entropy model (``pqmim.training.masters``).  With
:func:`continued` it trains through the integers from the first step, at the low rate, and begins
exactly where that model is; with another recipe it begins there in floats.  A model without a chain
gets one that says nothing yet.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import torch
from torch import Tensor, distributed

from pqmim.meter import Meter
from pqmim.prior.integers import Checkpoint
from pqmim.training.masters import masters
from pqmim.training.prior import Batch, Codes, PriorRecipe, Trainer, batches, validate
from pqmim.training.starts import start_from_codebook
from pqmim.training.to_integers import export

Value = TypeVar("Value")
CHECKPOINT = "checkpoint.pt"


class RunError(ValueError):
    """A run that cannot be begun or gone on with."""


def workers() -> tuple[int, int]:
    """This worker's number, and how many there are."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def agree(value: Value) -> Value:
    """Worker 0's value, on every worker."""
    if not distributed.is_initialized():
        return value
    box = [value]
    distributed.broadcast_object_list(box, 0)
    return box[0]


def steps_done(out: Path) -> int:
    """Steps of the run in a folder; 0 if there is none."""
    path = out / CHECKPOINT
    return torch.load(path, map_location="cpu", weights_only=True)["step"] if path.exists() else 0


def continued(recipe: PriorRecipe, minutes: float) -> PriorRecipe:
    """The recipe of a run that goes on from integers: the low rate, falling to 0."""
    return dataclasses.replace(recipe, minutes=minutes, warmup=0.0, integer_share=1.0)


def begin(
    recipe: PriorRecipe, out: Path, device: torch.device, codebook: Tensor, lengths: Tensor,
    other: Checkpoint | None,
) -> Trainer:  # fmt: skip
    """A run where its folder stands; a new one begins with ``other``, or with what codebooks
    [M, K, d] and code lengths [M, K] say.

    Raises:
        RunError: the folder holds a run of another recipe, or not every worker sees the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    trainer, path = Trainer(recipe, device), out / CHECKPOINT
    there = path.exists()
    if agree(there) != there:
        raise RunError(f"{path}: not all workers see it: --out must be a folder that nodes share")
    if there:
        _check_recipe(recipe, path)
        trainer.load(path)
    elif other is not None:
        prior, powers = masters(other, device)
        trainer.powers = powers if recipe.integer_share == 1 else None
        state = trainer.model.state_dict() | prior.state_dict()
        trainer.model.load_state_dict(state)
        trainer.average.load_state_dict(state)
    else:
        start_from_codebook(trainer.model, codebook, lengths, recipe.seed)
        trainer.average.load_state_dict(trainer.model.state_dict())
    if distributed.is_initialized():
        for parameter in itertools.chain(trainer.model.parameters(), trainer.average.parameters()):
            distributed.broadcast(parameter.data, 0)
        trainer.optimizer.register_step_pre_hook(_average_gradients)
    return trainer


def _check_recipe(recipe: PriorRecipe, path: Path) -> None:
    """A run may be given more time, and nothing else."""
    there = torch.load(path, map_location="cpu", weights_only=True)["recipe"]
    mine = dataclasses.asdict(recipe)
    apart = [k for k in mine if k != "minutes" and json.dumps(mine[k]) != json.dumps(there.get(k))]
    if apart:
        raise RunError(
            f"{path} is of a run with another {', '.join(apart)}: repeat its options, or choose "
            "another --out"
        )


def _average_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """The mean of all workers' gradients, by one all-reduce."""
    grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(mean.reshape(grad.shape))


def train(
    trainer: Trainer, images: Sequence[Codes], held_out: Sequence[Codes], out: Path,
    *, log_every: int = 50, val_every: int = 500, meter: Meter | None = None,
) -> Checkpoint:  # fmt: skip
    """Run to the end of the time budget, and export the averaged weights.

    Worker 0 appends to ``log.jsonl`` and writes ``checkpoint.pt`` every ``val_every`` steps.
    """
    budget = 60 * trainer.recipe.minutes
    with open(out / "log.jsonl" if workers()[0] == 0 else os.devnull, "a") as log:
        _note(log, trainer, held_out, {})
        stream = _batches(trainer, images)
        while (seconds := agree(trainer.seconds)) < budget:
            trainer.seconds = seconds
            if trainer.is_due_for_integers():
                _start_integers(trainer, images)
            begin = time.perf_counter()
            report = trainer.train_step(next(stream))
            trainer.seconds += time.perf_counter() - begin
            if meter is not None:
                meter.show_run(trainer.seconds, trainer.step, f"{report['bits']:.3f} bits a code")
            if trainer.step % val_every == 0:
                _note(log, trainer, held_out, report)
                _save(trainer, out)
            elif trainer.step % log_every == 0:
                _note(log, trainer, (), report)
        if trainer.powers is None:
            _start_integers(trainer, images)
        _note(log, trainer, held_out, {})
        _save(trainer, out)
    assert trainer.powers is not None
    return export(trainer.average, trainer.powers)


def _batches(trainer: Trainer, images: Sequence[Codes]) -> Iterator[Batch]:
    """This worker's batches, from the trainer's step on."""
    rank, count = workers()
    recipe = dataclasses.replace(trainer.recipe, seed=trainer.recipe.seed * count + rank)
    return batches(images, recipe, trainer.step, trainer.device)


def _start_integers(trainer: Trainer, images: Sequence[Codes]) -> None:
    """Go over to the integers, with worker 0's calibration."""
    trainer.start_integers(trainer.some_windows(images))
    trainer.powers = agree(trainer.powers)


def _save(trainer: Trainer, out: Path) -> None:
    if workers()[0] == 0:
        trainer.save(out / CHECKPOINT)


def _note(
    log: TextIO, trainer: Trainer, held_out: Sequence[Codes], report: dict[str, float]
) -> None:
    """A line of the log, by worker 0; with held-out images their bits per code."""
    if workers()[0] != 0:
        return
    line = {"step": trainer.step, "minutes": trainer.seconds / 60, **report}
    if held_out:
        line |= validate(trainer, held_out)
    log.write(json.dumps({k: round(float(v), 5) for k, v in line.items()}) + "\n")
    log.flush()
