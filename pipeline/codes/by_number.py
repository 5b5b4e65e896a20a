"""Code tables as torch data sets: ``CodeTable`` by number or key, ``CodeStream`` for training.

    table = CodeTable("s3://bucket/arch", columns=["json.label"])
    table[7]["codes"]                  # torch.uint8 [h, w, M]
    table["n01440764_10026"], table[:10], "n01440764_10027" in table

A row group is read by one range read and kept, as many as fit into ``cache_bytes``: neighbours are
free, rows in random order cost a row group each, so shuffle with ``CodeStream``.  Numbers are those
of the ok images in the order of the listing.

A key is looked for in the row groups whose range of keys has it.  Their key columns are read once
and remembered as hashes: 8 bytes a row, for sorted keys of one row group, for unsorted ones in the
worst case of the whole archive.  If several images have the key, the first is given.
"""

from __future__ import annotations

import operator
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset

from pipeline.archive import manifest
from pipeline.archive.manifest import DatasetError, MissingManifest
from pipeline.codes import query, rowgroups
from pipeline.codes.counts import RowCounts
from pipeline.codes.errors import (
    MissingColumn,
    MissingValue,
    MixedGrids,
    NoCodes,
    NotHere,
    StateMismatch,
    TooFewImages,
)
from pipeline.codes.query import Query
from pipeline.codes.rowgroups import GroupRows
from pipeline.codes.stream import CodeStream
from pipeline.codes.window import CodeBatch, column_values, torch_type
from pipeline.store.storage import Store

__all__ = [
    "CodeBatch",
    "CodeStream",
    "CodeTable",
    "DatasetError",
    "MissingColumn",
    "MissingManifest",
    "MissingValue",
    "MixedGrids",
    "NoCodes",
    "NotHere",
    "StateMismatch",
    "TooFewImages",
]
CACHE_BYTES = 64 << 20

Sample = dict[str, Any]  # key, codes [h, w, M], columns


class CodeTable(Dataset[Sample]):
    """The ok images of an archive, by number and by key; safe to use from several threads."""

    def __init__(
        self,
        uri: str | Path,
        columns: str | Sequence[str] = (),
        cache_bytes: int = CACHE_BYTES,
        checksums: bool = True,
    ) -> None:
        """
        Raises:
            pipeline.archive.manifest.MissingManifest, pipeline.codes.errors.NoCodes,
            MissingColumn: each with the command that helps.
        """
        self.store = Store(os.fspath(uri))
        self.cache_bytes = cache_bytes
        self.query = Query.of(columns, (), checksums)
        self._open()
        query.check_query(self._manifest, self.query, self.store.root)

    def _open(self) -> None:
        self._manifest = manifest.read(self.store)
        self._ends = np.cumsum(self._manifest.ok_rows)  # of each table, in numbers
        self._first = np.searchsorted(  # row group of each table
            self._manifest.group_table, np.arange(len(self._ends) + 1)
        )
        self._lock = threading.Lock()
        self._cache = OrderedDict[int, GroupRows]()
        self._cached = 0  # bytes
        self._counts = RowCounts(self.store, self._manifest, self.query)
        self._keys: dict[int, np.ndarray] = {}  # hashes of the ok keys, by row group

    def __getstate__(self) -> dict[str, object]:
        return {"store": self.store, "cache_bytes": self.cache_bytes, "query": self.query}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, number: slice) -> list[Sample]: ...

    @overload
    def __getitem__(self, number: int | str) -> Sample: ...

    def __getitem__(self, number: int | str | slice) -> Sample | list[Sample]:
        """``key``, ``codes`` [h, w, M] and the columns of an image, by its number or key.

        Of a slice a list of them.

        Raises:
            IndexError, KeyError: there is none.
            BadTable: its table is damaged, or not the one of the manifest.
        """
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        if isinstance(number, str):
            return self.get(number)
        number = operator.index(number)
        if not -len(self) <= number < len(self):
            raise IndexError(f"{number}: {self.store.root} has {len(self)} images")
        number %= len(self)
        table = int(np.searchsorted(self._ends, number, "right"))
        number -= int(self._ends[table] - self._manifest.ok_rows[table])
        ends = np.cumsum(self._counts.of_table(table))
        group = int(np.searchsorted(ends, number, "right"))
        row = number - (int(ends[group - 1]) if group else 0)
        return self._sample(self._group(int(self._first[table]) + group), row)

    def __iter__(self) -> Iterator[Sample]:
        """All images, in order."""
        return (self[number] for number in range(len(self)))

    def __contains__(self, key: object) -> bool:
        """Whether an ok image has the key."""
        return isinstance(key, str) and self._find(key) is not None

    def get(self, key: str) -> Sample:
        """The same, by key.

        Raises:
            KeyError: no ok image has it.
        """
        found = self._find(key)
        if found is None:
            raise KeyError(f"{self.store.root}: no ok image has the key {key!r}")
        return self._sample(*found)

    def _find(self, key: str) -> tuple[GroupRows, int] | None:
        for group in self._candidates(key).tolist():
            if len(np.flatnonzero(self._key_hashes(group) == hash(key))):
                rows = self._group(group)
                row = pc.index(rows.rows["key"], key).as_py()
                if row >= 0:
                    return rows, row
        return None

    def _candidates(self, key: str) -> np.ndarray:
        """Row groups whose range of keys has this one, or is unknown."""
        low = pc.fill_null(pc.less_equal(self._manifest.key_min, key), True)
        high = pc.fill_null(pc.greater_equal(self._manifest.key_max, key), True)
        return np.flatnonzero(pc.and_(low, high).to_numpy(zero_copy_only=False))

    def _key_hashes(self, group: int) -> np.ndarray:
        if group not in self._keys:
            found = rowgroups.read(self.store, self._manifest, group, Query((), (), codes=False))
            keys = found.rows["key"].to_pylist()
            self._keys[group] = np.array([hash(key) for key in keys], np.int64)
        return self._keys[group]

    def _group(self, group: int) -> GroupRows:
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
        found = rowgroups.read(self.store, self._manifest, group, self.query)
        with self._lock:
            if group not in self._cache:
                self._cache[group] = found
                self._cached += found.data.nbytes
            while self._cached > self.cache_bytes and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].data.nbytes
        return found

    def _sample(self, rows: GroupRows, row: int) -> Sample:
        one = rows.rows.slice(row, 1)
        at, length = int(rows.offsets[row]), int(rows.lengths[row])
        codes = torch.from_numpy(rows.data[at : at + length].copy())
        grid = int(rows.grids[row])
        codes = codes.view(torch_type(self._manifest.plan)).view(grid >> 16, grid & 0xFFFF, -1)
        columns = {name: column_values(one, name)[0] for name in self.query.columns}
        return {"key": one["key"][0].as_py(), "codes": codes, **columns}
