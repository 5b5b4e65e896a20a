"""Code tables as torch data sets: ``CodeTable`` by number or key, ``CodeStream`` for training.

    table = CodeTable("s3://bucket/arch", columns=["json.label"])
    table[7]["codes"]                  # torch.uint8 [h, w, M]
    table.get("n01440764_10026")

A row group is read by one range read and kept, as many as fit into ``cache_bytes``: neighbours are
free, rows in random order cost a row group each, so shuffle with ``CodeStream``.  Numbers are those
of the ok images in the order of the listing.  Finding them needs the status column of a table,
once, where the table has failed images.

A key is looked for in the row groups whose range of keys has it.  Their key columns are read once
and remembered as hashes: 8 bytes a row, for sorted keys of one row group, for unsorted ones in the
worst case of the whole archive.  If several images have the key, the first is given.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset

from pipeline.archive import manifest
from pipeline.archive.manifest import DatasetError, MissingManifest
from pipeline.codes import rowgroups
from pipeline.codes.rowgroups import Block, MissingColumn, NoCodes, Query
from pipeline.codes.stream import CodeStream, MixedGrids, NotHere, StateMismatch
from pipeline.codes.window import Batch, MissingValue, column_values, torch_type
from pipeline.store.storage import Store

__all__ = [
    "Batch",
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
]
CACHE_BYTES = 64 << 20
THREADS = 8  # status columns of one table read at once


class CodeTable(Dataset[dict[str, object]]):
    """The ok images of an archive, by number and by key; safe to use from several threads."""

    def __init__(
        self,
        uri: str,
        columns: Sequence[str] = (),
        cache_bytes: int = CACHE_BYTES,
        checksums: bool = True,
    ) -> None:
        """
        Raises:
            pipeline.archive.manifest.MissingManifest, pipeline.codes.rowgroups.NoCodes,
            MissingColumn: each with the command that helps.
        """
        self.store = Store(uri)
        self.cache_bytes = cache_bytes
        self.query = Query(tuple(columns), (), checksums=checksums)
        self._open()
        rowgroups.check_query(self._manifest, self.query, self.store.root)

    def _open(self) -> None:
        self._manifest = manifest.read(self.store)
        self._ends = np.cumsum(self._manifest.ok_rows)  # of each table, in numbers
        self._first = np.searchsorted(  # row group of each table
            self._manifest.group_table, np.arange(len(self._ends) + 1)
        )
        self._lock = threading.Lock()
        self._cache = OrderedDict[int, Block]()
        self._cached = 0  # bytes
        self._ok: dict[int, np.ndarray] = {}  # ok rows of each row group, by table
        self._keys: dict[int, np.ndarray] = {}  # hashes of the ok keys, by row group

    def __getstate__(self) -> dict[str, object]:
        return {"store": self.store, "cache_bytes": self.cache_bytes, "query": self.query}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> dict[str, object]:
        """``key``, ``codes`` [h, w, M] and the columns of an image.

        Raises:
            IndexError: there are fewer.
            BadTable: its table is damaged, or not the one of the manifest.
        """
        if not -len(self) <= number < len(self):
            raise IndexError(f"{number}: {self.store.root} has {len(self)} images")
        number %= len(self)
        table = int(np.searchsorted(self._ends, number, "right"))
        number -= int(self._ends[table] - self._manifest.ok_rows[table])
        ends = np.cumsum(self._ok_rows(table))
        group = int(np.searchsorted(ends, number, "right"))
        if group == len(ends):
            raise manifest.BadTable(
                f"{self.store.url(self._manifest.names[table])}: has fewer ok rows than its "
                "ledger entry says; jobs.verify says more"
            )
        row = number - (int(ends[group - 1]) if group else 0)
        return self._sample(self._block(int(self._first[table]) + group), row)

    def get(self, key: str) -> dict[str, object]:
        """The same, by key.

        Raises:
            KeyError: no ok image has it.
        """
        for group in self._candidates(key):
            if not len(np.flatnonzero(self._key_hashes(int(group)) == hash(key))):
                continue
            block = self._block(int(group))
            row = pc.index(block.rows["key"], key).as_py()
            if row >= 0:
                return self._sample(block, row)
        raise KeyError(f"{self.store.root}: no ok image has the key {key!r}")

    def _candidates(self, key: str) -> np.ndarray:
        """Row groups whose range of keys has this one, or is unknown."""
        low = pc.fill_null(pc.less_equal(self._manifest.key_min, key), True)
        high = pc.fill_null(pc.greater_equal(self._manifest.key_max, key), True)
        return np.flatnonzero(pc.and_(low, high).to_numpy(zero_copy_only=False))

    def _key_hashes(self, group: int) -> np.ndarray:
        if group not in self._keys:
            block = self._read(group, Query((), (), codes=False))
            keys = block.rows["key"].to_pylist()
            self._keys[group] = np.array([hash(key) for key in keys], np.int64)
        return self._keys[group]

    def _ok_rows(self, table: int) -> np.ndarray:
        """Ok rows in each row group of a table."""
        groups = range(self._first[table], self._first[table + 1])
        rows = self._manifest.group_rows[groups.start : groups.stop]
        if int(rows.sum()) == int(self._manifest.ok_rows[table]):
            return rows
        if table not in self._ok:
            with ThreadPoolExecutor(THREADS) as pool:
                blocks = pool.map(lambda g: self._read(g, Query((), (), codes=False)), groups)
                self._ok[table] = np.array([len(block.grids) for block in blocks])
        return self._ok[table]

    def _read(self, group: int, query: Query) -> Block:
        fetched = rowgroups.fetch(self.store, self._manifest, group, query)
        return rowgroups.decode(self.store, self._manifest, group, query, fetched)

    def _block(self, group: int) -> Block:
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
        block = self._read(group, self.query)
        with self._lock:
            if group not in self._cache:
                self._cache[group] = block
                self._cached += block.data.nbytes
            while self._cached > self.cache_bytes and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].data.nbytes
        return block

    def _sample(self, block: Block, row: int) -> dict[str, object]:
        one = block.rows.slice(row, 1)
        at, length = int(block.offsets[row]), int(block.lengths[row])
        codes = torch.from_numpy(block.data[at : at + length].copy())
        grid = int(block.grids[row])
        codes = codes.view(torch_type(self._manifest.plan)).view(grid >> 16, grid & 0xFFFF, -1)
        columns = {name: column_values(one, name)[0] for name in self.query.columns}
        return {"key": one["key"][0].as_py(), "codes": codes, **columns}
