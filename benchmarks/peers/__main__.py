"""Our job beside Ray Data, Daft, and loops like clip-retrieval's and LlamaGen's: make bench-peers.

    python -m benchmarks.peers [--images 512] [--rounds 5] [--cores 0,1]

The same model, decoder, cores and shards; pictures of 256 x 256, raw codes.  Each peer runs as its
documentation has it, and as the best of the grid below, chosen by one run each; then all of them
in turns, some rounds long.  Every code that comes out is compared by its crc32.  At last each gets
four shards of which three are damaged.  ``measure`` says what is counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import data, measure, shared
from benchmarks.peers.measure import Run

ROOT = Path(__file__).parents[2]
DAFT = ROOT / "build" / "peers" / "daft"  # pyarrow < 26 beside it, which ours is not
OURS = "this job"
GRID = {  # the first of each is its documentation's
    OURS: ["--local --replicas 2", "--local --replicas 2 --decode-threads 1"],
    "ray_data": ["--models 1 --batch 32", "--models 2 --batch 32", "--models 2 --batch 16"],
    "clip_loop": [
        "--workers 4 --batch 256 --threads 2", "--workers 1 --batch 32 --threads 2",
        "--workers 1 --batch 32 --threads 1",
    ],
    "daft_frame": ["--models 1 --batch 32", "--models 2 --batch 32"],
    "llamagen": ["--models 2 --workers 1 --batch 1", "--models 2 --workers 1 --batch 32"],
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a comparison happens."""

    folder: Path
    cores: str
    crcs: list[set[int]]

    def run(self, name: str, flags: str, shards: str, number: int = 0) -> tuple[Run, int, int]:
        """One run; images that came out right, and others."""
        slug = f"{name}-{flags}-{shards}-{number}".replace(" ", "").replace("/", "")
        output = self.folder / slug / "out"
        where = ["--input", str(self.folder / shards), "--output", str(output)]
        variables = {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        module = ["-m", f"benchmarks.peers.{name}", *flags.split()]
        if name == OURS:
            module = ["-m", "jobs.encode", *flags.split(), "--quiet", "--device", "cpu"]
            module += ["--store", "codes", "--quality", str(shared.QUALITY)]
            module += ["--resize", str(shared.SIDE), "--crop", str(shared.SIDE)]
        if name == "daft_frame":
            variables |= {"PYTHONPATH": f"{DAFT}:{ROOT}", "DO_NOT_TRACK": "1"}
        found = measure.run([sys.executable, *module, *where], output, variables, self.cores)
        if name == OURS:
            found = with_own_clock(found, output)
        keys = data.came_out(output) if output.exists() else {}
        right = data.right(keys, self.crcs)
        return found, right, len(keys) - right


def with_own_clock(found: Run, output: Path) -> Run:
    """Of our job, which says how long it worked: from its first replica to its last commit."""
    (path,) = output.glob("runs/*/summary.json")
    work_s = json.loads(path.read_bytes())["work_s"]
    spent = Run(**{**vars(found), "start_s": found.seconds - work_s, "seconds": work_s})
    return spent


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, choose, compare, damage."""
    args = parse(argv)
    environment()
    photos = data.photographs()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data.sound(folder / "sound", photos, args.images // data.SAMPLES)
        whole = data.damaged(folder / "damaged", photos)
        place = Place(folder, args.cores, data.expected(photos))
        print(f"{args.images} images of {shared.SIDE} x {shared.SIDE}, cores {args.cores}")
        best = {peer: choose(place, peer, args.images) for peer in GRID}
        compare(place, best, args)
        print(f"\ndamaged shards: {whole} pictures in them are whole")
        for peer in GRID:
            found, right, wrong = place.run(peer, best[peer], "damaged")
            last = (found.said.strip().splitlines() or [""])[-1][:120]
            print(f"  {peer:12} {right:4} came out, {wrong} wrong, exit code {found.code}: {last}")
    return 0


def environment() -> None:
    """What Daft needs, beside the project's environment and not in it."""
    if not DAFT.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(DAFT)]
        subprocess.run([*pip, "daft==0.7.26", "pyarrow<26"], check=True)


def choose(place: Place, peer: str, images: int) -> str:
    """The fastest of the grid, by one run each."""
    speeds = {}
    for flags in GRID[peer]:
        found, right, wrong = place.run(peer, flags, "sound")
        speeds[flags] = right / max(found.seconds, 1e-9)
        note = "" if (right, wrong, found.code) == (images, 0, 0) else f": {found.said[-200:]}"
        print(f"  {peer:12} {flags:45} {speeds[flags]:6.1f} images/s{note}", flush=True)
    return max(speeds, key=speeds.__getitem__)


def compare(place: Place, best: dict[str, str], args: argparse.Namespace) -> None:
    """All of them in turns, then the table."""
    pairs = dict.fromkeys((p, f) for p in GRID for f in (GRID[p][0], best[p]))
    found: dict[tuple[str, str], list[Run]] = {pair: [] for pair in pairs}
    for number in range(1, args.rounds + 1):
        for (peer, flags), runs in found.items():
            run, right, wrong = place.run(peer, flags, "sound", number)
            if (right, wrong) != (args.images, 0):
                print(f"  {peer} {flags}: {right} right, {wrong} wrong, exit code {run.code}")
            runs.append(run)
    print("\n| peer | flags | images/s | CPU s a 1,000 | peak MiB | start s |")
    print("|---|---|---|---|---|---|")
    for (peer, flags), runs in found.items():
        speed = [args.images / max(run.seconds, 1e-9) for run in runs if run.code == 0] or [0.0]
        cpu = statistics.median(1000 * run.cpu_s / args.images for run in runs)
        peak, start = (
            statistics.median(getattr(r, f) for r in runs) for f in ("peak_mib", "start_s")
        )
        print(
            f"| {peer} | {flags} | {statistics.median(speed):.1f} ({min(speed):.1f} to "
            f"{max(speed):.1f}) | {cpu:.1f} | {peak:,.0f} | {start:.1f} |", flush=True,
        )  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("benchmarks.peers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=512, help="%(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="%(default)s")
    parser.add_argument("--cores", default="0,1", help="for taskset (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
