"""The batches of a worker's share: row groups are read ahead, windows unpacked, rows gathered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from pipeline.archive.manifest import Manifest
from pipeline.codes import order, rowgroups
from pipeline.codes.errors import MixedGrids
from pipeline.codes.order import Cursor
from pipeline.codes.query import Query
from pipeline.codes.rowgroups import GroupRows
from pipeline.codes.shares import Share
from pipeline.codes.window import (
    Arena,
    CodeBatch,
    Place,
    ShuffleBuffer,
    column_values,
    torch_type,
)
from pipeline.store.storage import Store

FETCHES = 8  # row groups read at once; S3 needs several to fill a line


@dataclass(frozen=True)
class BatchReader:
    """How a worker makes batches of its share."""

    store: Store
    manifest: Manifest
    query: Query
    grid: tuple[int, int] | None
    batch_size: int
    buffer_bytes: int
    drop_last: bool
    seeds: tuple[int, ...]  # of the shuffling in a window, besides its place

    def batches(
        self, share: Share, start: Cursor, place: Callable[[Cursor], Place]
    ) -> Iterator[CodeBatch]:
        """What is left of a share behind ``start``; the last batch is told that it is."""
        if start.last or share.limit == start.batches:
            return
        held: CodeBatch | None = None
        for batch in self._all(share, start, place):
            if held is not None:
                yield held
            held = batch
            if share.limit == held.place.cursor.batches:
                break
        if held is not None:
            yield held.at(place(held.place.cursor.end()))

    def _all(
        self, share: Share, start: Cursor, place: Callable[[Cursor], Place]
    ) -> Iterator[CodeBatch]:
        arena, skip, count = Arena(), start.emitted, start.batches
        with ThreadPoolExecutor(FETCHES) as pool:
            ahead = _Ahead(self, pool, share)
            position, carry = start.position, self._carried(start.carry)
            while position < len(share.pieces) or carry:
                end, new = ahead.window(position)
                window = ShuffleBuffer([*carry, *new], arena)
                origin = _origin(carry)
                rng = np.random.default_rng([*self.seeds, position])
                waiting = sum(int(rows.lengths.sum()) for rows in carry)
                flush = end == len(share.pieces) or waiting > self.buffer_bytes
                batches, rest = order.plan_batches(
                    window.grids, rng, self.batch_size, flush, self.drop_last
                )
                ordered, at = window.ordered(batches[skip:]), 0
                for number, rows in enumerate(batches[skip:], skip + 1):
                    count += 1
                    found, at = ordered.slice(at, len(rows)), at + len(rows)
                    behind = place(Cursor(position, number, origin, count))
                    yield self._batch(found, window.codes(rows), int(window.grids[rows[0]]), behind)
                position, carry, skip = end, window.rest(rest), 0

    def _batch(self, found: pa.Table, codes: torch.Tensor, grid: int, place: Place) -> CodeBatch:
        h, w = grid >> 16, grid & 0xFFFF
        key = found["key"].to_pylist()
        if self.grid not in (None, (h, w)):
            raise MixedGrids(
                f"key {key[0]!r}: a grid of {h} x {w}, not {self.grid}: choose images with "
                f"where=[('grid_h', '=', {self.grid and self.grid[0]}), ...], or leave grid out"
            )
        plan = self.manifest.plan
        shaped = codes.view(torch_type(plan)).view(len(key), h, w, plan.quality)
        columns = {name: column_values(found, name) for name in self.query.columns}
        return CodeBatch(key, shaped, columns, place)

    def read(self, group: int, first: int, end: int) -> GroupRows:
        """Some rows of a row group."""
        return rowgroups.read(self.store, self.manifest, group, self.query).slice(first, end)

    def _carried(self, rows: bytes) -> list[GroupRows]:
        """Left-over rows of windows that are not read again."""
        pairs = np.frombuffer(rows, np.uint32).reshape(-1, 2)
        found = []
        for group in np.unique(pairs[:, 0]):
            there = self.read(int(group), 0, order.END)
            wanted = pairs[pairs[:, 0] == group, 1]
            found.append(there.take(np.flatnonzero(np.isin(there.origin[:, 1], wanted))))
        return found


class _Ahead:
    """Reads the pieces of the next window while this one is handed out."""

    def __init__(self, reader: BatchReader, pool: ThreadPoolExecutor, share: Share) -> None:
        self._reader, self._pool, self._share = reader, pool, share
        self._coming = deque[Future[GroupRows]]()
        self._asked = -1  # pieces asked for so far

    def window(self, position: int) -> tuple[int, list[GroupRows]]:
        """Where the window ends that begins here, and its rows."""
        end = self._ask(position)
        found = [self._coming.popleft().result() for _ in range(end - position)]
        self._ask(end)
        return end, found

    def _ask(self, position: int) -> int:
        end = order.window_end(self._share.sizes, position, self._reader.buffer_bytes)
        for piece in self._share.pieces[max(position, self._asked) : end].tolist():
            self._coming.append(self._pool.submit(self._reader.read, *piece))
        self._asked = max(end, self._asked)
        return end


def _origin(rows: list[GroupRows]) -> bytes:
    pairs = [some.origin for some in rows]
    return np.concatenate(pairs).tobytes() if pairs else b""
