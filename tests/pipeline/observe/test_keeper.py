"""The record of a run while it goes on: over a simulated hour, with a store that fails or hangs."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest

from jobs import status
from pipeline.driver import run as driver
from pipeline.driver.pace import Limits
from pipeline.driver.report import Progress
from pipeline.observe import keeper
from pipeline.observe.keeper import EVERY_S, FIRST_S, Keeper
from pipeline.store.storage import StorageError, Store
from tests.archives import encoded, shard
from tests.examples.test_page import Page
from tests.pipeline.driver.test_advice import plan
from tests.pipeline.driver.test_run import SimulatedPool, names, spec

SHARDS, SECONDS = 120, 60.0  # one after the other on two replicas: an hour


class Noting(Store):
    """Remembers what was written, and what a reader would have seen of it then."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.written: list[tuple[str, bytes]] = []

    def put(self, name: str, data: bytes) -> None:
        self.written.append((name, data))
        super().put(name, data)

    def states(self) -> list[str]:
        return [json.loads(d)["state"] for name, d in self.written if name.endswith(".json")]


def begun(store: Store) -> tuple[Keeper, Progress, SimulatedPool]:
    """A run of an hour that has a keeper."""
    pool = SimulatedPool(lambda *_: (SECONDS, "ok"))
    progress = Progress(SHARDS, bytes_left=1, started=pool.now, run="20260101T000000Z-aa")
    return Keeper(store, plan(), progress), progress, pool


def drive(store: Store, progress: Progress, pool: SimulatedPool) -> None:
    """To its end."""
    own, shards = Store(f"{store.root}/own"), map(spec, names(SHARDS))
    driver.run(shards, pool, own, progress, 1.0, 2, Limits(), pool.clock)


def hour(store: Store) -> tuple[Keeper, float]:
    """A run in which writing takes no simulated time, and the seconds that it took."""
    found, progress, pool = begun(store)
    begin = pool.now

    def act(*_: object) -> tuple[float, str]:
        if found._writing is not None:
            found._writing.result(300)
        return SECONDS, "ok"

    pool.act = act
    drive(store, progress, pool)
    progress.end()
    return found, pool.now - begin


def test_a_run_is_written_every_five_minutes_and_at_its_end(tmp_path: Path) -> None:
    store = Noting(str(tmp_path))
    found, seconds = hour(store)
    assert found.keep("complete")["state"] == "complete"
    wanted = (seconds - FIRST_S) / EVERY_S
    assert wanted / 2 < len(store.states()) - 1 <= wanted + 1
    assert set(store.states()[:-1]) == {"running"} and store.states()[-1] == "complete"
    summaries = [json.loads(data) for name, data in store.written if name.endswith(".json")]
    done = [summary["shards_done"] for summary in summaries]
    assert done == sorted(done) and done[0] < SHARDS and done[-1] == SHARDS
    pages = [data.decode() for name, data in store.written if name.endswith("/report.html")]
    assert len(pages) == len(summaries)
    shown = Page(pages[0])
    assert shown.open == [] and f"{done[0]} of {SHARDS} shards running" in shown.text
    assert {name.rsplit("/", 1)[0] for name, _ in store.written} == {"runs/20260101T000000Z-aa"}


class Broken(Noting):
    """Cannot be written any more."""

    def put(self, name: str, data: bytes) -> None:
        raise StorageError(f"{name}: gone")


def test_a_store_that_fails_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, keeper.__name__):
        found, _ = hour(Broken(str(tmp_path)))
        assert found.keep("complete")["shards_done"] == SHARDS
    said = [r.getMessage() for r in caplog.records if r.name == keeper.__name__]
    assert len(said) > 1 and all("could not be kept" in line and "gone" in line for line in said)


class Hanging(Noting):
    """Does not answer until it is told to."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.asked, self.answer = threading.Event(), threading.Event()

    def put(self, name: str, data: bytes) -> None:
        self.asked.set()
        assert self.answer.wait(300)
        super().put(name, data)


def test_a_store_that_hangs_is_asked_once_and_the_last_word_comes_last(tmp_path: Path) -> None:
    store = Hanging(str(tmp_path))
    found, progress, pool = begun(store)
    drive(store, progress, pool)  # and it did not wait
    assert progress.done == SHARDS and store.asked.wait(300) and store.written == []
    ended = threading.Thread(target=progress.end)
    ended.start()
    store.answer.set()
    ended.join(300)
    found.keep("complete")
    assert store.states() == ["running", "complete"]


def test_status_says_when_a_run_that_goes_on_was_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = encoded(tmp_path / "archive", [shard(tmp_path / "0.tar")])
    progress = Progress(9, run="20990101T000000Z-aa")
    found = Keeper(archive.store, archive.plan, progress)
    seen = found.keep("running")
    status.main(["--archive", str(archive.root)])
    text = capsys.readouterr().out
    assert f"last run, 20990101T000000Z-aa as it was at {seen['as_of']}:\nrunning: 0 of 9" in text
