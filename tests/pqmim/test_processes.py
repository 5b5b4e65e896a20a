"""Processes that fork after use, start with a damaged cache of machine code, or run with -OO."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import tiny_bytes

ROOT = Path(__file__).parents[2]
PREPARE = """
import hashlib, logging, os, signal, sys
import numpy as np
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="LOG %(message)s")
import torch
torch.set_num_threads(THREADS)
from pqmim import Codec
codec = Codec.load("tiny.safetensors")
image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
def digest(codec):
    data = codec.compress(image)
    assert codec.decompress(data).shape == (3, 70, 90)
    return hashlib.sha256(data).hexdigest()
"""
FORK = """
wanted = digest(codec)
(torch.ones(4_000_000) + 1).sum()  # PyTorch's threads are there by now, if there are any
children = []
for make in (lambda: codec, lambda: Codec.load("tiny.safetensors")):
    child = os.fork()
    if child == 0:
        signal.alarm(300)  # a test that hangs is one that fails
        print("SAME" if digest(make()) == wanted else "OTHER", torch.get_num_threads(), flush=True)
        os._exit(0)
    print("STATUS", os.waitpid(child, 0)[1], flush=True)
print("PARENT", torch.get_num_threads(), digest(codec) == wanted, flush=True)
"""
POOL = """
import multiprocessing
def work(i):
    return digest(codec)
if __name__ == "__main__":
    wanted = digest(codec)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print("POOL", pool.map(work, range(4)) == [wanted] * 4)
"""


def run(folder: Path, code: str, *flags: str, threads: int = 1, **environment: str) -> list[str]:
    """The lines that a fresh process prints, beside weights tiny.safetensors."""
    (folder / "tiny.safetensors").write_bytes(tiny_bytes(prior=True))
    (folder / "run.py").write_text(PREPARE.replace("THREADS", str(threads)) + code)
    done = subprocess.run(
        [sys.executable, *flags, "run.py"], cwd=folder, capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_process_that_forks_after_use_works(tmp_path, threads):
    lines = run(tmp_path, FORK, threads=threads)
    assert lines.count("SAME 1") == 2 and lines.count("STATUS 0") == 2
    assert f"PARENT {threads} True" in lines, "the parent keeps its threads"
    said = [line for line in lines if line.startswith("LOG a forked process: one PyTorch thread")]
    assert len(said) == (2 if threads > 1 else 0) and all("spawned" in line for line in said)


def test_a_pool_that_forks_after_use_works(tmp_path):
    assert "POOL True" in run(tmp_path, POOL, threads=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> tuple[Path, str]:
    """A folder of machine code, filled by a process, and the digest that it printed."""
    pytest.importorskip("numba")
    folder = tmp_path_factory.mktemp("cache")
    lines = run(folder, "print(digest(codec))", NUMBA_CACHE_DIR=str(folder / "numba"))
    assert any("compiling" in line for line in lines)
    return folder, lines[-1]


DAMAGE = {"empty": lambda data: b"", "cut": lambda data: data[: len(data) // 2],
          "zeros": lambda data: bytes(len(data))}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("kind", "damage"), [
    ("nbi", "empty"), ("nbc", "cut"), ("nbi", "zeros"),
])  # fmt: skip
def test_a_damaged_cache_is_made_anew_with_a_line_in_the_log(cache, kind, damage):
    folder, wanted = cache
    files = list((folder / "numba").rglob(f"*.{kind}"))
    assert len(files) > 5
    for path in files:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    code = "print(type(codec.prior).__name__)\nprint(digest(codec))"
    lines = run(folder, code, NUMBA_CACHE_DIR=str(folder / "numba"))
    assert lines[-1] == wanted
    assert sum("damaged files of Numba's, compiled anew" in line for line in lines) == 1, lines
    assert not [x for x in run(folder, code, NUMBA_CACHE_DIR=str(folder / "numba")) if "LOG" in x]


@pytest.mark.long
def test_optimised_bytecode_makes_the_same_bytes(tmp_path):
    code = "print(digest(codec), __debug__)"
    one = {"NUMBA_DISABLE_JIT": "1"}  # the engine that need not be compiled
    plain = run(tmp_path, code, **one)[-1].split()
    optimised = run(tmp_path, code, "-OO", **one)[-1].split()
    assert plain == [optimised[0], "True"] and optimised[1] == "False"


@pytest.mark.parametrize("module", ["pqmim", "jobs", "jobs.encode"])
def test_commands_need_no_docstrings(module):
    done = subprocess.run(
        [sys.executable, "-OO", "-m", module, "--help"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout) > 200
