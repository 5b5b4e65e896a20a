"""Which epoch an iteration is: known to a process and to the workers of its DataLoaders.

A DataLoader does not tell the data set in the main process that an iteration begins: its workers
have copies, and each is asked for an iterator.  So the next epoch stands in a small file in the
temporary folder.  Whoever begins to iterate takes it and counts on; the workers of one iteration
know each other by the seed that their DataLoader has drawn for it.  Every process that makes
DataLoaders has a file of its own, named by its number, so that forked or spawned ranks do not count
on each other's.  A process that is killed or was forked leaves its file behind,
some hundred bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import multiprocessing.context
import os
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import get_worker_info

from pipeline.codes.errors import StateMismatch

KEPT = 16  # iterations whose workers may still be coming

State = dict[str, Any]  # epoch, workers, cursors


class Epochs:
    """The next epoch of a stream, and a state from which it goes on."""

    def __init__(self) -> None:
        self._start: dict[str, Any] = {"next": 0, "resume": None, "begun": []}
        self._new_name()

    def _new_name(self) -> None:
        self._name = str(Path(tempfile.gettempdir(), f"pqmim-epochs-{uuid.uuid4().hex}"))
        weakref.finalize(self, _remove, self._name)

    def next(self) -> int:
        """The epoch that the next iteration is."""
        with self._record() as record:
            return int(record["next"])

    def set(self, epoch: int, resume: State | None = None) -> None:
        """The next iteration is this epoch, what is left of it if there is a state."""
        with self._record() as record:
            record.update(next=epoch, resume=resume)

    def at_least(self, epoch: int) -> None:
        """The next iteration is not before this epoch."""
        with self._record() as record:
            record["next"] = max(record["next"], epoch)

    def begin(self, worker: int, workers: int) -> tuple[int, State | None]:
        """The epoch of an iteration that begins here, and the state to go on from.

        Raises:
            StateMismatch: the state is of another number of workers.
        """
        info = get_worker_info()
        token = None if info is None else info.seed - info.id
        with self._record() as record:
            for one in record["begun"]:
                if info and one["token"] == token and worker not in one["there"]:
                    one["there"].append(worker)
                    return one["epoch"], one["resume"]
            resume = record["resume"]
            if resume and resume["workers"] not in (None, workers):
                raise StateMismatch(
                    f"the state is of {resume['workers']} workers, this DataLoader has {workers}: "
                    "give as many as before, or set_epoch to begin one"
                )
            epoch = record["next"]
            record.update(next=epoch + 1, resume=None)
            if info:
                new = {"token": token, "there": [worker], "epoch": epoch, "resume": resume}
                record["begun"] = [*record["begun"], new][-KEPT:]
            return epoch, resume

    @contextlib.contextmanager
    def _record(self) -> Iterator[dict[str, Any]]:
        """The file's contents, locked; written back if they were changed."""
        with open(f"{self._name}-{_main_process()}", "a+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # until the file is closed
            file.seek(0)
            before = file.read() or json.dumps(self._start)
            record = json.loads(before)
            yield record
            self._start = {**record, "begun": []}  # of processes that are forked from here
            after = json.dumps(record)
            if after != before:
                file.truncate(0)
                file.write(after)

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker has the same files; a copy goes its own way from here."""
        with self._record() as record:
            start = {**record, "begun": []}
        spawning = multiprocessing.context.get_spawning_popen() is not None
        return {"_start": start, "_name": self._name if spawning else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._name is None:
            self._new_name()


def _main_process() -> int:
    """The process whose DataLoader this is a worker of, or this one."""
    parent = multiprocessing.parent_process()
    return os.getpid() if get_worker_info() is None or parent is None else parent.pid or 0


def _remove(name: str) -> None:
    """This process's own file; that of its parent stays."""
    Path(f"{name}-{os.getpid()}").unlink(missing_ok=True)
