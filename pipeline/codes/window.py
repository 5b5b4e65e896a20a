"""A shuffle buffer: the rows of a window of row groups, unpacked once, handed out in batches.

Codes of one grid lie in one matrix, whose memory is used again for the next window: fresh pages
cost more than the copy.  A batch is one gather out of that matrix, in a worker process straight
into the shared memory that the main process reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from pipeline.codes.errors import MissingValue, NotHere
from pipeline.codes.order import Cursor
from pipeline.codes.rowgroups import GroupRows
from pipeline.plan import Plan

RUNS = 16  # stretches of equally spaced values in a row group, up to which each is one copy


class Arena:
    """Memory for the matrices of a window, kept for the next one."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def take(self, size: int) -> np.ndarray:
        """So many bytes; what was taken before is overwritten."""
        if size > len(self._memory):
            self._memory = np.empty(size, np.uint8)
        return self._memory[:size]


class ShuffleBuffer:
    """Rows as matrices of codes, one for each grid, and one table of the rest."""

    def __init__(self, blocks: Sequence[GroupRows], arena: Arena) -> None:
        self.grids = np.concatenate([b.grids for b in blocks])
        self.origin = np.concatenate([b.origin for b in blocks])
        self.rows = pa.concat_tables([b.rows for b in blocks]).combine_chunks()
        self._place = np.empty(len(self.grids), np.int64)  # row in the matrix of its grid
        self._matrices: dict[int, np.ndarray] = {}
        memory, used = arena.take(sum(int(b.lengths.sum()) for b in blocks)), 0
        for grid in np.unique(self.grids):
            members = np.flatnonzero(self.grids == grid)
            self._place[members] = np.arange(len(members))
            length = next(int(b.lengths[at[0]]) for b in blocks if len(at := _of(b, grid)))
            matrix = memory[used : used + len(members) * length].reshape(len(members), length)
            self._matrices[int(grid)] = matrix
            used += matrix.size
            row = 0
            for block in blocks:
                offsets = block.offsets[_of(block, grid)]
                _unpack(block.data, offsets, matrix[row : row + len(offsets)])
                row += len(offsets)

    def codes(self, rows: np.ndarray) -> torch.Tensor:
        """[rows, bytes] uint8 of rows of one grid; shared memory in a worker."""
        matrix = torch.from_numpy(self._matrices[int(self.grids[rows[0]])])
        shape = (len(rows), matrix.shape[1])
        if get_worker_info() is None:
            out = torch.empty(shape, dtype=torch.uint8)
        else:
            size = shape[0] * shape[1]
            storage = torch.UntypedStorage._new_shared(size)  # as torch's own collate does
            out = torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)  # type: ignore[call-overload]
        return torch.index_select(matrix, 0, torch.from_numpy(self._place[rows]), out=out)

    def ordered(self, batches: Sequence[np.ndarray]) -> pa.Table:
        """Keys and columns of all batches in a row: one gather is cheaper than many."""
        return self.rows.take(np.concatenate([*batches, np.empty(0, np.int64)]))

    def rest(self, rows: np.ndarray) -> list[GroupRows]:
        """Rows as blocks of their own, sorted by row group and row."""
        rows = rows[np.lexsort((self.origin[rows, 1], self.origin[rows, 0]))]
        blocks = []
        for row in np.split(rows, np.flatnonzero(np.diff(self.grids[rows])) + 1):
            if len(row) == 0:
                continue
            data = self._matrices[int(self.grids[row[0]])][self._place[row]]
            lengths = np.full(len(row), data.shape[1], np.int64)
            offsets = np.cumsum(lengths) - lengths
            blocks.append(GroupRows(
                data.ravel(), offsets, lengths, self.grids[row], self.rows.take(row),
                self.origin[row],
            ))  # fmt: skip
        return blocks


@dataclass(frozen=True)
class Place:
    """Where in the stream a batch was."""

    epoch: int
    workers: int
    worker: int
    busy: tuple[int, ...]  # workers that have any batch in this epoch
    cursor: Cursor  # of the worker, behind the batch


@dataclass(frozen=True)
class CodeBatch:
    """Images of one grid."""

    key: list[str]
    codes: torch.Tensor  # [B, h, w, M] uint8; uint16 with more than 256 codewords
    columns: dict[str, torch.Tensor | list[str | None]]
    place: Place  # for CodeStream.mark

    def __len__(self) -> int:
        return len(self.key)

    def at(self, place: Place) -> CodeBatch:
        """The same batch at another place."""
        return replace(self, place=place)

    def pin_memory(self) -> CodeBatch:
        """For DataLoader(pin_memory=True)."""
        columns = {
            k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in self.columns.items()
        }
        return CodeBatch(self.key, self.codes.pin_memory(), columns, self.place)


def column_values(rows: pa.Table, name: str) -> torch.Tensor | list[str | None]:
    """A column as a tensor if it is numeric, else as a list.

    Raises:
        MissingValue: a number is null; names the key and the way out.
    """
    column = rows[name]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return column.to_pylist()
    if column.null_count:
        at = int(pc.index(pc.is_null(column), True).as_py())
        raise MissingValue(
            f"key {rows['key'][at].as_py()!r}: column {name!r} is null: leave such images out with "
            f"where=[({name!r}, 'is valid', True)]"
        )
    return torch.tensor(column.to_numpy())


def torch_type(plan: Plan) -> torch.dtype:
    """Of the codes that are handed out."""
    return torch.uint8 if plan.codewords <= 256 else torch.uint16


def _refuse(batch: Sequence[CodeBatch], **_: object) -> object:
    """What DataLoader does to items that it is to join."""
    raise NotHere(
        "CodeStream gives whole batches: write DataLoader(stream, batch_size=None), and "
        "CodeStream(..., batch_size=256) for their size"
    )


def _of(block: GroupRows, grid: int) -> np.ndarray:
    return np.flatnonzero(block.grids == grid)


def _unpack(data: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
    """Copy values of one length out of a page."""
    if len(offsets) == 0:
        return
    length = out.shape[1]
    steps = np.diff(offsets)
    edges = np.flatnonzero(np.diff(steps)) + 1
    if len(edges) > RUNS:
        view = np.lib.stride_tricks.as_strided(data, (len(data) - length + 1, length), (1, 1))
        out[:] = view[offsets]
        return
    first = 0
    while first < len(offsets):
        step = int(steps[first]) if first < len(steps) else length
        broken = np.flatnonzero(steps[first:] != step)
        count = int(broken[0]) + 1 if len(broken) else len(offsets) - first
        start = data[offsets[first] :]
        out[first : first + count] = np.lib.stride_tricks.as_strided(
            start, (count, length), (step, 1)
        )
        first += count


default_collate_fn_map[CodeBatch] = _refuse
