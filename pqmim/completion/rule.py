"""How codes are drawn that were not sent; the drawing itself is ``pqmim.completion.draw``."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pqmim.prior.config import WINDOW

TEMPERATURE_ONE = 256  # temperatures are integers in units of 1/256
MAX_TEMPERATURE = 16
MAX_STEPS = WINDOW * WINDOW


class CompletionError(ValueError):
    """A request that no completion can meet."""


@dataclass(frozen=True)
class Rule:
    """How missing codes are drawn; temperature 0 takes the most probable one."""

    steps: int = 8
    temperature: float = 1.0
    seed: int | Sequence[int] = 0  # one, or one an image; of any integer type

    def __post_init__(self) -> None:
        """Raises CompletionError for values out of range, or no integers."""
        given: Any = self.seed
        several = isinstance(given, list | tuple) or getattr(given, "ndim", 0) > 0
        seeds = tuple(_integer(seed, "a seed") for seed in (given if several else (given,)))
        object.__setattr__(self, "steps", _integer(self.steps, "steps"))
        object.__setattr__(self, "seed", seeds if several else seeds[0])
        if not 1 <= self.steps <= MAX_STEPS:
            raise CompletionError(f"{self.steps} steps are not in 1..{MAX_STEPS}")
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise CompletionError(f"temperature {self.temperature} is not in 0..{MAX_TEMPERATURE}")
        for seed in seeds:
            if not 0 <= seed < 2**64:
                raise CompletionError(f"seed {seed} is not in 0..2**64 - 1")

    @property
    def divisor(self) -> int:
        """The temperature in units of 1/256."""
        return round(self.temperature * TEMPERATURE_ONE)

    def seeds(self, images: int) -> Sequence[int]:
        """One seed an image; CompletionError if there is another number of them."""
        if isinstance(self.seed, int):
            return [self.seed] * images
        if len(self.seed) != images:
            raise CompletionError(f"{len(self.seed)} seeds for {images} images")
        return self.seed


def _integer(value: object, what: str) -> int:
    """A Python integer of one of any library."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        kind = type(value).__name__
        raise CompletionError(f"{what} must be an integer, not {value!r} ({kind})") from error
