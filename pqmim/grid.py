"""One image's codes in windows of 16 x 16 positions, and the order in which they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pqmim import schedule
from pqmim.prior_config import PriorConfig
from pqmim.schedule import WINDOW

NEVER = -1  # stage of what lies outside the image

Shape = tuple[int, int, int]  # h, w, m


@dataclass
class Grid:
    """One image's codes in windows, and when each is sent."""

    codes: NDArray[np.uint8]  # [W, 16, 16, m]
    stages: NDArray[np.int16]  # [W, 16, 16, m], NEVER outside the image
    groups: list[int]  # of each stage that is sent
    config: PriorConfig

    @classmethod
    def of(
        cls,
        codes: NDArray[np.uint8],
        plan: Sequence[int],
        config: PriorConfig,
        sent: int | None = None,
    ) -> Grid:
        """Cut a grid [h, w, m] into windows; only the first ``sent`` stages are sent (None: all).

        Raises:
            ValueError: not uint8, no position, more sub-codes than the model, or no such codeword.
            ScheduleError: the plan does not cover m sub-codes, or has fewer stages.
        """
        if codes.dtype != np.uint8 or codes.ndim != 3 or 0 in codes.shape:
            raise ValueError(f"codes must be uint8 [h, w, m], not {codes.dtype} {codes.shape}")
        height, width, subcodes = codes.shape
        if subcodes > config.subcodes:
            raise ValueError(f"{subcodes} sub-codes, but the entropy model has {config.subcodes}")
        if codes.max() >= config.codewords:
            raise ValueError(f"code {codes.max()} is not below {config.codewords}")
        stages = schedule.stage_map(height, width, subcodes, plan, config.group)
        groups = schedule.stage_groups(subcodes, plan, config.group)
        if sent is not None and not 1 <= sent <= len(groups):
            raise schedule.ScheduleError(f"{sent} stages sent of a plan that has {len(groups)}")
        return cls(
            schedule.to_windows(codes, 0),
            schedule.to_windows(stages, NEVER),
            groups[:sent],
            config,
        )

    def windows_of(self, stage: int) -> NDArray[np.int64]:
        """Windows in which this stage sends something (small ones may skip stages)."""
        return np.flatnonzero((self.stages == stage).any(axis=(1, 2, 3)))

    def tokens(self, window: int, stage: int) -> NDArray[np.int64]:
        """What the model may see before this stage, [16, 16, M]."""
        tokens = np.full((WINDOW, WINDOW, self.config.subcodes), self.config.mask, dtype=np.int64)
        stages = self.stages[window]
        known = (stages < stage) & (stages != NEVER)
        tokens[..., : stages.shape[-1]][known] = self.codes[window][known]
        return tokens

    def cells(self, window: int, stage: int) -> NDArray[np.bool_]:
        """Positions that this stage sends, [16, 16]; every sub-code of its group at once."""
        return self.stages[window, ..., self.span(self.groups[stage]).start] == stage

    def span(self, group: int) -> slice:
        """Sub-codes of this image that belong to the group."""
        first = group * self.config.group
        return slice(first, min(first + self.config.group, self.codes.shape[-1]))

    def in_order(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of values [W, 16, 16, m] those that are sent, in the order of the symbols."""
        return np.concatenate(
            [
                values[..., subcodes][self.stages[..., subcodes] == stage]
                for stage, group in enumerate(self.groups)
                for _, subcodes in self.config.parts(self.span(group))
            ]
        )
