"""Hand out shards, wait, retry, quarantine.  Plain Python over a pool; Ray is in actors.py.

The driver owns every retry.  What to do about a failure is a pure function, ``decide``; everything
that must survive the driver is in the archive's ledger, so the same command again resumes.
"""

from __future__ import annotations

import enum
import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from pipeline import commit
from pipeline.plan import ShardFailure, ShardResult, ShardSpec, Status
from pipeline.report import Progress
from pipeline.storage import Store

log = logging.getLogger(__name__)
MAX_ATTEMPTS = 3
MIN_IMAGES = 100  # before the share of bad images can stop a run


class Action(enum.Enum):
    """What the driver does about a failure."""

    RETRY = "retry"
    QUARANTINE = "quarantine"
    STOP = "stop"


class Stopped(Exception):
    """The run cannot go on; the message names the object, the cause and the way out."""


class Pool(Protocol):
    """What the driver needs of the replicas."""

    @property
    def free(self) -> int:
        """Shards that could be handed out now."""

    def start(self, spec: ShardSpec, attempt: int) -> None:
        """Hand out a shard."""

    def wait(self, timeout_s: float) -> list[ShardResult | ShardFailure]:
        """Collect what came back."""


def decide(failure: ShardFailure) -> Action:
    """Permission, a missing object and a plan mismatch concern the whole run and stop it at once;
    anything else is tried again, and set aside when it fails the third time."""
    if failure.kind == "fatal":
        return Action.STOP
    return Action.RETRY if failure.attempt < MAX_ATTEMPTS else Action.QUARANTINE


def run(
    specs: Iterable[ShardSpec], pool: Pool, store: Store, progress: Progress, max_bad_images: float
) -> None:
    """Drive every shard to its end: committed, or quarantined with a reason.

    Raises:
        Stopped: a failure that concerns the whole run; nothing committed is lost.
    """
    todo, again = iter(specs), deque[tuple[ShardSpec, int]]()
    running: dict[str, ShardSpec] = {}
    exhausted = False
    while True:
        while pool.free > 0 and not (exhausted and not again):
            spec, attempt = again.popleft() if again else (next(todo, None), 1)
            if spec is None:
                exhausted = True
                break
            running[spec.shard_id] = spec
            pool.start(spec, attempt)
        if not running:
            return
        for event in pool.wait(1.0):
            spec = running.pop(event.shard_id)
            if isinstance(event, ShardResult):
                progress.shard_done(event, time.monotonic())
                _check_bad_images(progress, max_bad_images)
            else:
                _handle(event, spec, again, store, progress)
        progress.show(time.monotonic(), len(running))


def _handle(
    failure: ShardFailure,
    spec: ShardSpec,
    again: deque[tuple[ShardSpec, int]],
    store: Store,
    progress: Progress,
) -> None:
    action = decide(failure)
    log.warning(
        "%s, attempt %d: %s: %s", failure.url, failure.attempt, action.value, failure.message
    )
    if action is Action.STOP:
        raise Stopped(failure.message)
    if action is Action.RETRY:
        progress.retries += 1
        again.append((spec, failure.attempt + 1))
    else:
        commit.quarantine(store, spec, failure.message, failure.attempt)
        progress.quarantined.append(spec.url)


def _check_bad_images(progress: Progress, limit: float) -> None:
    """A high share of bad images is nearly always a wrong --image-key: stop early."""
    total = sum(progress.rows.values())
    bad = total - progress.rows.get(Status.OK.value, 0)
    if total >= MIN_IMAGES and bad > limit * total:
        counts = ", ".join(f"{n} {s}" for s, n in sorted(progress.rows.items()))
        raise Stopped(
            f"{bad} of {total} images are bad ({counts}), more than --max-bad-images {limit:g}; "
            "check --image-key, or raise the limit and run the same command again"
        )
