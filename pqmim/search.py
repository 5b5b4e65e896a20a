"""Rate-distortion optimised codes: the encoder's choice, which leaves the format alone.

    for each stage: mask what is not chosen yet --model--> frequencies
        --> code of least (squared error / price + bits) --> known to the next stage

The frequencies of a stage follow from the stages before it, so the encoder knows what each codeword
will cost when it chooses: entropy-constrained quantisation (Chou, Lookabaugh and Gray 1989) with
the conditional lengths of the masked model instead of fixed ones, greedy over the stages.  The
coder needs these frequencies anyway, so the search costs the distances alone; but its stages run
one after the other, as in the decoder.

A high price makes the frequent codewords win everywhere, and what all of them lack adds up to a
shift of colour: 4 to 10 levels of a channel at 0.05 bpp (benchmarks.artefacts).  So what the price
has moved in the stages of a group before is taken off the target of the next one (``FEEDBACK``), at
no loss of quality for the rate; a group that is sent in one stage has none.

The price is lambda: squared error, in units of (level / 127.5) ** 2 summed over the pixels of one
image, that one bit is worth.  The error is what the linear decoder makes of the latent's; the trunk
is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqmim import code_stream, entropy, schedule
from pqmim.grid import Grid, Shape
from pqmim.integer import Model

# Where the shipped model's quality and size both still rise: about 0.25 bpp on photographs.
DEFAULT_PRICE = 0.06
FEEDBACK = 1.5  # of the drift so far is asked of the positions to come; some will not follow


@dataclass(frozen=True)
class Target:
    """What the codes of one image should say."""

    vectors: Tensor  # [W, 16, 16, m, d], the latent in windows
    codebook: Tensor  # [m, K, d]
    gain: Tensor  # [m], squared error of the pixels for one of the latent

    @classmethod
    def of(cls, vectors: Tensor, codebook: Tensor, gain: Tensor) -> Target:
        """From the latent of one image, [h, w, m, d]."""
        height, width, subcodes, dims = vectors.shape
        windows = schedule.to_windows(vectors.reshape(height, width, -1).cpu().numpy(), 0)
        shape = (-1, schedule.WINDOW, schedule.WINDOW, subcodes, dims)
        return cls(torch.from_numpy(windows).reshape(shape).to(codebook.device), codebook, gain)

    def errors(self, latents: Tensor, span: slice) -> Tensor:
        """Squared errors [g, n, K], less a constant, of the codewords for latents [g, n, d]."""
        book = self.codebook[span]
        return torch.baddbmm(
            book.square().sum(-1).unsqueeze(1), latents, book.transpose(1, 2), alpha=-2.0
        )


class Search:
    """One image on its way through the stages."""

    def __init__(self, grid: Grid, target: Target, price: float) -> None:
        self.grid, self.target, self.price = grid, target, price
        self.starts, self.lengths = (np.zeros(grid.codes.shape, np.int64) for _ in range(2))
        # By how much the price has moved the codewords from the nearest ones, summed, [m, d].
        self.drift = torch.zeros_like(target.codebook[: grid.codes.shape[-1], 0])
        self.shift = self.drift

    def begin(self, stage: int) -> None:
        """Set what this stage makes up for; once, however its windows are batched."""
        first = self.grid.stages[..., self.grid.span(self.grid.groups[stage]).start]
        self.shift = self.drift * (FEEDBACK / max(1, int((first >= stage).sum())))

    def take(self, model: Model, window: int, stage: int, span: slice, weights: Tensor) -> None:
        """Choose codes of one window, of the sub-codes ``span`` with weights [n, sub-codes, K]."""
        target, grid = self.target, self.grid
        cells = torch.from_numpy(grid.cells(window, stage)).to(weights.device)
        latents = target.vectors[window, ..., span, :][cells].transpose(0, 1)  # [g, n, d]
        error = target.errors(latents - self.shift[span, None], span)
        goes_on = grid.groups[stage] in grid.groups[stage + 1 :]  # else nobody asks for the drift
        nearest = target.errors(latents, span).argmin(-1) if goes_on else None  # [g, n]
        codes = model.cheapest(error, target.gain[span] / self.price, weights)
        pair = model.intervals(weights.flatten(0, 1), codes.reshape(-1))
        at = cells.cpu().numpy()
        grid.codes[window, ..., span][at] = codes.cpu().numpy()
        for whole, own in zip((self.starts, self.lengths), pair, strict=True):
            whole[window, ..., span][at] = own.reshape(codes.shape).cpu().numpy()
        if nearest is not None:
            rows = torch.arange(span.start, span.stop, device=codes.device)[:, None]
            moved = target.codebook[rows, codes.T] - target.codebook[rows, nearest]
            self.drift[span] += moved.sum(1)

    def payload(self) -> bytes:
        """All that was chosen."""
        return entropy.encode_intervals(*map(self.grid.in_order, (self.starts, self.lengths)))


def search_images(
    model: Model, targets: Sequence[Target], shapes: Sequence[Shape],
    plan: Sequence[int], price: float,
) -> tuple[list[NDArray[np.uint8]], list[bytes]]:  # fmt: skip
    """Choose and encode: codes uint8 [h, w, m] and payload of each image.

    Args:
        model: the entropy model.
        targets: one an image.
        shapes: (h, w, m) of each.
        plan: the stage schedule.
        price: lambda, above 0; see the module.

    Raises:
        ValueError: a price that is not above 0; see also ``Grid.of``.
    """
    if not price > 0:
        raise ValueError(f"price {price}: must be above 0")
    grids = [Grid.of(np.zeros(shape, np.uint8), plan, model.config) for shape in shapes]
    found = {id(g): Search(g, t, price) for g, t in zip(grids, targets, strict=True)}
    for stage in range(max((len(grid.groups) for grid in grids), default=0)):
        for grid in grids:
            if stage < len(grid.groups):
                found[id(grid)].begin(stage)
        for jobs in code_stream.chunks(grids, [stage], code_stream.windows_at_once(model)):
            known = list(zip(jobs, code_stream.predict(model, jobs), strict=True))
            for (grid, window, _), subcodes, weights in code_stream.turns(model, known):
                found[id(grid)].take(model, window, stage, subcodes, weights)
    codes = [
        schedule.from_windows(grid.codes, height, width)
        for grid, (height, width, _) in zip(grids, shapes, strict=True)
    ]
    return codes, [found[id(grid)].payload() for grid in grids]
