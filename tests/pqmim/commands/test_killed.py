"""A process that is killed, interrupted, or not alone leaves whole files and nothing else."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pqmim.cli import INTERRUPTED, main
from tests.models import tiny_bytes

ROOT = Path(__file__).parents[3]
PATIENCE_S = 240.0
KILLS = 12
WRITER = """
import sys
from pqmim.commands.files import Output
who, number = sys.argv[1].encode(), 0
print("ready", flush=True)
while True:
    number += 1
    Output("x.pqm", force=True).write((b"%s%09d" % (who, number)) * (1 + number % 7 * 40_000))
"""


def start(*command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *command], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def writer(who: str) -> subprocess.Popen[str]:
    """A process that writes x.pqm over and over, in its own pattern and many lengths."""
    process = start("-c", WRITER, who)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def is_whole(data: bytes) -> bool:
    """Whether it is one of the files of :func:`writer`."""
    first, number = data[:10], int(data[1:10])
    return data == first * (1 + number % 7 * 40_000)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_killed_at_any_moment_the_file_is_one_that_was_written(folder):
    moments = random.Random(0)
    (folder / "x.pqm").write_bytes(b"z000000007")
    for _ in range(KILLS):
        process = writer("a")
        time.sleep(moments.random() / 20)
        process.kill()
        process.communicate(timeout=PATIENCE_S)
        assert is_whole((folder / "x.pqm").read_bytes())
    assert (folder / "x.pqm").read_bytes()[:1] == b"a"


def test_of_two_that_write_one_name_the_file_is_that_of_one(folder):
    both = [writer(who) for who in "ab"]
    seen = set()
    end = time.monotonic() + PATIENCE_S
    while len(seen) < 2 and time.monotonic() < end:
        data = (folder / "x.pqm").read_bytes()
        assert is_whole(data)
        seen.add(data[:1])
    for process in both:
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    assert seen == {b"a", b"b"}


def test_ctrl_c_leaves_whole_files_and_the_same_command_makes_the_others(folder):
    (folder / "w").write_bytes(tiny_bytes(prior=True))
    (folder / "in").mkdir()
    names = [f"{i:02d}" for i in range(24)]
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 256, (200, 260, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "in" / f"{name}.png")
    line = ["compress", *(f"in/{name}.png" for name in names), "--output-dir", "out",
            "--weights", "w"]  # fmt: skip
    process = start("-m", "pqmim", *line)
    end = time.monotonic() + PATIENCE_S
    while not list(folder.glob("out/*.pqm")) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == INTERRUPTED and error.endswith("pqmim: interrupted\n")
    made = sorted(os.listdir("out"))
    assert 1 <= len(made) < len(names) and {name[2:] for name in made} == {".pqm"}
    before = {name: Path("out", name).read_bytes() for name in made}
    assert main([*line, "--quiet"]) == 3  # those that are there are named
    assert sorted(os.listdir("out")) == [f"{name}.pqm" for name in names]
    for name, data in before.items():
        assert Path("out", name).read_bytes() == data
    for name in names:
        assert main(["decompress", f"out/{name}.pqm", f"{name}.png", "--weights", "w"]) == 0
