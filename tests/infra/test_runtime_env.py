"""What a job submitted from a checkout carries: few enough bytes, and everything that it needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from pqmim import weights
from tests.infra.kuberay import runtime_env_problems
from tests.infra.spelling import INFRA, ROOT, unnoticed

TEXT = (INFRA / "runtime_env.yaml").read_text()
LARGEST = 20_000_000  # bytes of the upload


def problems(text: str) -> list[str]:
    """Ray takes it, the folder is the checkout, and somebody reads each variable."""
    runtime_env = yaml.safe_load(text)
    found = [] if runtime_env["working_dir"] == "." else [runtime_env["working_dir"]]
    return found + runtime_env_problems(runtime_env)


@pytest.mark.words
def test_it_is_right_and_each_of_its_words_counts() -> None:
    assert problems(TEXT) == []
    assert unnoticed(problems, TEXT) == []


def ignore_problems(text: str) -> list[str]:
    """Every pattern names something that is there."""
    patterns = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [pattern for pattern in patterns if not (ROOT / pattern.lstrip("/")).exists()]


@pytest.mark.words
def test_what_is_left_out_is_there() -> None:
    text = (ROOT / ".rayignore").read_text()
    assert ignore_problems(text) == []
    assert unnoticed(ignore_problems, text) == []


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that Ray makes of the files that git knows."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env import packaging

    folder = tmp_path_factory.mktemp("upload")
    clone = folder / "clone"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).symlink_to(ROOT / name)
    packaging.create_package(
        str(clone), folder / "upload.zip", include_gitignore=True, include_parent_dir=False,
        excludes=get_runtime_env_default_excludes(),
    )  # fmt: skip
    return folder / "upload.zip"


def test_the_upload_is_small_and_the_default_model_is_in_it(upload: Path, tmp_path: Path) -> None:
    assert upload.stat().st_size < LARGEST
    with zipfile.ZipFile(upload) as packed:
        packed.extractall(tmp_path)
        assert sum(info.file_size for info in packed.infolist()) < LARGEST
    assert {p.name for p in tmp_path.iterdir()} >= {"jobs", "pipeline", "pqmim"}
    assert not {p.name for p in tmp_path.iterdir()} & {"tests", "docs", "examples", "infra"}
    default = Path(weights.__file__).with_name("DEFAULT").read_text().strip()
    shipped = [path.name for path in tmp_path.rglob("*.safetensors")]
    assert shipped == [default]


def test_the_jobs_start_from_the_upload_alone(upload: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(upload) as packed:
        packed.extractall(tmp_path)
    script = "import jobs.encode, pqmim.codec as c; c.Codec.load(); print(jobs.encode.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
