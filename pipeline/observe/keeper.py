"""The record of a run: its summary and its page, at its end and, every few minutes, until then.

So that somebody can look while it goes on, and that a run that is killed leaves more than its
ledger.  What is written on the way is made by the driver, in some milliseconds, and written by a
thread of its own: a store that does not answer costs the run nothing, and is said in the log.
"""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.driver.fleet import Fleet
from pipeline.driver.report import Progress
from pipeline.observe import page
from pipeline.observe.history import History
from pipeline.observe.page import About
from pipeline.plan import Plan, ShardResult, ShardSpec
from pipeline.store.storage import StorageError, Store

log = logging.getLogger(__name__)
FIRST_S, EVERY_S = 60.0, 300.0


class Keeper:
    """Of one run; a :class:`pipeline.driver.report.Watcher`."""

    def __init__(self, store: Store, plan: Plan, progress: Progress) -> None:
        self.store, self.plan, self.progress = store, plan, progress
        self.history = History()
        self._due: float | None = None
        self._writing: Future[bool] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keeper")
        progress.watchers += [self.history, self]

    def shard(self, result: ShardResult, seconds: float) -> None:
        """A shard is committed, which progress and history know."""

    def given_up(self, spec: ShardSpec, reason: str) -> None:
        """A shard is quarantined, which they know."""

    def look(self, progress: Progress, fleet: Fleet, wanted: int, now: float) -> None:
        """Begin to write, if it is time and the last time has come to its end."""
        if self._due is None:
            self._due = now + FIRST_S
        if now < self._due or (self._writing is not None and not self._writing.done()):
            return
        self._due = now + EVERY_S
        summary = self.progress.summary(self.plan, "running")
        self._writing = self._thread.submit(self._write, summary, self._page(summary))

    def end(self, progress: Progress, now: float) -> None:
        """Wait for what is being written: it must not come after the last word."""
        self._thread.shutdown()

    def keep(self, state: str, message: str = "") -> dict[str, object]:
        """Write the last word: how the run ended, and why if not at its end; the summary."""
        summary = self.progress.summary(self.plan, state)
        if self._write(summary, self._page(summary, message)):
            log.info("a page of this run: %s", self.store.url(self._name("report.html")))
        return summary

    def _page(self, summary: dict[str, object], message: str = "") -> str:
        about = About(self.progress.run, self.store.root, message)
        return page.render(summary, self.history, self.plan, about)

    def _name(self, name: str) -> str:
        return f"runs/{self.progress.run}/{name}"

    def _write(self, summary: dict[str, object], html: str) -> bool:
        """Whether it could be: a store that is dead must not hide how the run ended."""
        try:
            self.store.put(
                self._name("summary.json"), (json.dumps(summary, indent=1) + "\n").encode()
            )
            self.store.put(self._name("report.html"), html.encode())
        except StorageError as error:
            log.warning("the summary of this run could not be kept: %s", error)
            return False
        return True
