"""``pqmim jobs``: not shadowed by what a person's folder holds; what still shadows is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.code_archives import make

ROOT = Path(__file__).parents[3]
SCRIPT = "import sys\nfrom pqmim.cli import main\nif __name__ == '__main__':\n    sys.exit(main())"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a pipeline.py, jobs/ and an archive; in bin/ the script of pip."""
    work = tmp_path / "work"
    (work / "jobs").mkdir(parents=True)
    (work / "jobs" / "__init__.py").write_text("raise ZeroDivisionError")
    (work / "pipeline.py").write_text("raise ZeroDivisionError")
    make(str(work / "archive"), [2])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pqmim").write_text(SCRIPT)
    return work


def run(folder: Path, *command: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """A command in that folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT)]))}
    return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True,
                          env=environment, timeout=600)  # fmt: skip


def test_the_script_is_not_shadowed_by_the_working_folder(folder):
    done = run(folder, "../bin/pqmim", "jobs", "status", "--archive", "archive")
    assert done.returncode == 0, done.stderr
    assert "archive" in done.stdout + done.stderr
    listed = run(folder, "../bin/pqmim", "jobs")
    assert listed.returncode == 0 and "pqmim jobs NAME" in listed.stdout
    assert "  encode  " in listed.stdout
    helped = run(folder, "../bin/pqmim", "jobs", "encode", "--help")
    assert helped.returncode == 0 and "--replicas" in helped.stdout


def test_it_is_the_job_with_its_exit_codes(folder):
    done = run(folder, "../bin/pqmim", "jobs", "status", "--archive", "none")
    direct = run(folder.parent, "-m", "jobs.status", "--archive", "none")
    assert (done.returncode, done.stdout) == (direct.returncode, direct.stdout)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    wrong = run(folder, "../bin/pqmim", "jobs", "encoed")
    assert wrong.returncode == 2 and "no job 'encoed'; there are decode, encode" in wrong.stderr


@pytest.mark.parametrize("theirs", ["jobs", "pipeline.py"])
def test_what_shadows_nevertheless_is_named(folder, theirs):
    other = "pipeline.py" if theirs == "jobs" else "jobs/__init__.py"
    (folder / other).unlink()
    if theirs != "jobs":
        (folder / "jobs").rmdir()
    for command in (["../bin/pqmim"], ["-m", "pqmim"]):
        status = [*command, "jobs", "status", "--archive", "archive"]
        done = run(folder, *status, path=str(folder))
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"pqmim jobs: {folder / theirs} stands before pqmim's own" in done.stderr
        assert run(folder, *status).returncode == 0, "only the working folder has it"
    if theirs == "pipeline.py":
        done = run(folder, "-m", "jobs.status", "--archive", "archive")
        assert f"ImportError: {folder / theirs} stands before pqmim's own" in done.stderr
