"""SIGKILL at every step of a run, on local files and on S3; then the same command again.

The steps are found, not listed: see tests/crashing.py.  The short form takes a sample of the steps
of a run over one shard; the long form takes each, over several shards, and two processes at once.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.dataset
import pytest

from pipeline.archive import layout
from pipeline.store.storage import Store
from tests.archives import committed, shard
from tests.crashing import Crashing, job
from tests.faulty import faulty_s3

KILLED, FINISHED = -signal.SIGKILL, 0


@pytest.fixture(scope="module")
def crashing() -> Iterator[Crashing]:
    """The process whose forks are killed."""
    process = Crashing()
    yield process
    process.close()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where there is /dev/shm: a killed process loses nothing that a disk would keep,
    and thousands of fsync calls take minutes on a disk that is shared."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="crash-", dir=memory))
    yield path
    shutil.rmtree(path)


class Target:
    """An input, a new archive for every try, and what an undisturbed run gives."""

    def __init__(self, folder: Path, root: str, shards: int) -> None:
        self.tars = [
            str(shard(folder / f"in-{shards}" / f"{n}.tar", 10 * n)) for n in range(shards)
        ]
        self.root, self.tries = root, 0
        job(self.next(), self.tars)
        self.expected = contents(Store(self.last))
        self.rows = [sum(e.rows.values()) for e in committed(Store(self.last)).values()]

    def next(self) -> str:
        """Where nothing is yet."""
        self.tries += 1
        self.last = f"{self.root}/{self.tries}"
        return self.last

    def check(self) -> None:
        """After a disturbed run and an undisturbed one: all is as if nothing had happened."""
        store = Store(self.last)
        assert contents(store) == self.expected
        entries = committed(store)
        assert len(entries) == len(self.tars)
        assert [sum(entry.rows.values()) for entry in entries.values()] == self.rows
        for shard_id, entry in entries.items():
            name = layout.table_name(shard_id)
            info, data = store.info(name), store.get(name)
            assert info is not None and (entry.table_etag, entry.table_bytes) == (
                info.etag,
                len(data),
            )
            assert entry.table_sha256 == hashlib.sha256(data).hexdigest()
        if self.last.startswith("/"):  # what a killed writer leaves is hidden from Parquet readers
            tables = pyarrow.dataset.dataset(f"{self.last}/codes", format="parquet")
            assert tables.count_rows() == sum(self.rows)


def contents(store: Store) -> dict[str, bytes]:
    """All objects; of the ledger, which says how long things took, and of the model, whose header
    each process writes in its own order, the names alone."""
    bare = ("ledger/", "model/")
    return {name: b"" if name.startswith(bare) else store.get(name) for name in store.names()}


@pytest.fixture
def base(request: pytest.FixtureRequest, folder: Path) -> str:
    """Where archives go: ``local`` or ``s3``, by the test's parameter of that name."""
    if request.param == "local":
        return tempfile.mkdtemp(dir=folder)
    return request.getfixturevalue("s3")


def kill_at_each(
    target: Target, crashing: Crashing, steps: Sequence[int], wide: bool
) -> dict[str, int]:
    """Kill a run at each step, resume, check; how many archives were left in which state."""
    left: dict[str, int] = {}
    for step in steps:
        ((code, _),) = crashing.run(target.next(), target.tars, step, wide=wide)
        assert code == KILLED, f"step {step}"
        names = [name.split("/")[0] for name in Store(target.last).names()]
        state = f"{names.count('codes')} tables, {names.count('ledger')} entries"
        left[state] = left.get(state, 0) + 1
        job(target.last, target.tars)
        target.check()
    return left


@pytest.mark.parametrize(("base", "points"), [("local", 30), ("s3", 8)], indirect=["base"])
def test_a_run_killed_at_a_sample_of_its_steps_is_completed_by_the_next(
    folder: Path, base: str, points: int, crashing: Crashing
) -> None:
    target = Target(folder, base, shards=1)
    ((code, steps),) = crashing.run(target.next(), target.tars, 0)
    assert code == FINISHED and steps > 150
    target.check()
    sample = [1 + i * (steps - 1) // (points - 1) for i in range(points)]
    left = kill_at_each(target, crashing, sample, wide=False)
    assert {"0 tables, 0 entries", "1 tables, 1 entries"} <= set(left)


@pytest.mark.parametrize("base", ["local", "s3"], indirect=True)
def test_two_runs_at_once_leave_what_one_leaves(
    folder: Path, base: str, crashing: Crashing
) -> None:
    target = Target(folder, base, shards=2)
    ends = crashing.run(target.next(), target.tars, 0, 0)
    assert [code for code, _ in ends] == [FINISHED, FINISHED]
    target.check()


@pytest.mark.chaos
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("base", "shards", "wide"),
    [("local", 1, True), ("local", 3, False), ("s3", 1, True), ("s3", 2, False)],
    indirect=["base"],
)
def test_a_run_killed_at_any_step_is_completed_by_the_next(
    folder: Path, base: str, shards: int, wide: bool, crashing: Crashing
) -> None:
    target = Target(folder, base, shards)
    ((code, steps),) = crashing.run(target.next(), target.tars, 0, wide=wide)
    assert code == FINISHED
    left = kill_at_each(target, crashing, range(1, steps + 1), wide)
    for count in range(1, shards + 1):  # the two states between the writes of every shard
        assert left[f"{count} tables, {count - 1} entries"] >= 1, left
        assert left[f"{count} tables, {count} entries"] >= 1, left
    ((code, _),) = crashing.run(target.next(), target.tars, steps + 1, wide=wide)
    assert code == FINISHED, "there are more steps than were counted"


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("base", ["local", "s3"], indirect=True)
def test_of_runs_at_once_some_killed_the_others_leave_what_one_leaves(
    folder: Path, base: str, crashing: Crashing
) -> None:
    target, chance = Target(folder, base, shards=2), random.Random(4)
    for round_ in range(60):
        kill_at = [0, chance.randrange(1, 450), chance.choice([0, chance.randrange(1, 450)])]
        ends = crashing.run(target.next(), target.tars, *kill_at)
        assert ends[0][0] == FINISHED, f"round {round_}, {kill_at}"
        assert {code for code, _ in ends} <= {FINISHED, KILLED}
        target.check()


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("create_only", ["ignore", "check"])
def test_runs_at_once_on_a_store_without_conditional_put(
    folder: Path, s3: str, moto_server: str, crashing: Crashing, create_only: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    target = Target(folder, s3, shards=2)
    with faulty_s3(moto_server) as proxy:
        proxy.create_only = create_only
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert not Store(f"{s3}/probe").probe()
        for _ in range(30):
            ends = crashing.run(target.next(), target.tars, 0, 0, conditional=False)
            assert [code for code, _ in ends] == [FINISHED, FINISHED]
            target.check()
