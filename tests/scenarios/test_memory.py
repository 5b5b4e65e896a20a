"""Memory of a replica over many shards: within the bound that the README states, and not growing.

Each run is a process of its own (``benchmarks.memory``), which prints readings and exits with 1
when the peak is over the bound or, in the long form, the memory at rest grows.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory
from pipeline.plan import Plan

ROOT = Path(__file__).parents[2]


def measure(*options: str, timeout_s: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    peak, bound = map(int, re.findall(r"(?:peak|bound) (\d+) MiB", done.stdout))
    assert 0.4 * bound < peak <= bound, done.stdout  # a bound that says something


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_within_the_bound():
    measure("--shards=15", "--megapixels=4", "--queue-mb=32", timeout_s=590)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_a_hundred_shards_with_pictures_of_a_hundred_megapixels():
    measure("--shards=100", "--megapixels=100", timeout_s=3500)


def test_the_bound_grows_with_the_queue_and_with_the_largest_picture():
    plan = Plan(model="", quality=1, stride=16, codewords=16, inputs=1, inputs_digest="")
    small = memory.bound(0, 0, plan, 64 << 20, 10**6, 10**6)
    assert memory.bound(0, 0, plan, 128 << 20, 10**6, 10**6) - small == 2 * (64 << 20)
    assert memory.bound(0, 0, plan, 64 << 20, 10**8, 10**6) > 2 * 26 * 10**8
    assert memory.growth_of([100, 100, 110, 110]) == pytest.approx(0.1)
    assert memory.growth_of([100, 104, 97]) < 0.01
