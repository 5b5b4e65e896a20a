"""Which codes of a window are known to the entropy model, and which it is asked for.

Each sample works on one group of sub-codes, as the decoder does: coarser groups are known, finer
ones masked, and of its own group a share of the positions is known.  Half of the samples take that
share uniformly at random and its positions at random, the other half take a stage of the plan.  The
groups of a batch are always the same, in order, so that all tensors have the same shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pqmim.coding import schedule
from pqmim.prior.config import WINDOW, PriorConfig

PARTIAL = 0.1  # of the samples are windows that stick out of the image
COARSE = 0.2  # of the samples stop within their group, as a quality between two groups does
PLANNED = 0.5  # of the samples take a stage of the plan
NUMBERS = 6  # random ones a sample, beside one a position


def shares(config: PriorConfig, batch: int) -> list[int]:
    """The group of each sample of a batch, in order.

    The first groups cost most of the bits and take longest to learn.

    Raises:
        ValueError: a batch of fewer samples than there are groups.
    """
    if batch < config.groups:
        raise ValueError(f"a batch of {batch} windows has no room for {config.groups} groups")
    weights = [1 / (group + 2) for group in range(config.groups)]
    counts, left = [1] * config.groups, batch - config.groups
    for _ in range(left):  # to the one that is furthest below its share
        lacking = [w / sum(weights) * batch - c for w, c in zip(weights, counts, strict=True)]
        counts[lacking.index(max(lacking))] += 1
    return [group for group, count in enumerate(counts) for _ in range(count)]


@dataclass(frozen=True)
class Masked:
    """Windows with what is hidden in them, in the order of their groups."""

    tokens: Tensor  # int64 [B, 16, 16, M], codes or the mask
    present: Tensor  # bool [B, 16, 16]
    codes: Tensor  # int64 [B, 16, 16, group], of the own group
    asked: Tensor  # bool [B, 16, 16, group], the cells of the loss


class Masks:
    """Masks of batches of one shape, by random numbers alone."""

    def __init__(
        self, config: PriorConfig, batch: int, plan: Sequence[int], device: torch.device
    ) -> None:
        self.config, self.groups = config, shares(config, batch)
        filled = schedule.filled(plan, config.subcodes, config.group)
        stages = [torch.from_numpy(schedule.position_stages(filled[g])) for g in self.groups]
        counts = [schedule.spatial_stages(filled[g]) for g in self.groups]
        self.stages = torch.stack(stages).to(device)  # [B, 16, 16]
        self.counts = torch.tensor(counts, device=device)
        self.group = torch.tensor(self.groups, device=device)

    def of(self, codes: Tensor, numbers: Tensor, places: Tensor) -> Masked:
        """Mask windows of codes [B, 16, 16, M].

        Args:
            codes: integers.
            numbers: [B, 6] in 0..1.
            places: [B, 16, 16] in 0..1.
        """
        config, line = self.config, torch.arange(WINDOW, device=codes.device)
        sizes = 1 + (numbers[:, :2] * WINDOW).long().clamp_max(WINDOW - 1)
        whole = torch.where(numbers[:, 2:3] < PARTIAL, sizes, WINDOW)
        present = (line[:, None] < whole[:, :1, None]) & (line < whole[:, 1:, None])
        stage = (numbers[:, 3] * self.counts).long()[:, None, None]
        share = numbers[:, 3][:, None, None]
        planned = (numbers[:, 4] < PLANNED)[:, None, None]
        known = torch.where(planned, self.stages < stage, places < share)
        coarse = numbers[:, 5] < COARSE
        stop = 1 + (numbers[:, 5] / COARSE * (config.group - 1)).long()
        kept = torch.where(coarse, stop.clamp_max(config.group), config.group)  # of the own group
        subcode = torch.arange(config.subcodes, device=codes.device)
        first = (self.group * config.group)[:, None]
        before = (subcode < first)[:, None, None]
        own = ((subcode >= first) & (subcode < first + kept[:, None]))[:, None, None]
        seen = (before | own & known[..., None]) & present[..., None]
        values = codes.long()
        tokens = torch.where(seen, values, config.mask)
        span = first + torch.arange(config.group, device=codes.device)  # [B, group]
        index = span[:, None, None].expand(-1, WINDOW, WINDOW, -1)
        asked = ~seen.gather(3, index) & present[..., None]
        return Masked(tokens, present, values.gather(3, index), asked)
