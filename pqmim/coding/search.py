"""Rate-distortion optimised codes: the encoder's choice, which leaves the format alone.

    for each stage: mask what is not chosen yet --model--> frequencies
        --> code of least (squared error / price + bits) --> known to the next stage

The frequencies of a stage follow from the stages before it, so the encoder knows what each codeword
will cost when it chooses: entropy-constrained quantisation (Chou, Lookabaugh and Gray 1989) with
the conditional lengths of the masked model instead of fixed ones, greedy over the stages.  The
coder needs these frequencies anyway, so the search costs the distances alone; but its stages run
one after the other, as in the decoder.  Where sub-codes come in layers, the codes of one layer are
taken off the latent, and what is left is what the next layer should say.

Lengths that follow from what the search itself has chosen make it believe itself: a code that was
dear in the picture so far is dearer still in what follows from it.  So where the weights hold
static code lengths, the length of a codeword is a mean of both (``TRUST`` of the model's own),
which the files pay for and the pictures gain more by (docs/log.md).

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

from pqmim.autoencoder.quantizer import ProductQuantizer
from pqmim.coding import payloads, range_coder, schedule
from pqmim.coding.windows import Batch, Grid, Shape
from pqmim.prior.engine import Model

MAX_SCALE = 2.0**40  # bits a unit of error: beyond it the bits are below float32's last digit
FEEDBACK = 1.5  # of the drift so far is asked of the positions to come; some will not follow
TRUST = 0.7  # in the model's lengths, beside static ones


@dataclass(frozen=True)
class Target:
    """What the codes of one image should say."""

    rows: Tensor  # [W * 256, C], the latent in windows
    quantizer: ProductQuantizer

    @classmethod
    def of(cls, latent: Tensor, quantizer: ProductQuantizer) -> Target:
        """From the latent of one image, [h, w, C]."""
        windows = torch.from_numpy(schedule.to_windows(latent.cpu().numpy(), 0))
        return cls(windows.flatten(0, 2).to(quantizer.codebook.device), quantizer)

    def left(self, codes: Tensor) -> Tensor:
        """Rows less what the codes [W * 256, m] of the layers before say."""
        return self.rows - self.quantizer.assemble(self.quantizer.codewords_of(codes))


class Search:
    """One image on its way through the stages."""

    def __init__(self, grid: Grid, target: Target) -> None:
        self.grid, self.target = grid, target
        self.layer = target.quantizer.config.spans[0]
        self.vectors = self._vectors(target.rows)  # [sub-codes of the layer, W * 256, d]
        # By how much the price has moved the codewords from the nearest ones, summed, [m, d].
        self.drift = torch.zeros_like(target.quantizer.codebook[: grid.codes.shape[-1], 0])
        self.shift = self.drift

    def begin(self, stage: int) -> None:
        """Set what a stage makes up for, and its layer; once, however its windows are batched."""
        span = self.grid.span(self.grid.groups[stage])
        if span.start >= self.layer.stop:
            self.layer = next(s for s in self.target.quantizer.config.spans if s.stop > span.start)
            codes = self.grid.codes.reshape(-1, self.grid.codes.shape[-1])[:, : self.layer.start]
            left = self.target.left(torch.from_numpy(codes).to(self.drift.device))
            self.vectors = self._vectors(left)
        first = self.grid.stages[..., span.start]
        self.shift = self.drift * (FEEDBACK / max(1, int((first >= stage).sum())))

    def _vectors(self, rows: Tensor) -> Tensor:
        last = min(self.layer.stop, self.grid.codes.shape[-1])
        parts = self.target.quantizer.rows(rows)[:, self.layer.start : last]
        return parts.transpose(0, 1).contiguous()

    def errors(self, at: NDArray[np.int64], span: slice) -> Tensor:
        """Squared errors [g, n, K], less a constant, of the codewords at places [n]."""
        book = self.target.quantizer.codebook[span]
        own = slice(span.start - self.layer.start, span.stop - self.layer.start)
        latents = self.vectors[own].index_select(1, torch.from_numpy(at).to(book.device))
        return torch.baddbmm(
            book.square().sum(-1).unsqueeze(1), latents, book.transpose(1, 2), alpha=-2.0
        )

    def shifted(self, errors: Tensor, span: slice) -> Tensor:
        """The same with the shift taken off the latents."""
        along = self.target.quantizer.codebook[span] @ self.shift[span].unsqueeze(-1)  # [g, K, 1]
        return torch.add(errors, along.transpose(1, 2), alpha=2.0)

    def note(self, errors: Tensor, codes: Tensor, span: slice) -> None:
        """Note where codes [g, n] are not the nearest ones, of errors [g, n, K]."""
        rows = torch.arange(span.start, span.stop, device=codes.device)[:, None]
        book = self.target.quantizer.codebook
        self.drift[span] += (book[rows, codes] - book[rows, errors.argmin(-1)]).sum(1)


@dataclass(frozen=True)
class Choice:
    """Of the codes of many images at a price."""

    model: Model
    searches: dict[int, Search]  # by the id of the grid
    price: float
    static: Tensor | None  # [M, K], code lengths in bits

    def take(self, batch: Batch, subcodes: slice, weights: Tensor, *, goes_on: bool) -> None:
        """Choose codes with weights [n, sub-codes, K]; ``goes_on``: the group has more stages."""
        found = [self.searches[id(grid)] for grid, _ in batch.places]
        errors = [s.errors(at, subcodes) for s, (_, at) in zip(found, batch.places, strict=True)]
        asked = torch.cat([s.shifted(e, subcodes) for s, e in zip(found, errors, strict=True)], 1)
        scale = (found[0].target.quantizer.gain[subcodes] / self.price).clamp_max(MAX_SCALE)
        if self.static is not None:
            paid = (1 - TRUST) * self.static[subcodes] / scale[:, None]  # [g, K]
            asked = (asked + paid.unsqueeze(1)) / TRUST
        codes = self.model.cheapest(asked, scale, weights)
        batch.put("codes", subcodes, codes.cpu().numpy())
        payloads.put_intervals(self.model, batch, subcodes, weights)
        if goes_on:
            counts = [len(at) for _, at in batch.places]
            for search, error, own in zip(found, errors, codes.T.split(counts, 1), strict=True):
                search.note(error, own, subcodes)


def choose(
    model: Model, targets: Sequence[Target], shapes: Sequence[Shape],
    plan: Sequence[int], price: float,
) -> list[Grid]:  # fmt: skip
    """Choose the codes of each image; its grid holds them, with the interval of every one.

    Args:
        model: the entropy model.
        targets: one an image, of one quantizer.
        shapes: (h, w, m) of each.
        plan: the stage schedule.
        price: lambda, above 0; see the module.

    Raises:
        ValueError: a price that is not above 0; see also ``Grid.of``.
    """
    if not price > 0:
        raise ValueError(f"price {price}: must be above 0")
    grids = [Grid.of(np.zeros(shape, np.uint8), plan, model.config) for shape in shapes]
    found = {id(g): Search(g, t) for g, t in zip(grids, targets, strict=True)}
    static = targets[0].quantizer.lengths_at(price) if targets else None
    choice = Choice(model, found, price, static)
    longest = max((grid.groups for grid in grids), key=len, default=[])
    for stage, group in enumerate(longest):
        for grid in grids:
            if stage < len(grid.groups):
                found[id(grid)].begin(stage)
        goes_on = group in longest[stage + 1 :]
        for batch, subcodes, weights in payloads.stage_turns(model, grids, stage):
            choice.take(batch, subcodes, weights, goes_on=goes_on)
    return grids


def search_images(
    model: Model, targets: Sequence[Target], shapes: Sequence[Shape],
    plan: Sequence[int], price: float,
) -> tuple[list[NDArray[np.uint8]], list[bytes]]:  # fmt: skip
    """Choose and encode, as :func:`choose`: codes uint8 [h, w, m] and payload of each image."""
    grids = choose(model, targets, shapes, plan, price)
    codes = [
        schedule.from_windows(grid.codes, height, width)
        for grid, (height, width, _) in zip(grids, shapes, strict=True)
    ]
    return codes, [range_coder.encode_intervals(*grid.intervals()) for grid in grids]
