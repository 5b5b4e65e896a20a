"""What a stranger types first: imports, versions and helps, without waiting for PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
import pqmim

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "ray", "pyarrow", "s3fs", "PIL")
JOBS = sorted(p.stem for p in (ROOT / "jobs").glob("*.py") if not p.stem.startswith("__"))
VERBS = [[], ["compress"], ["decompress"], ["complete"], ["info"], ["eval"], ["train"],
         ["train", "autoencoder"], ["train", "prior"]]  # fmt: skip


def python(code: str) -> str:
    """What a fresh process prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(code: str) -> str:
    return python(
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )


@pytest.mark.parametrize("job", JOBS)
def test_the_help_of_a_job_needs_no_heavy_library(job: str) -> None:
    text = loaded_by(f"import jobs.{job}; jobs.{job}.parse(['--help'])")
    assert f"usage: python -m jobs.{job}" in text and "LOADED []" in text
    assert text.count("\n") < 90, "a screen and a half"
    assert f"python -m jobs.{job}" in text.split("options:")[0].split("usage:")[1], "an example"


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_the_help_of_a_verb_needs_no_heavy_library(verb: list[str]) -> None:
    text = loaded_by(f"import pqmim.cli; pqmim.cli.parse({[*verb, '--help']!r})")
    assert "usage: pqmim" in text and "LOADED []" in text


def test_importing_the_packages_is_cheap_and_names_are_there_at_first_use() -> None:
    assert "LOADED []" in loaded_by("import pqmim, pipeline")
    text = loaded_by("from pqmim import Codec; print(Codec.__mro__[1].__name__)")
    assert "Tokenizer" in text and "'torch'" in text
    for package in (pqmim, pipeline):
        assert set(package.__all__) <= set(dir(package))
        assert all(getattr(package, name) is not None for name in package.__all__)
        assert (Path(package.__file__).parent / "py.typed").exists()
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            _ = package.nonsense


@pytest.mark.parametrize("command", [["-m", "pqmim", "--version"], ["-m", "jobs"]])
def test_commands_that_say_what_there_is(command: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0
    if command[1] == "pqmim":
        assert done.stdout == f"pqmim {pqmim.__version__}\n"
    else:
        assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == JOBS
