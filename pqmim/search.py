"""Rate-distortion optimised codes: the encoder's choice, which leaves the format alone.

    for each stage: mask what is not chosen yet --model--> frequencies
        --> code of least (squared error / price + bits) --> known to the next stage

The frequencies of a stage follow from the stages before it, so the encoder knows what each codeword
will cost when it chooses: entropy-constrained quantisation (Chou, Lookabaugh and Gray 1989) with
the conditional lengths of the masked model instead of fixed ones, greedy over the stages.  The
coder needs these frequencies anyway, so the search costs the distances alone; but its stages run
one after the other, as in the decoder.

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
from pqmim.code_stream import Grid
from pqmim.integer import Model

# Where the shipped model's quality and size both still rise: about 0.25 bpp on photographs.
DEFAULT_PRICE = 0.06


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

    def choose(
        self, window: int, cells: Tensor, span: slice, weights: Tensor, price: float
    ) -> Tensor:
        """Codes int64 [n, sub-codes of the span] of the positions ``cells`` [16, 16].

        ``weights`` [n, sub-codes, K] are their frequencies less one.
        """
        latents = self.vectors[window][cells][:, span].transpose(0, 1)  # [g, n, d]
        book = self.codebook[span]
        error = torch.baddbmm(
            book.square().sum(-1).unsqueeze(1), latents, book.transpose(1, 2), alpha=-2.0
        )
        error *= self.gain[span, None, None] / price
        error -= weights.transpose(0, 1).to(error.dtype).add_(1.0).log2_()
        return error.argmin(-1).T


def search_images(
    model: Model, targets: Sequence[Target], shapes: Sequence[code_stream.Shape],
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
    by_grid = {id(grid): i for i, grid in enumerate(grids)}
    starts: list[list[Tensor]] = [[] for _ in grids]
    lengths: list[list[Tensor]] = [[] for _ in grids]
    for stage in range(max((len(grid.groups) for grid in grids), default=0)):
        for jobs in code_stream.chunks(grids, [stage], code_stream.windows_at_once(model)):
            group = jobs[0][0].groups[stage]
            for (grid, window, _), weights in zip(
                jobs, code_stream.predict(model, jobs, group), strict=True
            ):
                i, span = by_grid[id(grid)], grid.span(group)
                mine = weights[:, : span.stop - span.start]
                cells = torch.from_numpy(grid.cells(window, stage)).to(mine.device)
                codes = targets[i].choose(window, cells, span, mine, price)
                pair = entropy.intervals(mine.flatten(0, 1), codes.reshape(-1))
                starts[i].append(pair[0])
                lengths[i].append(pair[1])
                grid.codes[window, ..., span][cells.cpu().numpy()] = codes.cpu().numpy()
    payloads = [
        entropy.encode_intervals(torch.cat(s).cpu().numpy(), torch.cat(n).cpu().numpy())
        for s, n in zip(starts, lengths, strict=True)
    ]
    found = [
        schedule.from_windows(grid.codes, height, width)
        for grid, (height, width, _) in zip(grids, shapes, strict=True)
    ]
    return found, payloads
