"""What a run of training holds, and how it is kept: weights, their moving average, an optimiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class State:
    """One run, between two steps: what a checkpoint holds.

    ``seconds`` of the budget are used after ``step`` steps.  A subclass has ``recipe``, a dataclass
    with ``minutes`` (the budget) and ``weight_average`` (the decay of the average).
    """

    recipe: Any
    device: torch.device
    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.step, self.seconds = 0, 0.0
        self.rate = torch.tensor(0.5, device=device)  # of the average of the weights, for a graph

    @property
    def used(self) -> float:
        """Share of the budget that is used."""
        return self.seconds / (60 * self.recipe.minutes)

    @property
    def average_rate(self) -> float:
        """How far the average of the weights goes towards them; the first steps are forgotten."""
        return 1 - min(self.recipe.weight_average, (1 + self.step) / (10 + self.step))

    def set_rates(self, rate: float) -> None:
        """A learning rate for the next step, of which each group of the optimiser has its share,
        and the rate of the average."""
        self.rate.fill_(self.average_rate)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate * group["share"])

    def descend(self, loss: Tensor) -> Tensor:
        """One step of the optimiser down a loss; the norm of the gradient, before it is clipped."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return norm

    def state(self) -> dict[str, Any]:
        """Everything, to be saved."""
        return {
            "recipe": dataclasses.asdict(self.recipe), "step": self.step, "seconds": self.seconds,
            "model": self.model.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        shares = [group["share"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, share in zip(self.optimizer.param_groups, shares, strict=True):
            # Runs of older versions have the share under other names, and the rate as a number.
            group["share"] = share
            group["lr"] = torch.as_tensor(group["lr"], device=self.device)
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self, path: Path) -> None:
        """Write the state; the old file stays until the new one is complete."""
        temporary = path.with_suffix(".tmp")
        torch.save(self.state(), temporary)
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Go on from what :meth:`save` wrote."""
        self.restore(torch.load(path, map_location=self.device, weights_only=True))


def adamw(
    groups: list[dict[str, Any]], device: torch.device, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW over groups that have ``share``, of the learning rate: tensors, for a CUDA graph."""
    for group in groups:
        group.setdefault("weight_decay", 0.0)
        group["lr"] = torch.tensor(0.0, device=device)
    return torch.optim.AdamW(groups, betas=betas, fused=True, capturable=device.type == "cuda")


@torch.no_grad()
def towards(targets: Iterable[Tensor], values: Iterable[Tensor], rate: Tensor) -> None:
    """Move each target towards its value by a rate, a tensor of one element on their device."""
    mine, theirs = list(targets), list(values)
    torch._foreach_lerp_(mine, theirs, [rate.to(t.dtype) for t in mine])
