"""Progress for a person: a bar on a terminal, a line every 30 s elsewhere, nothing when quiet."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from tqdm import tqdm

LINE_EVERY_S = 30.0


def printable(text: str, stream: TextIO) -> str:
    """A text as a stream's encoding can hold it, the rest escaped: names of files may be of
    another encoding, and a stream that a program has put in place of ours may be strict."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def tell(text: str) -> None:
    """A line on standard error, above a progress bar if there is one."""
    tqdm.write(printable(text, sys.stderr), file=sys.stderr)


class Watch:
    """How far a computation is, for whoever asks to be told, by a block and in one thread."""

    def __init__(self) -> None:
        self._tell: ContextVar[Callable[[int, int], None] | None] = ContextVar("tell", default=None)

    @contextmanager
    def told(self, tell: Callable[[int, int], None]) -> Iterator[None]:
        """Call ``tell(done, of)`` within the block."""
        token = self._tell.set(tell)
        try:
            yield
        finally:
            self._tell.reset(token)

    def tell(self, done: int, total: int) -> None:
        """So much is done of so much."""
        if (tell := self._tell.get()) is not None:
            tell(done, total)


class Meter:
    """How far a piece of work is.  Cheap to call; what it shows is limited in rate.

    Args:
        what: the work, in a word or two.
        total: how much there is; None where nobody knows.
        unit: what is counted.
        quiet: show nothing.
        stream: where to; standard error by default.
        clock: seconds.
    """

    def __init__(
        self, what: str, total: float | None = None, unit: str = "images", *, quiet: bool = False,
        stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.what, self.total, self.unit, self.quiet = what, total, unit, quiet
        self.stream, self.clock = stream or sys.stderr, clock
        self.shown = clock() - LINE_EVERY_S  # the first line at once
        self.bar: tqdm | None = None
        if not quiet and self.stream.isatty():
            form = (
                "{desc}: {percentage:3.0f}%|{bar:20}| {postfix}" if total else "{desc}: {postfix}"
            )
            self.bar = tqdm(
                total=total, desc=what, file=self.stream, leave=False, bar_format=form
            )  # fmt: skip

    def show(self, done: float, note: str = "") -> None:
        """So much is done by now; ``note`` says more, in a few words."""
        note = note or f"{done:.0f} {self.unit}"
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.bar.n)
        elif not self.quiet and self.clock() - self.shown >= LINE_EVERY_S:
            self.shown = self.clock()
            share = f"{done / self.total:.0%}, " if self.total else ""
            self.say(f"{self.what}: {share}{note}")

    def show_run(self, seconds: float, step: int, note: str) -> None:
        """A training run with a budget of ``total`` minutes; what is left of it is the forecast."""
        left = max(0.0, 60 * (self.total or 0.0) - seconds)
        rate = step / seconds if seconds else 0.0
        eta = datetime.timedelta(seconds=round(left))
        self.show(seconds / 60, f"step {step}, {rate:.2f}/s, {note}, ETA {eta}")

    def say(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        if not self.quiet:
            self.error(text)

    def error(self, text: str) -> None:
        """A line that is said also when quiet."""
        tqdm.write(printable(text, self.stream), file=self.stream)
        self.stream.flush()

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
