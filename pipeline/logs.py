"""How jobs and their replicas log: a line a record on standard error, as text or as JSON.

A line of JSON has ``time`` (UTC), ``level``, ``logger`` and ``message``; ``run`` in a job that has
replicas; ``shard`` (its id) and ``replica`` (host and process) within a replica's work on one; and
``error``, the traceback, where there is one.  Replicas log as their job does.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NOISY = ("botocore", "aiobotocore", "s3fs", "fsspec", "urllib3")
FORMATS = ("text", "json")
FORMAT, RUN = "PQMIM_LOG_FORMAT", "PQMIM_RUN"  # in the environment, so that replicas have them

_about: ContextVar[dict[str, str]] = ContextVar("about", default={})  # noqa: B039, never changed


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """See the module."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": time.isoformat(timespec="milliseconds"), "level": record.levelname,
            "logger": record.name, "message": record.getMessage(),
        }  # fmt: skip
        if run := os.environ.get(RUN):
            line["run"] = run
        line |= _about.get()
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up(level: int | str, handler: logging.Handler) -> None:
    """Once a process."""
    handler.setFormatter(_formatter())
    logging.basicConfig(level=level, handlers=[handler])
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


def use(form: str) -> None:
    """Log in one of ``FORMATS`` from here on, and in the processes that this one starts."""
    os.environ[FORMAT] = form
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_formatter())


def is_json() -> bool:
    """Whether the log is lines of JSON."""
    return os.environ.get(FORMAT) == "json"


def _formatter() -> logging.Formatter:
    return JsonLines() if is_json() else logging.Formatter(FORM)


def inherited() -> dict[str, str]:
    """What a replica on another machine needs in its environment to log as this process does;
    nothing if that is what it would do anyway."""
    if not is_json():
        return {}
    return {name: os.environ[name] for name in (FORMAT, RUN) if name in os.environ}


@contextmanager
def run(name: str) -> Iterator[None]:
    """Say this run in all records of this process within the block, and of those it starts."""
    before = os.environ.get(RUN)
    os.environ[RUN] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[RUN]
        else:
            os.environ[RUN] = before


@contextmanager
def about(**facts: str) -> Iterator[None]:
    """Say these facts in every record of this thread within the block."""
    token = _about.set({**_about.get(), **facts})
    try:
        yield
    finally:
        _about.reset(token)
