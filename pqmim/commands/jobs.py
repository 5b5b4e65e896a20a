"""``pqmim jobs NAME ...``: what ``python -m jobs.NAME`` does, whatever the working folder holds.

A script of ``pip`` does not look for modules in the working folder, as ``python -m`` does: there a
person's own ``jobs`` or ``pipeline.py`` stands before ours.  Where one still does, it is named.
Jobs are imported by name, since the codec itself knows nothing of them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from pqmim.meter import tell

USAGE = 2  # exit code
PACKAGES = ("jobs", "pipeline")
HOME = Path(__file__).resolve().parents[2]  # where our packages stand side by side


def main(argv: Sequence[str]) -> int:
    """Run a job; without a name, or with --help, say which there are."""
    error = clash()
    names = sorted(p.stem for p in (HOME / "jobs").glob("[!_]*.py"))
    if error is None and argv and argv[0] not in ("-h", "--help"):
        if argv[0] in names:
            job = importlib.import_module(f"jobs.{argv[0]}")
            return int(importlib.import_module("jobs.common").run(lambda: job.main(argv[1:])))
        error = f"no job {argv[0]!r}; there are {', '.join(names)}"
    if error is not None:
        tell(f"pqmim jobs: {error}")
        return USAGE
    return int(importlib.import_module("jobs.__main__").main())


def clash(home: Path = HOME, packages: Sequence[str] = PACKAGES) -> str | None:
    """What stands before our packages on Python's path, and the way out; None if nothing does."""
    for name in packages:
        spec = importlib.util.find_spec(name)
        places = [*(spec.submodule_search_locations or [spec.origin or ""])] if spec else []
        if places and Path(places[0]).resolve() != home / name:
            return (
                f"{places[0]} stands before pqmim's own {name!r} on Python's path: take its folder "
                "out of PYTHONPATH, or rename it; 'pqmim jobs' does not look in the working "
                "folder, 'python -m jobs' does"
            )
        if not places:
            return f"no package {name!r} in {home}: install pqmim again"
    return None
