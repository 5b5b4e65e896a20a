"""The image: linted, its context, Numba's cache really filled; built where buildah is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra import tools
from tests.infra.commands import lines_of
from tests.infra.spelling import COMMENT, INFRA, ROOT, unnoticed

TEXT = (INFRA / "docker" / "Dockerfile").read_text()
BASE = "docker.io/library/python:3.11-slim-bookworm"
TORCH = "https://download.pytorch.org/whl/cpu"  # where PyTorch puts its builds without CUDA
SHELL = {  # command of a RUN -> the words that may follow it
    "apt-get": {"update", "install", "-y", "--no-install-recommends", "wget"},
    "rm": {"-rf", "/var/lib/apt/lists/*", "build"},
    "useradd": {"--uid", "1000", "--create-home", "pqmim"},
    "install": {"-d", "-o", "pqmim", "/srv/numba"},
    "pip": {"install", "--no-deps", "-c", "constraints-cpu.txt", ".[fast]", "."},
    "infra/docker/fill-cache.sh": set(),
}
ENVIRONMENT = {
    "PIP_NO_CACHE_DIR": "1", "PIP_ROOT_USER_ACTION": "ignore", "PIP_BREAK_SYSTEM_PACKAGES": "1",
    "NUMBA_CACHE_DIR": "/srv/numba", "NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "",
    "RAY_USAGE_STATS_ENABLED": "0",
    "NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
}  # fmt: skip


def instructions(text: str) -> list[tuple[str, str]]:
    """Instruction and arguments, in order."""
    lines = COMMENT.sub("", text).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(None, 1)[1].strip()) for line in lines if line.strip()]


def context() -> list[str]:
    """The files that git knows and .dockerignore lets through."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [rule[1:] for rule in rules if rule.startswith("!")]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    )  # fmt: skip
    names = listed.stdout.splitlines()
    return [n for n in names if any(n == rule or n.startswith(f"{rule}/") for rule in let_in)]


def stage_problems(steps: list[tuple[str, str]]) -> list[str]:
    """Every stage stands on one that is there, and the two images do not run as root."""
    found, known, users, stage = [], {"${BASE}"}, {}, ""
    for name, arguments in steps:
        if name == "FROM":
            parent, _, stage = arguments.partition(" AS ")
            found += [] if parent in known else [f"FROM {parent}"]
            known.add(stage)
        if name in ("USER", "WORKDIR"):
            users[stage, name] = arguments
    for target in ("cpu", "cuda"):
        right = (users.get((target, "USER")), users.get((target, "WORKDIR")))
        found += [] if right == ("1000", "/home/pqmim") else [f"{target}: {right}"]
    if known - {"${BASE}"} != {"base", "cpu-packages", "cuda-packages", "cpu", "cuda"}:
        found.append(f"stages {known}")
    return found


def problems(text: str) -> list[str]:
    """hadolint's, and the words that it takes for granted."""
    lint = subprocess.run(
        [tools.command("hadolint"), "-"], input=text, capture_output=True, text=True, timeout=60
    )
    found, steps, files = lint.stdout.splitlines(), instructions(text), context()
    environment: dict[str, str] = {}
    for name, arguments in steps:
        if name == "RUN":
            for program, *rest in lines_of(arguments):
                known = SHELL.get(program)
                strange = {*rest} - known if known is not None else {program}
                found += [f"RUN {program}: {word}" for word in strange]
        elif name == "ENV":
            environment |= dict(pair.split("=", 1) for pair in arguments.split())
        elif name == "COPY":
            *sources, _ = arguments.split()
            found += [f"COPY {s}" for s in sources if s != "." and s not in files]
        elif name == "ARG" and arguments not in (f"BASE={BASE}", f"PIP_EXTRA_INDEX_URL={TORCH}"):
            found.append(f"ARG {arguments}")
    found += [] if environment == ENVIRONMENT else [f"ENV {environment}"]
    found += [] if ("WORKDIR", "/srv/pqmim") in steps else ["WORKDIR"]
    found += [] if ("COPY", "pqmim/__init__.py pqmim/") in steps else ["COPY of the version"]
    return found + stage_problems(steps)


@pytest.mark.words
def test_the_dockerfile_is_right_and_each_of_its_words_counts() -> None:
    assert problems(TEXT) == []
    assert unnoticed(problems, TEXT) == []


def test_every_variable_of_the_image_means_something_to_somebody() -> None:
    from pip._internal.cli import cmdoptions, main_parser  # type: ignore[import-not-found]
    from pip._internal.commands import create_command  # type: ignore[import-not-found]

    assert cmdoptions and main_parser
    options = create_command("install").parser.option_list_all
    pip = {f"PIP_{o.get_opt_string()[2:].upper().replace('-', '_')}" for o in options}
    assert set(ENVIRONMENT) <= pip | tools.environment_names()


def ignore_problems(text: str) -> list[str]:
    """Each pattern lets in something that is there; the first one keeps out everything."""
    first, *rest = [line for line in text.splitlines() if not line.startswith("#")]
    found = [rule for rule in rest[:-1] if not (ROOT / rule.removeprefix("!")).exists()]
    right = first == "*" and rest[-1] == "**/__pycache__"
    return found + ([] if right else ["first and last line"])


@pytest.mark.words
def test_the_context_is_what_a_package_is_built_of() -> None:
    text = (ROOT / ".dockerignore").read_text()
    assert ignore_problems(text) == []
    assert unnoticed(ignore_problems, text) == []
    names = set(context())
    assert {"pyproject.toml", "pqmim/weights/DEFAULT", "jobs/encode.py"} <= names
    assert not {n.split("/")[0] for n in names} & {"tests", "docs", "examples", "benchmarks"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Numba's cache as the image has it, filled by the script of the image."""
    pytest.importorskip("numba", reason="no numba here; to enable: pip install 'pqmim[fast]'")
    numba = {k: v for k, v in ENVIRONMENT.items() if k.startswith("NUMBA_")}
    environment = os.environ | numba | {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = [INFRA / "docker" / "fill-cache.sh"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    assert "recognized processor" not in done.stderr
    return tmp_path / "numba"


def compiled(cache: Path) -> dict[str, int]:
    """Machine code in a cache, and when it was written."""
    return {str(p): p.stat().st_mtime_ns for p in cache.rglob("*.nbc")}


@pytest.mark.long
def test_nothing_is_compiled_again_after_the_cache_was_filled(cache: Path, tmp_path: Path) -> None:
    before = compiled(cache)
    assert len(before) > 5
    script = (
        "import torch; from pqmim.codec import Codec; c = Codec.load();"
        "x = torch.randint(0, 255, (3, 96, 160), dtype=torch.uint8);"
        "c.compress(x, 8)"
    )
    numba = {k: v for k, v in ENVIRONMENT.items() if k.startswith("NUMBA_")}
    environment = os.environ | numba | {"NUMBA_CACHE_DIR": str(cache)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=170)
    assert compiled(cache) == before


def script_problems(text: str) -> list[str]:
    """shellcheck, and the commands that it cannot know."""
    lint = [tools.command("shellcheck"), "-"]
    done = subprocess.run(lint, input=text, capture_output=True, text=True, timeout=60)
    known = {"set", "trap", "cd", "python", "pqmim", "folder=$"}
    words = {line.split("(")[0].split()[0] for line in COMMENT.sub("", text).split("\n") if line}
    return done.stdout.splitlines() + sorted(w for w in words - known if not w.startswith("#!"))


def test_the_script_that_fills_the_cache() -> None:
    text = (INFRA / "docker" / "fill-cache.sh").read_text()
    assert script_problems(text) == []
    assert re.search(r"^set -eu$", text, re.M)  # so that a misspelt word stops the build
