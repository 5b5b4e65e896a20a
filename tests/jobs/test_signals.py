"""Ctrl-C and SIGTERM: the first unwinds the job, the second ends it at once."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from jobs import common

JOB = """
import sys, time
from jobs import common

def main():
    try:
        print("working", flush=True)
        time.sleep(10_000)
    finally:
        print("closing", flush=True)
        time.sleep({closing})
        print("closed", flush=True)

sys.exit(common.run(main))
"""


def start(closing: float) -> subprocess.Popen[str]:
    job = subprocess.Popen(
        [sys.executable, "-c", JOB.format(closing=closing)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert job.stdout is not None and job.stdout.readline() == "working\n"
    return job


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_closes_what_is_open_and_exits_with_130(number):
    job = start(closing=0)
    job.send_signal(number)
    out, err = job.communicate(timeout=500)
    assert out == "closing\nclosed\n" and job.returncode == common.INTERRUPTED
    assert err == "interrupted; run the same command again to resume\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_waits_for_nothing(number):
    job = start(closing=10_000)
    job.send_signal(number)
    assert job.stdout is not None and job.stdout.readline() == "closing\n"
    job.send_signal(number)
    assert job.communicate(timeout=500)[0] == ""
    assert job.returncode == common.INTERRUPTED
