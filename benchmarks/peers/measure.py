"""One run of one peer: start-up apart, images a second, processor seconds, memory of all processes.

A run begins when the first picture has been decoded and the first model is loaded, whichever comes
later, and ends when its last result is written.  Processor seconds are those in between, memory the
largest sum of the proportional set sizes, both over every process that descends from the peer's,
looked at four times a second: what a process does in its last quarter of a second is not counted.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

EVERY_S = 0.25
LONGEST_S = 300.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Run:
    """What a run took."""

    start_s: float
    seconds: float
    cpu_s: float
    peak_mib: float
    code: int
    said: str  # the last lines of its log


class Watch(threading.Thread):
    """Looks at a process and all that descend from it."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pids = {pid}
        self.cpu: dict[int, float] = {}
        self.seen: list[tuple[float, float]] = []  # when, processor seconds until then
        self.peak = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(EVERY_S):
            self.look()

    def look(self) -> None:
        """Once."""
        parents = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                fields = Path("/proc", name, "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS
        grown = True
        while grown:
            ours = {pid for pid, (parent, _) in parents.items() if parent in self.pids}
            grown = not ours <= self.pids
            self.pids |= ours
        total = 0
        for pid in self.pids & parents.keys():
            self.cpu[pid] = parents[pid][1]
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        self.peak = max(self.peak, total)
        self.seen.append((time.time(), sum(self.cpu.values())))

    def between(self, begin: float, end: float) -> float:
        """Processor seconds from one moment to another."""
        before = [seconds for at, seconds in self.seen if at <= begin]
        until = [seconds for at, seconds in self.seen if at <= end + EVERY_S]
        return (until or [0.0])[-1] - (before or [0.0])[-1]


def run(command: list[str], output: Path, variables: dict[str, str], cores: str) -> Run:
    """Start a peer on these cores and wait for it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    stamps, log = output.with_suffix(".stamps"), output.with_suffix(".log")
    stamps.write_text("")
    environment = os.environ | variables | {"PEERS_STAMPS": str(stamps)}
    begin = time.time()
    with log.open("w") as file:
        process = subprocess.Popen(
            ["taskset", "-c", cores, *command], env=environment, stdout=file, stderr=file
        )
        watch = Watch(process.pid)
        watch.start()
        try:
            code = process.wait(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        finally:
            watch.over.set()
            watch.join()
    started, ended = window(stamps, output, begin)
    return Run(
        started - begin, ended - started, watch.between(started, ended), watch.peak / 1024, code,
        log.read_text(errors="replace")[-1500:],
    )  # fmt: skip


def window(stamps: Path, output: Path, begin: float) -> tuple[float, float]:
    """When the work began and ended."""
    first: dict[str, float] = {}
    for line in stamps.read_text().splitlines():
        at, what = line.split()
        first[what] = min(float(at), first.get(what, float("inf")))
    results = [p for p in output.rglob("*") if p.suffix in (".parquet", ".npy", ".json")]
    written = [p.stat().st_mtime for p in results if "runs" not in p.parts]
    started = max(first.values(), default=begin)
    return started, max(written, default=started)
