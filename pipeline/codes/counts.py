"""How many rows of each row group are handed out: from the manifest where it knows, else read.

The manifest knows how many images of a table are ok.  Which of its row groups they are in takes the
status column, where a table has failed images; how many pass a filter, or what grids there are,
takes the small columns of all row groups, below a millisecond each on a local disk.  Both are read
once and kept: 4 bytes a row where grids are mixed, next to nothing where they are not.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline.archive.manifest import Manifest
from pipeline.archive.table import BadTable
from pipeline.codes import rowgroups
from pipeline.codes.query import Query
from pipeline.store.storage import Store

THREADS = 16  # row groups read at once


class RowCounts:
    """Rows that are ok and pass the filters, by table and by row group."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        query: Query,
        known: list[np.ndarray] | None = None,
    ) -> None:
        """``known``: the grids of every row group, where another process has read them."""
        self._store, self._manifest, self._query, self.known = store, manifest, query, known
        self._tables: dict[int, np.ndarray] = {}  # rows of each row group, by table
        self._one: bool | None = None
        self._of_tables = None if query.where else manifest.ok_rows

    def of_tables(self) -> np.ndarray:
        """[tables]; with filters reads all row groups."""
        if self._of_tables is None:
            rows = np.array([len(grids) for grids in self.grids()], np.int64)
            tables = len(self._manifest.names)
            found = np.bincount(self._manifest.group_table, rows, tables)
            self._of_tables = found.astype(np.int64)
        return self._of_tables

    def of_groups(self, groups: np.ndarray) -> np.ndarray:
        """[len(groups)]; of all row groups of their tables what is not known is read.

        Raises:
            BadTable: a table is damaged, or has not the rows that the manifest says.
        """
        if self.known is not None:
            return np.array([len(self.known[group]) for group in groups], np.int64)
        first = np.searchsorted(self._manifest.group_table, self._manifest.group_table[groups])
        tables = self._manifest.group_table[groups]
        self._read_tables(np.unique(tables))
        found = zip(tables, groups - first, strict=True)
        return np.array([self._tables[int(t)][number] for t, number in found], np.int64)

    def of_table(self, table: int) -> np.ndarray:
        """[row groups of the table]."""
        self._read_tables(np.array([table]))
        return self._tables[table]

    def grids(self) -> list[np.ndarray]:
        """[rows] uint32, h << 16 | w, of every row group."""
        if self.known is None:
            self.known = self._read(np.arange(len(self._manifest.group_table)))
        return self.known

    def one_grid(self) -> bool:
        """Whether all rows have the same grid; reads all row groups."""
        if self._one is None:
            found = [np.unique(grids) for grids in self.grids()]
            self._one = len(np.unique(np.concatenate([*found, np.empty(0, np.uint32)]))) <= 1
        return self._one

    def _read_tables(self, tables: np.ndarray) -> None:
        """Fill ``_tables``; the status column is read where some images have failed."""
        missing = list[int]()
        for table in tables:
            first, end = np.searchsorted(self._manifest.group_table, [table, table + 1])
            rows = self._manifest.group_rows[first:end]
            if int(table) in self._tables:
                continue
            if not self._query.where and int(rows.sum()) == int(self._manifest.ok_rows[table]):
                self._tables[int(table)] = rows
            else:
                missing.append(int(table))
        groups = np.flatnonzero(np.isin(self._manifest.group_table, missing))
        found = np.array([len(grids) for grids in self._read(groups)], np.int64)
        for table in missing:
            rows = found[self._manifest.group_table[groups] == table]
            if not self._query.where and int(rows.sum()) != int(self._manifest.ok_rows[table]):
                url = self._store.url(self._manifest.names[table])
                raise BadTable(
                    f"{url}: has {rows.sum()} ok rows, its ledger entry says "
                    f"{self._manifest.ok_rows[table]}; jobs.verify says more"
                )
            self._tables[table] = rows

    def _read(self, groups: np.ndarray) -> list[np.ndarray]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(self._read_one, groups.tolist()))

    def _read_one(self, group: int) -> np.ndarray:
        grids = rowgroups.read_grids(self._store, self._manifest, group, self._query)
        if len(grids) and (grids == grids[0]).all():
            return np.broadcast_to(grids[:1], len(grids))  # one number, however many rows
        return grids
