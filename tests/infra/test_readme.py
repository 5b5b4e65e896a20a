"""infra/README.md: the commands of its first section run, the others parse, each word counts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.archive import commit
from pipeline.store.storage import Store
from tests.conftest import free_ports
from tests.infra.commands import lines_of, problems_of
from tests.infra.spelling import INFRA, ROOT, unnoticed

README = (INFRA / "README.md").read_text()
BLOCKS = re.findall(r"(?ms)^```sh\n(.*?)^```$", README)
LOOPBACK = BLOCKS[0]
KNOWN = {  # what stands in the commands and is no option, file, number or address
    "add", "kuberay", "kuberay-operator", "kuberay/kuberay-operator", "cuda", "pqmim", "shards",
    "REGISTRY/pqmim:VERSION", "BUCKET", "rayjob", "ray.io/node-type=head", "ray-head", "archive-1",
    "service/pqmim-head-svc", "https://ray-project.github.io/kuberay-helm/", "check", "rules",
    "s3://BUCKET/shards", "s3://BUCKET/archive", "/data/shards", "/data/archive", "--nodes=8",
    "$PWD/examples/shards", "$PWD/.run/archive", ".run/archive", "cpu", "codes", "http://127.0.0.1:8265",
}  # fmt: skip
SAID = {  # where our own and other programs read a name that we choose
    "export": {"RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=$PWD/.run/ray_token",
               "RAY_USAGE_STATS_ENABLED=0"},
    "RAY_AUTH_MODE": {"RAY_AUTH_MODE=token"},
}  # fmt: skip


def value_problems(words: list[str]) -> list[str]:
    """Words of one command that are neither an option, a file, a number nor known."""
    program, *rest = words
    if program in ("aws", "ray", "kubectl", "docker", "helm"):
        rest = rest[{"ray": 1, "kubectl": 1, "docker": 1, "helm": 1, "aws": 2}[program] :]
    return [
        f"{program}: {word}" for word in rest
        if not word.startswith("--") and not re.fullmatch(r"-\w|[\d.]+", word)
        and word not in KNOWN and not (ROOT / word.removeprefix("file://")).is_file()
    ]  # fmt: skip


def problems(text: str) -> list[str]:
    """Of the commands of all blocks but the first: they parse, and nothing in them is unknown."""
    found = []
    for words in lines_of(text):
        if "=" in words[0]:
            assignment, *words = words
            found += [] if assignment in SAID["RAY_AUTH_MODE"] else [assignment]
        found += problems_of(words)
        split = words.index("--") if "--" in words else len(words)
        known = split if words[:3] == ["ray", "job", "submit"] else len(words)
        words_of_ray = {"job", "submit", "status", "-m", "jobs.status", "jobs.encode"}
        found += value_problems([w for w in words[:known] if w not in words_of_ray])
        found += value_problems(["job", *words[split + 4 :]])
    return found


@pytest.mark.words
def test_the_commands_parse_and_each_of_their_words_counts() -> None:
    text = "\n".join(BLOCKS[1:])
    assert problems(text) == []
    assert unnoticed(problems, text) == []


def exported_problems(text: str) -> list[str]:
    """Of the first block: what is exported, and the commands of Ray and of ours."""
    (program, *variables), *commands = [line.split() for line in text.splitlines()]
    found = [word for word in variables if word not in SAID["export"]]
    return found + [program] * (program != "export") + problems("\n".join(map(" ".join, commands)))


@pytest.mark.words
def test_the_words_of_the_first_section_count() -> None:
    kept = re.sub(r"(?m)^(mkdir|\(umask|until|kill).*\n", "", LOOPBACK)  # which are only run
    kept = re.sub(r" > \S+ 2>&1.*", "", kept.replace("\\\n", " "))
    assert exported_problems(kept) == []
    assert unnoticed(exported_problems, kept) == []


def test_every_file_of_the_folder_is_named() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "."],
        cwd=INFRA, capture_output=True, check=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        path = Path(name)
        named = {path.name, f"`{path.parent}/`", str(path)}
        assert any(word in README for word in named) or name == "README.md", name
    for word in re.findall(r"`([\w./]+\.(?:ya?ml|json|sh|sbatch|md))`", README):
        assert (INFRA / word).exists() or (ROOT / word).exists(), word


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """The files that git knows, elsewhere; a head that a failed run leaves behind is ended."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    yield tmp_path
    pid = tmp_path / ".run" / "head.pid"
    if pid.exists():
        subprocess.run(["kill", "-TERM", pid.read_text().strip()], capture_output=True)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_first_section_runs_from_a_clean_clone(clone: Path) -> None:
    port = free_ports(6)
    script = LOOPBACK.replace("6379", str(port)).replace(
        "--dashboard-port=8265", f"--dashboard-port={port + 1} --ray-client-server-port={port + 2} "
        f"--dashboard-agent-listen-port={port + 3}"
    ).replace("8265", str(port + 1))  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # Ray's sockets have a limit
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
        environment = kept | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_TMPDIR": short,
            "AUTOSCALER_METRIC_PORT": str(port + 4), "DASHBOARD_METRIC_PORT": str(port + 5),
        }  # fmt: skip
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{script}wait\n"], cwd=clone, env=environment,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=800,
        )  # fmt: skip
    assert done.returncode in (0, 128 + signal.SIGTERM), done.stdout
    archive = Store(str(clone / ".run" / "archive"))
    assert len(commit.committed_ids(archive)) == 2
    assert "SUCCEEDED" in done.stdout or "succeeded" in done.stdout
    assert "2 of 2 shards committed" in done.stdout
