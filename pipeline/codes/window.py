"""A shuffle buffer: the rows of a window of row groups, handed out in batches.

Threads put the codes of row groups into one stretch of memory as they have read them, and that
memory is used again: fresh pages cost more than the copy.  A batch is one gather out of it, in a
worker process into shared memory that the main process reads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from pipeline.codes.errors import MissingValue, NotHere
from pipeline.codes.order import Cursor
from pipeline.codes.rowgroups import GroupRows, windows
from pipeline.plan import Plan


class Arena:
    """Memory for the codes of a window, used again for the one after the next."""

    def __init__(self) -> None:
        self.memory, self._used = np.empty(0, np.uint8), 0
        self._lock = threading.Lock()

    def clear(self, size: int) -> None:
        """Make room for so many bytes; what was put before is overwritten."""
        self._used = 0
        if size > len(self.memory):
            self.memory = np.empty(size, np.uint8)

    def put(self, rows: GroupRows) -> GroupRows:
        """The same rows with their codes in here; from any thread."""
        if len(rows.grids) == 0:
            return rows
        first, end = int(rows.offsets.min()), int((rows.offsets + rows.lengths).max())
        if 2 * int(rows.lengths.sum()) < end - first:  # a filter has left few of them
            return self.put(rows.take(np.arange(len(rows.grids))))
        with self._lock:
            start, self._used = self._used, self._used + end - first
        self.memory[start : start + end - first] = rows.data[first:end]
        return replace(rows, data=self.memory, offsets=rows.offsets - first + start)

    @property
    def used(self) -> int:
        """Bytes that were put."""
        return self._used


class ShuffleBuffer:
    """The rows of a window, whose codes are in one arena."""

    def __init__(self, parts: Sequence[GroupRows], arena: Arena) -> None:
        self.grids = np.concatenate([part.grids for part in parts])
        self._all = GroupRows(
            arena.memory,
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            self.grids,
            pa.concat_tables([part.rows for part in parts]).combine_chunks(),
            np.concatenate([part.origin for part in parts]),
        )

    def codes(self, rows: np.ndarray) -> torch.Tensor:
        """[rows, bytes] uint8 of rows of one grid; shared memory in a worker."""
        length = int(self._all.lengths[rows[0]])
        there = torch.from_numpy(windows(self._all.data, length))
        found = torch.index_select(there, 0, torch.from_numpy(self._all.offsets[rows]))
        return found if get_worker_info() is None else _shared(found)

    def ordered(self, batches: Sequence[np.ndarray]) -> pa.Table:
        """Keys and columns of all batches in a row: one gather is cheaper than many."""
        return self._all.rows.take(np.concatenate([*batches, np.empty(0, np.int64)]))

    def rest(self, rows: np.ndarray) -> list[GroupRows]:
        """Rows that go on to the next window, sorted by row group and row."""
        origin = self._all.origin
        rows = rows[np.lexsort((origin[rows, 1], origin[rows, 0]))]
        return [self._all.take(rows)] if len(rows) else []


def _shared(data: torch.Tensor) -> torch.Tensor:
    """[rows, bytes] uint8 in shared memory, written as a file: half the cost of touching each of
    its pages, as ``share_memory_`` does."""
    if torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return data.share_memory_()
    left: Any = data.numpy().ravel()
    fd = os.memfd_create("pqmim-batch")
    try:
        while len(left):
            left = left[os.write(fd, left) :]
        storage: Any = torch.UntypedStorage
        shared = torch.empty(0, dtype=torch.uint8)
        return shared.set_(storage._new_shared_fd_cpu(fd, data.numel())).view(data.shape)
    finally:
        os.close(fd)


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


default_collate_fn_map[CodeBatch] = _refuse
