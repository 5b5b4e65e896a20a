"""``CodeStream``: a shuffled, split, resumable stream of code batches for a torch DataLoader.

    stream = CodeStream("s3://bucket/arch", rank=rank, world_size=8, batch_size=256)
    for batch in stream.batches(workers=2):      # one epoch; the next call gives the next one
        step(batch.codes, batch.columns)         # [B, h, w, M] uint8
        checkpoint["data"] = stream.state_dict() # exact, in mid-epoch too

Order: tables are permuted, row groups permuted among SPAN tables, rows permuted in a window of
``buffer_bytes``.  Row groups are dealt to ranks and workers in turn, so that ranks may differ by
some batches: with collective operations stop all at the shortest.  Batches hold one grid each; the
last ones of an epoch may be part-full.

Memory of a worker: about three times ``buffer_bytes``, and a part-full batch for every grid, no
more than ``buffer_bytes`` of them.  Not for ``persistent_workers``: they would not hear of a state.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.archive import manifest
from pipeline.archive.manifest import DatasetError
from pipeline.codes import rowgroups, sampler
from pipeline.codes.rowgroups import Block, Fetched, Filter, Query
from pipeline.codes.sampler import Cursor
from pipeline.codes.window import Arena, Batch, Place, Window, column_values, torch_type
from pipeline.store.storage import Store

BUFFER_BYTES = 32 << 20  # 16,000 images of 16 x 16 x 8
FETCHES = 8  # row groups read at once; S3 needs several to fill a line


class StateMismatch(DatasetError):
    """A state is of another stream."""


class MixedGrids(DatasetError):
    """An image does not have the grid that was asked for."""


class NotHere(DatasetError):
    """The DataLoader runs its workers in a way that this stream cannot work with."""


class CodeStream(IterableDataset[Batch]):
    """One rank's share of an archive's ok images, one epoch an iteration."""

    def __init__(
        self,
        uri: str,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        batch_size: int = 256,
        columns: Sequence[str] = (),
        where: Sequence[Filter] = (),
        grid: tuple[int, int] | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        checksums: bool = True,
    ) -> None:
        """``where``: all must hold, e.g. ``[("width", ">=", 256), ("json.label", "in", [3, 7])]``,
        with ``(column, "is valid", True)`` for not null; ``grid``: the only (h, w) expected.

        Raises:
            pipeline.archive.manifest.MissingManifest, pipeline.codes.rowgroups.NoCodes,
            MissingColumn: each with the command that helps.
        """
        if not 0 <= rank < world_size or batch_size < 1:
            raise ValueError(f"rank {rank} of {world_size}, batch_size {batch_size}")
        self.rank, self.world_size = rank, world_size
        self.seed, self.batch_size, self.grid = seed, batch_size, grid
        self.buffer_bytes, self.epoch = buffer_bytes, 0
        self.query = Query(tuple(columns), tuple(where), checksums=checksums)
        self.store = Store(uri)
        self._cursors: dict[int, Cursor] = {}
        self._workers: int | None = None  # that the cursors are of; None: any
        self._open()
        rowgroups.check_query(self._manifest, self.query, self.store.root)

    def _open(self) -> None:
        self._manifest = manifest.read(self.store)
        self._process = os.getpid()
        self._iterated = False

    @property
    def rows(self) -> int:
        """Ok images of all ranks, before filters."""
        return int(self._manifest.ok_rows.sum())

    # State ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where this rank is: what :meth:`batches` handed out, or :meth:`mark` was told of.

        Plain numbers and strings; with left-over rows about 10 bytes an image of a batch.
        """
        cursors = {str(worker): c.to_state() for worker, c in sorted(self._cursors.items())}
        return {**self._identity(), "epoch": self.epoch, "workers": self._workers,
                "cursors": cursors}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there.

        Raises:
            StateMismatch: it is of another archive, split, seed, batch size or filter.
        """
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise StateMismatch(
                    f"the state has {name} {state.get(name)!r}, this stream {mine!r}: make the "
                    "stream as it was, or start without the state"
                )
        self.epoch, self._workers = state["epoch"], state["workers"]
        self._cursors = {int(k): Cursor.from_state(v) for k, v in state["cursors"].items()}

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; every rank must be told the same."""
        self.epoch, self._cursors, self._workers = epoch, {}, None

    def mark(self, batch: Batch) -> None:
        """Note in the main process that a batch of a DataLoader is consumed."""
        self.epoch, self._workers, worker, cursor = batch.place
        self._cursors[worker] = cursor

    def _identity(self) -> dict[str, Any]:
        where = [[c, o, v if isinstance(v, str | int | float) else repr(v)]
                 for c, o, v in self.query.where]  # fmt: skip
        return {
            "manifest": self._manifest.digest, "rank": self.rank, "world_size": self.world_size,
            "seed": self.seed, "batch_size": self.batch_size, "buffer_bytes": self.buffer_bytes,
            "where": where,
        }  # fmt: skip

    # Iteration -----------------------------------------------------------------------------------

    def batches(self, workers: int = 0) -> Iterator[Batch]:
        """The rest of the epoch through a DataLoader of ours; then the stream is at the next one.

        Raises:
            BadTable, MissingValue, MixedGrids, StorageError: name the object.
        """
        # Forked processes cannot use s3fs; on files a fork is the quicker start.
        context = "spawn" if workers and self.store.root.startswith("s3://") else None
        loader = DataLoader(
            self, batch_size=None, num_workers=workers, multiprocessing_context=context
        )
        epoch = self.epoch
        for batch in loader:
            self.mark(batch)
            yield batch
        self.set_epoch(epoch + 1)

    def __iter__(self) -> Iterator[Batch]:
        """What is left of the epoch, of one worker if a DataLoader calls.

        Raises:
            StateMismatch: the state is of another number of workers.
            NotHere: persistent workers, or a forked process and S3.
        """
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if info is not None:
            self._check_worker()
        if self._workers not in (None, workers):
            raise StateMismatch(
                f"the state is of {self._workers} workers, this DataLoader has {workers}: give as "
                "many as before, or set_epoch to begin one"
            )
        self._workers, epoch = workers, self.epoch
        for batch, cursor in self._epoch(worker, workers):
            self._cursors[worker] = cursor
            yield batch
        if info is None:
            self.set_epoch(epoch + 1)

    def _check_worker(self) -> None:
        if self._iterated:
            raise NotHere("persistent_workers=True: they would miss set_epoch: leave it out")
        self._iterated = True
        if os.getpid() != self._process and self.store.root.startswith("s3://"):
            raise NotHere(
                "forked workers cannot read S3 (s3fs hangs): give the DataLoader "
                "multiprocessing_context='spawn', or use CodeStream.batches"
            )

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker reads the manifest itself: its Parquet reader cannot be sent."""
        return {**self.__dict__, "_manifest": self._manifest.digest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
        if self._manifest.digest != state["_manifest"]:
            raise StateMismatch(f"{self.store.root}: the manifest was replaced just now: try again")

    def _epoch(self, worker: int, workers: int) -> Iterator[tuple[Batch, Cursor]]:
        order = sampler.epoch_order(self._manifest.group_table, self.seed, self.epoch)
        groups = sampler.split(order, self.rank, self.world_size, worker, workers)
        sizes = self._manifest.group_bytes[groups]
        start = self._cursors.get(worker, Cursor())
        arena, skip = Arena(), start.emitted
        with ThreadPoolExecutor(FETCHES) as pool:
            reader = _Ahead(self, pool, groups, sizes)
            position, carry = start.position, self._carried(start.carry)
            while position < len(groups) or carry:
                end, blocks = reader.window(position)
                window = Window([*carry, *blocks], arena)
                origin = _origin(carry)
                rng = np.random.default_rng(
                    [self.seed, self.epoch, self.rank, worker, position, self.world_size, workers]
                )
                waiting = sum(int(b.lengths.sum()) for b in carry)
                flush = end == len(groups) or waiting > self.buffer_bytes
                batches, rest = sampler.plan_batches(window.grids, rng, self.batch_size, flush)
                for number, rows in enumerate(batches[skip:], skip + 1):
                    cursor = Cursor(position, number, origin)
                    place = (self.epoch, workers, worker, cursor)
                    yield self._batch(window, rows, place), cursor
                position, carry, skip = end, window.rest(rest), 0

    def _batch(self, window: Window, rows: np.ndarray, place: Place) -> Batch:
        found = window.rows.take(rows)
        codes = window.codes(rows)
        grid = int(window.grids[rows[0]])
        h, w = grid >> 16, grid & 0xFFFF
        key = found["key"].to_pylist()
        if self.grid not in (None, (h, w)):
            raise MixedGrids(
                f"key {key[0]!r}: a grid of {h} x {w}, not {self.grid}: choose images with "
                f"where=[('grid_h', '=', {self.grid and self.grid[0]}), ...], or leave grid out"
            )
        kind = torch_type(self._manifest.plan)
        shaped = codes.view(kind).view(len(rows), h, w, self._manifest.plan.quality)
        columns = {name: column_values(found, name) for name in self.query.columns}
        return Batch(key, shaped, columns, place)

    def _block(self, group: int, fetched: Fetched) -> Block:
        return rowgroups.decode(self.store, self._manifest, group, self.query, fetched)

    def _fetch(self, group: int) -> Fetched:
        return rowgroups.fetch(self.store, self._manifest, group, self.query)

    def _carried(self, rows: bytes) -> list[Block]:
        """Left-over rows of windows that are not read again."""
        pairs = np.frombuffer(rows, np.uint32).reshape(-1, 2)
        blocks = []
        for group in np.unique(pairs[:, 0]):
            block = self._block(int(group), self._fetch(int(group)))
            wanted = pairs[pairs[:, 0] == group, 1]
            blocks.append(block.take(np.flatnonzero(np.isin(block.origin[:, 1], wanted))))
        return blocks


class _Ahead:
    """Reads the row groups of the next window while this one is handed out."""

    def __init__(
        self, stream: CodeStream, pool: ThreadPoolExecutor, groups: np.ndarray, sizes: np.ndarray
    ) -> None:
        self._stream, self._pool = stream, pool
        self._groups, self._sizes = groups, sizes
        self._coming = deque[tuple[int, Future[Fetched]]]()
        self._asked = -1  # row groups asked for so far

    def window(self, position: int) -> tuple[int, list[Block]]:
        """Where the window ends that begins here, and its blocks."""
        end = self._ask(position)
        fetched = [self._coming.popleft() for _ in range(end - position)]
        blocks = [self._stream._block(group, future.result()) for group, future in fetched]
        self._ask(end)
        return end, blocks

    def _ask(self, position: int) -> int:
        end = sampler.window_end(self._sizes, position, self._stream.buffer_bytes)
        for group in self._groups[max(position, self._asked) : end]:
            self._coming.append((int(group), self._pool.submit(self._stream._fetch, int(group))))
        self._asked = max(end, self._asked)
        return end


def _origin(blocks: list[Block]) -> bytes:
    pairs = [block.origin for block in blocks]
    return np.concatenate(pairs).tobytes() if pairs else b""
