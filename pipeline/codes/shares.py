"""Who gets which rows of an epoch: ranks by rows, the workers of a rank by whole batches.

    rows of the epoch's order --N * rank / world--> rank --multiples of the batch size--> worker

Ranks differ by one row at most: row groups are cut where a share ends, and both sides read them.
With one grid the number of batches follows from the number of rows, whatever the workers.  With
several grids a batch takes rows of one alone, so the number depends on which rows meet: it is
counted out of the grids of all row groups, which are read once, and only if ``drop_last`` or
``even_batches`` asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.archive.manifest import Manifest
from pipeline.codes import order
from pipeline.codes.counts import RowCounts
from pipeline.codes.errors import TooFewImages


@dataclass(frozen=True)
class Share:
    """What a worker hands out in an epoch."""

    pieces: np.ndarray  # [pieces, 3] row group, first row, end
    sizes: np.ndarray  # [pieces] bytes, about
    limit: int | None  # batches; None: all
    busy: tuple[int, ...]  # workers of the rank that have any batch


@dataclass(frozen=True)
class Dealer:
    """Deals the rows of an archive to the workers of one rank."""

    manifest: Manifest
    counts: RowCounts
    seed: int
    rank: int
    world_size: int
    batch_size: int
    buffer_bytes: int
    drop_last: bool
    even_batches: bool
    grid_known: bool  # all rows have the grid that the caller named

    def check(self) -> None:
        """Refuse a world that is larger than the data; with filters this counts the rows.

        Raises:
            TooFewImages: some rank would have no image, or with ``drop_last`` no batch.
        """
        rows, whole = self._total(), self.batch_size if self.drop_last else 1
        if self.world_size == 1 and (rows == 0 or not self.drop_last):
            return
        if rows // self.world_size < whole:
            what = f"a batch of {whole}" if self.drop_last else "an image"
            raise TooFewImages(
                f"{rows} images for {self.world_size} ranks: some would not have {what}: take "
                "fewer ranks" + (", or a smaller batch" if self.drop_last else "")
            )

    def batches(self) -> int:
        """Of this rank in an epoch.

        Raises:
            TypeError: the images have several grids.
        """
        if not self._one_grid():
            raise TypeError(
                "the images have several grids, and how many batches they make depends on the "
                "workers: choose one with where=[('grid_h', '=', H), ('grid_w', '=', W)]"
            )
        return -(-self._rank_rows(self.rank)[1] // self.batch_size)

    def share(self, epoch: int, worker: int, workers: int) -> Share:
        """What a worker of this rank gets.

        Raises:
            BadTable: a table is damaged, or is not the one of the manifest.
        """
        groups = order.epoch_order(self.manifest.group_table, self.seed, epoch)
        if (self.drop_last or self.even_batches) and not self._one_grid():
            return self._counted(groups, worker, workers)
        busy = tuple(range(workers))
        if self._alone(workers):
            pieces = self._pieces(groups, 0, order.END)
        else:
            first, rows = self._rank_rows(self.rank)
            busy = busy[: -(-rows // self.batch_size)]
            low, high = self._worker_rows(rows, worker, workers)
            pieces = self._pieces(groups, first + low, first + high)
        return Share(pieces, self._sizes(pieces), None, busy)

    def _counted(self, groups: tuple[np.ndarray, np.ndarray], worker: int, workers: int) -> Share:
        """With several grids: every worker's batches are counted, of this rank or of all."""
        ranks = range(self.world_size) if self.even_batches else [self.rank]
        counts = np.zeros((self.world_size, workers), np.int64)
        for rank in ranks:
            for one in range(workers):
                counts[rank, one] = self._count(self._part(groups, rank, one, workers))
        mine = counts[self.rank]
        if self.even_batches:  # what is too many is left out at the end of the last workers
            ends = np.minimum(np.cumsum(mine), counts.sum(1).min())
            mine = np.diff(ends, prepend=0)
        pieces = self._part(groups, self.rank, worker, workers)
        busy = tuple(int(w) for w in np.flatnonzero(mine))
        return Share(pieces, self._sizes(pieces), int(mine[worker]), busy)

    def _count(self, pieces: np.ndarray) -> int:
        grids = self.counts.grids()
        plan = self.manifest.plan
        return order.count_batches(
            [grids[group][first:end] for group, first, end in pieces.tolist()],
            self._sizes(pieces),
            plan.quality * (1 if plan.codewords <= 256 else 2),
            self.batch_size, self.buffer_bytes, self.drop_last,
        )  # fmt: skip

    def _part(
        self, groups: tuple[np.ndarray, np.ndarray], rank: int, worker: int, workers: int
    ) -> np.ndarray:
        first, end = self._range(rank)
        low, high = self._worker_rows(end - first, worker, workers)
        return self._pieces(groups, first + low, first + high)

    def _pieces(self, groups: tuple[np.ndarray, np.ndarray], first: int, end: int) -> np.ndarray:
        """Rows ``first`` to ``end`` of an epoch; all of them without asking for counts."""
        ordered, spans = groups
        span_of_table = np.zeros(len(self.manifest.names), np.int64)
        span_of_table[self.manifest.group_table[ordered]] = spans
        rows = self.manifest.ok_rows if end == order.END else self.counts.of_tables()
        number = int(spans.max()) + 1 if len(spans) else 0
        span_rows = np.bincount(span_of_table, rows, number).astype(np.int64)
        return order.cut(ordered, spans, span_rows, self.counts.of_groups, first, end)

    def _sizes(self, pieces: np.ndarray) -> np.ndarray:
        """Bytes of each piece, its part of the row group's."""
        groups, first, end = pieces.T
        rows = self.manifest.group_rows[groups]
        part = np.minimum(end - first, rows) / np.maximum(rows, 1)
        return np.ceil(self.manifest.group_bytes[groups] * part).astype(np.int64)

    def _alone(self, workers: int) -> bool:
        """Whether there is nothing to share, so that no row need be counted."""
        return self.world_size * workers == 1 and not self.drop_last

    def _one_grid(self) -> bool:
        return self.grid_known or self.counts.one_grid()

    def _total(self) -> int:
        return int(self.counts.of_tables().sum())

    def _range(self, rank: int) -> tuple[int, int]:
        total = self._total()
        return total * rank // self.world_size, total * (rank + 1) // self.world_size

    def _rank_rows(self, rank: int) -> tuple[int, int]:
        """The first row of a rank and how many it hands out, if all have one grid."""
        first, end = self._range(rank)
        rows, size = end - first, self.batch_size
        fewest = self._total() // self.world_size
        if self.even_batches:
            rows = min(rows, size * (fewest // size if self.drop_last else -(-fewest // size)))
        if self.drop_last:
            rows -= rows % size
        return first, rows

    def _worker_rows(self, rows: int, worker: int, workers: int) -> tuple[int, int]:
        """The part of a worker: whole batches, but for the last one of the rank."""
        batches = -(-rows // self.batch_size)
        busy = min(workers, batches)
        if worker >= busy:
            return rows, rows
        low, high = (self.batch_size * (batches * w // busy) for w in (worker, worker + 1))
        return low, min(rows, high)
