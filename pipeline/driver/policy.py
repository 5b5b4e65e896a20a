"""What to do about failures: pure functions and the exceptions that end a run."""

from __future__ import annotations

import enum

from pipeline.driver.report import Progress
from pipeline.plan import Status

MAX_ATTEMPTS = 3
MIN_IMAGES = 100  # before the share of bad images can stop a run


class Action(enum.Enum):
    """What the driver does about a failure."""

    RETRY = "retry"
    QUARANTINE = "quarantine"
    STOP = "stop"


class Stopped(Exception):
    """The run cannot go on; the message names the object, the cause and the way out."""


class NoReplicas(Stopped):
    """No replica is up, and none comes up."""


def decide(kind: str, strikes: int) -> Action:
    """Permission, a missing object and a plan mismatch concern the whole run and stop it at once;
    anything else is tried again, and set aside at the third failure that is the shard's own."""
    if kind == "fatal":
        return Action.STOP
    return Action.RETRY if strikes < MAX_ATTEMPTS else Action.QUARANTINE


def check_bad_images(progress: Progress, limit: float) -> None:
    """A high share of bad images is nearly always a wrong --image-key: stop early."""
    total = sum(progress.rows.values())
    bad = total - progress.rows.get(Status.OK.value, 0)
    if total >= MIN_IMAGES and bad > limit * total:
        counts = ", ".join(f"{n} {s}" for s, n in sorted(progress.rows.items()))
        raise Stopped(
            f"{bad} of {total} images are bad ({counts}), more than --max-bad-images {limit:g}; "
            "check --image-key, or raise the limit and run the same command again"
        )
