"""Which rows come when: the order of an epoch, and the batches of a window, as pure functions.

    tables --permuted, SPAN at a time--> row groups, permuted --cut by rows (shares)--> pieces of a
        worker --as many as fit into the buffer--> window --rows permuted--> batches of one grid

Everything follows from (seed, epoch, rank, worker), so a place in an epoch is a few numbers: the
pieces before the window, the batches handed out of it, and the rows left over from windows before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

SPAN = 16  # tables whose row groups are mixed; a reader keeps their footers
END = 1 << 62  # of a piece: its row group's last row, whatever number that has


@dataclass(frozen=True)
class Cursor:
    """A worker's place in its epoch."""

    position: int = 0  # pieces before the window
    emitted: int = 0  # batches of the window that were handed out
    carry: bytes = b""  # uint32 pairs (row group, row): left over from windows before
    batches: int = 0  # that were handed out in all
    last: bool = False  # there is nothing behind it

    def to_state(self) -> dict[str, object]:
        """Plain numbers, for JSON."""
        rows = np.frombuffer(self.carry, np.uint32).tolist()
        return {"position": self.position, "emitted": self.emitted, "carry": rows,
                "batches": self.batches, "last": self.last}  # fmt: skip

    @classmethod
    def from_state(cls, state: dict[str, object]) -> Cursor:
        """Read :meth:`to_state` output."""
        carry = np.array(state["carry"], np.uint32).tobytes()
        position, emitted, batches = (
            int(str(state[name])) for name in ("position", "emitted", "batches")
        )
        return cls(position, emitted, carry, batches, bool(state["last"]))

    def end(self) -> Cursor:
        """The same place, where nothing follows."""
        return replace(self, carry=b"", last=True)


def epoch_order(group_table: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """All row groups in the order of an epoch, and the number of the span that each is in."""
    rng = np.random.default_rng([seed, epoch])
    tables = int(group_table.max()) + 1 if len(group_table) else 0
    span = rng.permutation(tables)[group_table] // SPAN
    order = np.lexsort((rng.random(len(group_table)), span))
    return order, span[order]


def cut(
    order: np.ndarray,
    spans: np.ndarray,
    span_rows: np.ndarray,
    rows_of: Callable[[np.ndarray], np.ndarray],
    first: int,
    end: int,
) -> np.ndarray:
    """[pieces, 3] row group, first row, end: the rows ``first`` to ``end`` of an epoch's order.

    Only where the cut is within a span ``rows_of`` is asked how many rows each row group has;
    elsewhere the number of rows of the whole span is enough, and a row group's end is END.
    """
    pieces = [np.empty((0, 3), np.int64)]
    ends = np.cumsum(span_rows)
    for span in np.flatnonzero((ends > first) & (ends - span_rows < end) & (span_rows > 0)):
        groups = order[slice(*np.searchsorted(spans, [span, span + 1]))]
        begin = int(ends[span] - span_rows[span])
        if first <= begin and ends[span] <= end:
            pieces.append(np.stack([groups, 0 * groups, 0 * groups + END], 1))
            continue
        rows = rows_of(groups)
        starts = begin + np.cumsum(rows) - rows
        low, high = np.maximum(first - starts, 0), np.minimum(end - starts, rows)
        some = high > low
        pieces.append(np.stack([groups[some], low[some], high[some]], 1))
    return np.concatenate(pieces)


def window_end(sizes: np.ndarray, position: int, buffer_bytes: int) -> int:
    """Where the window ends that begins at a position: at least one piece, if there is one."""
    total = np.cumsum(sizes[position:])
    fits = int(np.searchsorted(total, buffer_bytes, "right"))
    return min(len(sizes), position + max(1, fits))


def plan_batches(
    grids: np.ndarray, rng: np.random.Generator, batch_size: int, flush: bool, drop: bool = False
) -> tuple[list[np.ndarray], np.ndarray]:
    """Row numbers of each batch, and the rows left over because they fill none.

    With ``flush`` nothing is left over: the last batch of every grid may be part-full, or with
    ``drop`` is left out.
    """
    order = rng.permutation(len(grids))
    order = order[np.argsort(grids[order], kind="stable")]
    edges = np.flatnonzero(np.diff(grids[order])) + 1
    batches, rest = list[np.ndarray](), list[np.ndarray]()
    for rows in np.split(order, edges) if len(order) else []:
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            if len(batch) == batch_size or (flush and not drop):
                batches.append(batch)
            elif not flush:
                rest.append(batch)
    mixed = [batches[i] for i in rng.permutation(len(batches))]
    return mixed, np.concatenate(rest) if rest else np.empty(0, np.int64)


def count_batches(
    grids: Sequence[np.ndarray],
    sizes: np.ndarray,
    code_bytes: int,
    batch_size: int,
    buffer_bytes: int,
    drop: bool,
) -> int:
    """How many batches :func:`plan_batches` makes of pieces with these grids, window by window.

    ``code_bytes``: of one position of a grid.
    """
    every = np.unique(np.concatenate([*grids, np.empty(0, np.uint32)]))
    lengths = (every >> 16).astype(np.int64) * (every & 0xFFFF) * code_bytes
    position, count, carry = 0, 0, np.zeros(len(every), np.int64)
    while position < len(grids):
        flush = int(carry @ lengths) > buffer_bytes
        end = window_end(sizes, position, buffer_bytes)
        there = np.searchsorted(every, np.concatenate(grids[position:end]))
        full, carry = np.divmod(carry + np.bincount(there, minlength=len(every)), batch_size)
        count += int(full.sum())
        if flush or end == len(grids):
            count += 0 if drop else int(np.count_nonzero(carry))
            carry = np.zeros(len(every), np.int64)
        position = end
    return count
