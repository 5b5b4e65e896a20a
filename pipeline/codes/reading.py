"""The batches of a worker's share: row groups are read ahead, windows unpacked, rows gathered."""

from __future__ import annotations

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
from pipeline.codes.window import Arena, CodeBatch, Place, ShuffleBuffer, column_values, torch_type
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
        skip, count = start.emitted, start.batches
        with ThreadPoolExecutor(FETCHES) as pool:
            position, carry = start.position, self._carried(start.carry)
            ahead = _Ahead(self, pool, share, position, sum(rows.data.nbytes for rows in carry))
            while position < len(share.pieces) or carry:
                waiting = sum(int(rows.lengths.sum()) for rows in carry)
                end, arena, new = ahead.window(waiting)
                window = ShuffleBuffer([*(arena.put(rows) for rows in carry), *new], arena)
                origin = _origin(carry)
                rng = np.random.default_rng([*self.seeds, position])
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
    """Reads the pieces of the next window while this one is handed out, each into its arena."""

    def __init__(
        self,
        reader: BatchReader,
        pool: ThreadPoolExecutor,
        share: Share,
        position: int,
        carried: int,
    ) -> None:
        self._reader, self._pool, self._share = reader, pool, share
        self._free = [Arena(), Arena()]
        self._coming = self._begin(position, carried)

    def window(self, carried: int) -> tuple[int, Arena, list[GroupRows]]:
        """Where the next window ends, and its rows; the one before is given up.

        ``carried``: bytes that are put into its arena besides.
        """
        end, arena, coming = self._coming
        found = [one.result() for one in coming]
        self._free.append(arena)
        self._coming = self._begin(end, arena.used + carried)
        return end, arena, found

    def _begin(self, position: int, carried: int) -> tuple[int, Arena, list[Future[GroupRows]]]:
        """``carried``: bytes that may be left over from the window before, at most."""
        end = order.window_end(self._share.sizes, position, self._reader.buffer_bytes)
        pieces, arena = self._share.pieces[position:end], self._free.pop(0)
        arena.clear(carried + int(self._reader.manifest.group_bytes[pieces[:, 0]].sum()))
        return end, arena, [self._pool.submit(self._read, arena, *p) for p in pieces.tolist()]

    def _read(self, arena: Arena, group: int, first: int, end: int) -> GroupRows:
        return arena.put(self._reader.read(group, first, end))


def _origin(rows: list[GroupRows]) -> bytes:
    pairs = [some.origin for some in rows]
    return np.concatenate(pairs).tobytes() if pairs else b""
