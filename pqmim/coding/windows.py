"""One image's codes in windows of 16 x 16 positions, and the order in which they are sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqmim.coding import schedule
from pqmim.coding.schedule import Scalar
from pqmim.prior.config import WINDOW, PriorConfig

NEVER = -1  # stage of what lies outside the image

Shape = tuple[int, int, int]  # h, w, m


@dataclass
class Grid:
    """One image's codes in windows, when each is sent, and what it costs."""

    codes: NDArray[np.uint8]  # [W, 16, 16, m]
    stages: NDArray[np.int16]  # [W, 16, 16, m], NEVER outside the image
    groups: list[int]  # of each stage that is sent
    config: PriorConfig
    starts: NDArray[np.int64] = field(init=False)  # [W, 16, 16, m], intervals in 2**24
    lengths: NDArray[np.int64] = field(init=False)  # 0 until they are known

    def __post_init__(self) -> None:
        self.starts, self.lengths = (np.zeros(self.codes.shape, np.int64) for _ in range(2))

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
            ScheduleError: an unknown plan, or one that has fewer stages.
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

    def places(self, window: int, stage: int) -> NDArray[np.int64]:
        """The same positions as rows of codes [W * 256, m]."""
        return window * WINDOW**2 + np.flatnonzero(self.cells(window, stage))

    def span(self, group: int) -> slice:
        """Sub-codes of this image that belong to the group."""
        first = group * self.config.group
        return slice(first, min(first + self.config.group, self.codes.shape[-1]))

    def intervals(self) -> list[NDArray[np.int64]]:
        """Starts and lengths of what is sent, in the order of the symbols."""
        return [
            np.concatenate(
                [
                    values[..., subcodes][self.stages[..., subcodes] == stage]
                    for stage, group in enumerate(self.groups)
                    for _, subcodes in self.config.parts(self.span(group))
                ]
            )
            for values in (self.starts, self.lengths)
        ]


@dataclass
class Batch:
    """Windows of some grids with as many sub-codes, all at one group; runs of one grid's."""

    rows: Tensor  # [n, D], the entropy model's
    places: list[tuple[Grid, NDArray[np.int64]]]  # n in all

    @classmethod
    def of(cls, known: Sequence[tuple[tuple[Grid, int, int], Tensor]]) -> Batch:
        """From (grid, window, stage) and their rows."""
        places: list[tuple[Grid, NDArray[np.int64]]] = []
        for (grid, window, stage), _ in known:
            own = grid.places(window, stage)
            if places and places[-1][0] is grid:
                own = np.concatenate([places.pop()[1], own])
            places.append((grid, own))
        return cls(torch.cat([rows for _, rows in known]), places)

    def codes(self, subcodes: slice) -> Tensor:
        """What the grids hold now, int64 [n, sub-codes]."""
        parts = [g.codes.reshape(-1, g.codes.shape[-1])[at, subcodes] for g, at in self.places]
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(self.rows.device)

    def put(self, name: str, subcodes: slice, values: NDArray[np.integer]) -> None:
        """Write values [n, sub-codes] into that array of the grids."""
        for grid, at, own in self.split(values):
            array = getattr(grid, name)
            array.reshape(-1, array.shape[-1])[at, subcodes] = own

    def split(
        self, values: NDArray[Scalar]
    ) -> Iterator[tuple[Grid, NDArray[np.int64], NDArray[Scalar]]]:
        """Grid, places and values of each run, of values [n, ...]."""
        first = 0
        for grid, at in self.places:
            yield grid, at, values[first : first + len(at)]
            first += len(at)
