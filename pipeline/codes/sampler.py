"""Which rows come when: the order of an epoch, its split, and the batches of a window.

    tables --permuted, SPAN at a time--> row groups, permuted --every n-th--> a worker's row groups
        --as many as fit into the buffer--> window --rows permuted--> batches of one grid

Row groups are the unit of the split, so ranks and workers may differ by one row group of rows.
Everything follows from (seed, epoch, rank, worker), so a place in an epoch is a few numbers: the
row groups before the window, the batches handed out of it, and the rows left over from windows
before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPAN = 16  # tables whose row groups are mixed; a reader keeps their footers


@dataclass(frozen=True)
class Cursor:
    """A worker's place in its epoch."""

    position: int = 0  # row groups before the window
    emitted: int = 0  # batches of the window that were handed out
    carry: bytes = b""  # uint32 pairs (row group, row): left over from windows before

    def to_state(self) -> dict[str, object]:
        """Plain numbers, for JSON."""
        rows = np.frombuffer(self.carry, np.uint32).tolist()
        return {"position": self.position, "emitted": self.emitted, "carry": rows}

    @classmethod
    def from_state(cls, state: dict[str, object]) -> Cursor:
        """Read :meth:`to_state` output."""
        carry = np.array(state["carry"], np.uint32).tobytes()
        return cls(int(str(state["position"])), int(str(state["emitted"])), carry)


def epoch_order(group_table: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """All row groups in the order of an epoch."""
    rng = np.random.default_rng([seed, epoch])
    tables = int(group_table.max()) + 1 if len(group_table) else 0
    span = rng.permutation(tables)[group_table] // SPAN
    return np.lexsort((rng.random(len(group_table)), span))


def split(order: np.ndarray, rank: int, world_size: int, worker: int, workers: int) -> np.ndarray:
    """The part of a worker of a rank; the parts of all are everything, once."""
    return order[rank + world_size * worker :: world_size * workers]


def window_end(sizes: np.ndarray, position: int, buffer_bytes: int) -> int:
    """Where the window ends that begins at a position: at least one row group, if there is one."""
    total = np.cumsum(sizes[position:])
    fits = int(np.searchsorted(total, buffer_bytes, "right"))
    return min(len(sizes), position + max(1, fits))


def plan_batches(
    grids: np.ndarray, rng: np.random.Generator, batch_size: int, flush: bool
) -> tuple[list[np.ndarray], np.ndarray]:
    """Row numbers of each batch, and the rows left over because they fill none.

    With ``flush`` nothing is left over: the last batch of every grid may be part-full.
    """
    order = rng.permutation(len(grids))
    order = order[np.argsort(grids[order], kind="stable")]
    edges = np.flatnonzero(np.diff(grids[order])) + 1
    batches, rest = list[np.ndarray](), list[np.ndarray]()
    for rows in np.split(order, edges) if len(order) else []:
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            (batches if flush or len(batch) == batch_size else rest).append(batch)
    mixed = [batches[i] for i in rng.permutation(len(batches))]
    return mixed, np.concatenate(rest) if rest else np.empty(0, np.int64)
