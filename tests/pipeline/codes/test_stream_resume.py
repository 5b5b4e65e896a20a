"""SIGKILL in mid-epoch, resume: the union of the rows is every row once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.codes.by_number import CodeStream
from tests.code_archives import make

GRIDS = ((2, 2), (1, 4))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(str(tmp_path_factory.mktemp("codes") / "a"), [40] * 40, GRIDS)


def train(root: str, folder: Path, world: int, workers: int, steps: int | None) -> None:
    """All ranks in turn, a batch each; keys of a batch go to a log, then the states are saved.

    With ``steps`` it stops there and waits to be killed, its workers reading ahead.
    """
    streams = [
        CodeStream(root, rank, world, batch_size=8, buffer_bytes=3000) for rank in range(world)
    ]
    saved = folder / "state.json"
    if saved.exists():
        state = json.loads(saved.read_text())
        for stream, one in zip(streams, state["ranks"], strict=True):
            stream.load_state_dict(one)
        with open(folder / "log", "r+") as log:
            log.truncate(state["logged"])
    running = [stream.batches(workers) for stream in streams]
    step, left = 0, set(range(world))
    with open(folder / "log", "a") as log:
        while left:
            for rank in sorted(left):
                batch = next(running[rank], None)
                if batch is None:
                    left.discard(rank)
                    continue
                log.write("".join(f"{key}\n" for key in batch.key))
                log.flush()
            step += 1
            if step % 3 == 0 and left:  # what was logged since the last one comes again
                save(saved, {"logged": log.tell(), "ranks": [s.state_dict() for s in streams]})
            if step == steps:
                (folder / "ready").touch()
                time.sleep(60)
    (folder / "done").touch()


def save(path: Path, state: dict[str, object]) -> None:
    """All or nothing."""
    path.with_suffix(".tmp").write_text(json.dumps(state))
    os.replace(path.with_suffix(".tmp"), path)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 8])
def test_killed_and_resumed_every_row_comes_once(made, tmp_path, world, workers):
    fork = multiprocessing.get_context("fork")
    steps = 8 if world == 8 else 40
    arguments = (made.store.root, tmp_path, world, workers, steps)
    process = fork.Process(target=train, args=arguments)
    process.start()
    deadline = time.monotonic() + 500
    while not (tmp_path / "ready").exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = (tmp_path / "log").read_text().split()
    assert process.exitcode == -signal.SIGKILL and 0 < len(before) < len(made.ok)

    again = fork.Process(target=train, args=(made.store.root, tmp_path, world, workers, None))
    again.start()
    again.join(120)
    assert again.exitcode == 0 and (tmp_path / "done").exists()
    rows = (tmp_path / "log").read_text().split()
    assert Counter(rows) == Counter(row.key for row in made.ok)
