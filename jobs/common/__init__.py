"""What the jobs share: exit codes, logging, one way to run.

Exit codes: 0 all done; 1 crash; 2 bad arguments, plan mismatch or unusable storage; 3 finished with
failed, damaged or missing shards, or stopped; 130 interrupted.

``flags`` has the flags that several jobs have, ``shards`` what is worked on, ``work`` what the jobs
with replicas do alike, ``pools`` what runs the replicas.  A job's parser needs none of PyTorch, Ray
and pyarrow, so that ``--help`` comes at once: its ``main`` imports what it works with.
"""

from __future__ import annotations

import datetime
import io
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable

from pipeline import logs
from pqmim.meter import Meter, tell

log = logging.getLogger(__name__)
OK, CRASH, USAGE, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 130

_quiet = False  # set by --quiet


class UsageError(Exception):
    """Something that the person who typed the command can put right."""


class _Lines(logging.Handler):
    """Log records on standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(self.format(record))


class _Records(io.StringIO):
    """A stream whose lines become log records, where standard error is to have nothing else."""

    def write(self, text: str) -> int:
        if text.strip():
            log.info("%s", text.strip())
        return len(text)


def setup_logging() -> None:
    """One format for every job, on standard error."""
    logs.set_up(os.environ.get("PQMIM_LOG", "INFO").upper(), _Lines())


def be_quiet() -> None:
    """Warnings and errors alone from here on, and no progress."""
    global _quiet
    _quiet = True
    logging.getLogger().setLevel(logging.WARNING)


def meter(what: str, total: float | None = None, unit: str = "images") -> Meter:
    """Progress of a job, for a person."""
    return Meter(what, total, unit, quiet=_quiet, stream=_Records() if logs.is_json() else None)


def run(main: Callable[[], int]) -> int:
    """Call a job; errors that a person can act on become one line and an exit code."""
    setup_logging()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to resume\n")
        return INTERRUPTED
    except Exception as error:
        if not isinstance(error, _for_people()):
            raise
        if logs.is_json():
            log.error("%s", error)
        else:
            tell(f"error: {error}")
        return USAGE


def _for_people() -> tuple[type[Exception], ...]:
    """Errors whose message names the object, the cause and the way out."""
    from pipeline.archive.table import BadTable
    from pipeline.plan import PlanMismatch
    from pipeline.store.storage import StorageError
    from pqmim.checkpoint import CheckpointError

    return UsageError, PlanMismatch, StorageError, BadTable, CheckpointError


def _interrupt(*_: object) -> None:
    """Ctrl-C and SIGTERM are the same.  Raised here: Ray's job manager leaves SIGINT blocked.  What
    is open is closed on the way out; a second signal does not wait for that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    raise KeyboardInterrupt


def run_id() -> str:
    """A sortable, unique name for one submission."""
    now = datetime.datetime.now(datetime.UTC)
    return now.strftime("%Y%m%dT%H%M%S.%fZ-") + secrets.token_hex(3)
