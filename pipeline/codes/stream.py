"""``CodeStream``: a shuffled, split, resumable stream of code batches for a torch DataLoader.

    stream = CodeStream("s3://bucket/arch", rank=rank, world_size=8, batch_size=256)
    for batch in stream.batches(workers=2):      # one epoch; the next call gives the next one
        step(batch.codes, batch.columns)         # [B, h, w, M] uint8
        checkpoint["data"] = stream.state_dict() # exact, in mid-epoch too

Order: tables are permuted, row groups permuted among SPAN tables, rows permuted in a window of
``buffer_bytes``.  Rows are dealt to ranks, which differ by one at most (``pipeline.codes.shares``).
Batches hold one grid each; the last ones of an epoch may be part-full.

Every iteration is the next epoch (``pipeline.codes.epochs``), however far the one before it went.
Only after ``load_state_dict`` the next one is the rest of an epoch.

Memory of a worker: about three times ``buffer_bytes``, and a part-full batch for every grid, no
more than ``buffer_bytes`` of them.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.archive import manifest
from pipeline.codes import query
from pipeline.codes.counts import RowCounts
from pipeline.codes.epochs import Epochs
from pipeline.codes.errors import NotHere, StateMismatch
from pipeline.codes.order import Cursor
from pipeline.codes.query import Filter, Query, whole
from pipeline.codes.reading import BatchReader
from pipeline.codes.shares import Dealer
from pipeline.codes.window import CodeBatch, Place
from pipeline.store.storage import Store

log = logging.getLogger(__name__)
BUFFER_BYTES = 32 << 20  # 16,000 images of 16 x 16 x 8
ORDER = "by rows"  # of the states; those of other orders mean other rows


@dataclass
class Consumed:
    """How far an epoch is consumed."""

    epoch: int
    workers: int
    busy: tuple[int, ...] | None  # workers that have any batch; None: not known yet
    cursors: dict[int, Cursor] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether nothing of the epoch is left."""
        return self.busy is not None and all(
            worker in self.cursors and self.cursors[worker].last for worker in self.busy
        )


class CodeStream(IterableDataset[CodeBatch]):
    """One rank's share of an archive's ok images, one epoch an iteration."""

    def __init__(
        self,
        uri: str | Path,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        batch_size: int = 256,
        columns: str | Sequence[str] = (),
        where: Filter | Sequence[Filter] = (),
        grid: Sequence[int] | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        checksums: bool = True,
        drop_last: bool = False,
        even_batches: bool = False,
    ) -> None:
        """``where``: all must hold, e.g. ``[("width", ">=", 256), ("json.label", "in", [3, 7])]``,
        with ``(column, "is valid", True)`` for not null; ``grid``: the only (h, w) expected.
        ``drop_last``: full batches alone.  ``even_batches``: every rank gives as many as the one
        with the fewest; with one grid that leaves out one image a rank at most.

        With filters and several ranks all row groups are looked at, once, to count rows; with
        ``drop_last`` or ``even_batches`` and no ``grid``, to see the grids (``RowCounts``).

        Raises:
            pipeline.archive.manifest.MissingManifest, pipeline.codes.errors.NoCodes,
            MissingColumn, TooFewImages: each with the way out.
        """
        self.rank, self.world_size = whole("rank", rank, 0), whole("world_size", world_size, 1)
        if self.rank >= self.world_size:
            raise ValueError(f"rank {rank} of {world_size}: ranks begin at 0")
        if grid is not None and (not isinstance(grid, list | tuple) or len(grid) != 2):
            raise ValueError(f"grid {grid!r}: (rows, columns) of the codes")
        self.seed, self.batch_size = whole("seed", seed, 0), whole("batch_size", batch_size, 1)
        self.buffer_bytes = int(buffer_bytes)
        self.grid = None if grid is None else (int(grid[0]), int(grid[1]))
        self.drop_last, self.even_batches = drop_last, even_batches
        self.query = Query.of(columns, where, checksums)
        self.store = Store(os.fspath(uri))
        self._epochs = Epochs()
        self._progress: Consumed | None = None
        self._given: Consumed | None = None  # a state that a worker was told
        self._process = os.getpid()
        self._manifest = manifest.read(self.store)
        query.check_query(self._manifest, self.query, self.store.root)
        self._counts = RowCounts(self.store, self._manifest, self.query)
        needed = self._needs_counts()
        if needed:
            self._counts.grids()  # here, so that workers need not
        if needed or not self.query.where:
            self._dealer().check()

    def _needs_counts(self) -> bool:
        """Whether row groups are to be looked at before rows can be dealt."""
        if self.drop_last or self.even_batches:
            return self.grid is None or bool(self.query.where)
        return bool(self.query.where) and self.world_size > 1

    def _dealer(self) -> Dealer:
        return Dealer(
            self._manifest, self._counts, self.seed, self.rank, self.world_size, self.batch_size,
            self.buffer_bytes, self.drop_last, self.even_batches and self.world_size > 1,
            self.grid is not None,
        )  # fmt: skip

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is."""
        return self._epochs.next()

    def __len__(self) -> int:
        """Batches of this rank in an epoch, for ``len(DataLoader(stream, batch_size=None))``.

        Looks at all row groups once, unless ``grid`` says that there is one.

        Raises:
            TypeError: the images have several grids, so that it depends on the workers.
        """
        return self._dealer().batches()

    # State ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where this rank is: what it or :meth:`batches` handed out, or :meth:`mark` was told of.

        Behind the last batch of an epoch it is the beginning of the next.  Plain numbers and
        strings; with left-over rows about 10 bytes an image of a batch.
        """
        found = self._progress
        if found is None or found.finished:
            epoch = self.epoch if found is None else found.epoch + 1
            return {**self._identity(), "epoch": epoch, "workers": None, "cursors": {}}
        cursors = {str(worker): c.to_state() for worker, c in sorted(found.cursors.items())}
        workers = found.workers if cursors else None
        return {**self._identity(), "epoch": found.epoch, "workers": workers, "cursors": cursors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on there.

        Raises:
            StateMismatch: it is of another archive, split, seed, batch size or filter.
        """
        if not isinstance(state, Mapping):
            raise StateMismatch(f"a state is what state_dict() gives, not a {type(state).__name__}")
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise StateMismatch(
                    f"the state has {name} {state.get(name)!r}, this stream {mine!r}: make the "
                    "stream as it was, or start without the state"
                )
        there = {name: state.get(name) for name in ("epoch", "workers", "cursors")}
        if not (isinstance(there["epoch"], int) and isinstance(there["cursors"], Mapping)):
            raise StateMismatch("the state is of no epoch: a part of what state_dict() gives")
        self._progress = _progress(there) if there["cursors"] else None
        if get_worker_info() is None:
            self._epochs.set(there["epoch"], there if there["cursors"] else None)
        else:  # a stateful DataLoader, in a process of its own
            self._given = _progress(there)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch from its beginning; every rank must be told the same."""
        epoch = whole("epoch", epoch, 0)
        self._progress = None
        self._epochs.set(epoch)

    def mark(self, batch: CodeBatch) -> None:
        """Note in the main process that a batch of a DataLoader is consumed."""
        place, found = batch.place, self._progress
        if found is None or (found.epoch, found.workers) != (place.epoch, place.workers):
            self._progress = found = Consumed(place.epoch, place.workers, place.busy)
        found.busy = place.busy
        found.cursors[place.worker] = place.cursor

    def _identity(self) -> dict[str, Any]:
        where = [[c, o, v if isinstance(v, str | int | float) else repr(v)]
                 for c, o, v in self.query.where]  # fmt: skip
        return {
            "order": ORDER, "manifest": self._manifest.digest, "rank": self.rank,
            "world_size": self.world_size, "seed": self.seed, "batch_size": self.batch_size,
            "buffer_bytes": self.buffer_bytes, "where": where, "drop_last": self.drop_last,
            "even_batches": self.even_batches,
        }  # fmt: skip

    # Iteration -----------------------------------------------------------------------------------

    def batches(self, workers: int = 0) -> Iterator[CodeBatch]:
        """An epoch through a DataLoader of ours.

        Raises:
            BadTable, MissingValue, MixedGrids, StorageError: name the object.
            StateMismatch: the state is of another number of workers.
        """
        if workers and self.query.where:
            self._counts.grids()  # here, so that workers need not
        # Forked processes cannot use s3fs; on files a fork is the quicker start.
        context = "spawn" if workers and self.store.root.startswith("s3://") else None
        loader = DataLoader(
            self, batch_size=None, num_workers=workers, multiprocessing_context=context
        )
        for batch in loader:
            self.mark(batch)
            yield batch

    def __iter__(self) -> Iterator[CodeBatch]:
        """The next epoch, of one worker if a DataLoader calls.

        Raises:
            StateMismatch: the state is of another number of workers.
            NotHere: a forked process and S3.
        """
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if os.getpid() != self._process and info and self.store.root.startswith("s3://"):
            raise NotHere(
                "forked workers cannot read S3 (s3fs hangs): give the DataLoader "
                "multiprocessing_context='spawn', or use CodeStream.batches"
            )
        given, self._given = self._given, None
        if given:
            epoch, cursors = given.epoch, given.cursors
            self._epochs.at_least(epoch + 1)
        else:
            epoch, state = self._epochs.begin(worker, workers)
            cursors = _progress(state).cursors if state else {}
        return self._iterate(epoch, worker, workers, cursors)

    def _iterate(
        self, epoch: int, worker: int, workers: int, cursors: dict[int, Cursor]
    ) -> Iterator[CodeBatch]:
        share = self._dealer().share(epoch, worker, workers)
        progress = Consumed(epoch, workers, share.busy, dict(cursors))
        self._progress = progress
        reader = BatchReader(
            self.store, self._manifest, self.query, self.grid, self.batch_size, self.buffer_bytes,
            self.drop_last, (self.seed, epoch, self.rank, worker, self.world_size, workers),
        )  # fmt: skip
        start = cursors.get(worker, Cursor())
        place = functools.partial(Place, epoch, workers, worker, share.busy)
        for batch in reader.batches(share, start, place):
            progress.cursors[worker] = batch.place.cursor
            yield batch
        if self._progress is progress and worker not in progress.cursors:
            self._progress = None  # no row at all: the next epoch
            if workers <= 1:
                log.warning("%s: an empty epoch: no image passes %s", self.store.root,
                            self.query.where or "as ok")  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker reads the manifest itself: its Parquet reader cannot be sent."""
        return {**self.__dict__, "_manifest": self._manifest.digest, "_counts": self._counts.known}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._process, self._manifest = os.getpid(), manifest.read(self.store)
        if self._manifest.digest != state["_manifest"]:
            raise StateMismatch(f"{self.store.root}: the manifest was replaced just now: try again")
        self._counts = RowCounts(self.store, self._manifest, self.query, state["_counts"])


def _progress(state: Mapping[str, Any]) -> Consumed:
    cursors = {int(worker): Cursor.from_state(c) for worker, c in state["cursors"].items()}
    return Consumed(state["epoch"], state["workers"], None, cursors)
