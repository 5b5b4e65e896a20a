"""``ray job submit`` against a Ray head of its own: logs, stop half-way, resume, a bad argument;
and which Ray a job joins."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from jobs import common, verify
from pipeline.archive import commit, layout
from pipeline.store.storage import Store
from tests.conftest import free_ports
from tests.corpus import jpeg, make_tar
from tests.models import tiny_bytes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SHARDS = 32
PATIENCE_S = 250.0
SIDE = 1600  # pixels; at this size the tiny model takes a third of a second an image and core


@dataclass(frozen=True)
class Head:
    """A Ray head with a dashboard, and what its clients need."""

    url: str
    address: str
    environment: dict[str, str]
    working_dir: Path

    @cached_property
    def client(self) -> Any:
        """A JobSubmissionClient: what ``ray job`` has inside, without starting Python each time."""
        from ray.job_submission import JobSubmissionClient

        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        return JobSubmissionClient(self.url, headers={"Authorization": f"Bearer {token}"})

    def submit(self, name: str, entrypoint: list[str]) -> None:
        """Submit the working directory and a command in it."""
        command, where = shlex.join(entrypoint), {"working_dir": str(self.working_dir)}
        self.client.submit_job(entrypoint=command, submission_id=name, runtime_env=where)

    def until_ended(self, name: str) -> Any:
        """What is known of a job when it has ended."""
        deadline = time.monotonic() + PATIENCE_S
        while not (info := self.client.get_job_info(name)).status.is_terminal():
            assert time.monotonic() < deadline, self.client.get_job_logs(name)
            time.sleep(0.1)
        return info


def environment_of(folder: Path) -> dict[str, str]:
    """For server and clients alike.  Ray's token check depends on whether this home ever ran Ray,
    unless both are told."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),  # a ray.init() without an address joins what it finds in there
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }


def start_command(folder: Path, port: int) -> list[str]:
    """Ports of its own, so that it can run beside another Ray."""
    names = ["port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port"]
    ports = [f"--{name}={port + i}" for i, name in enumerate(names)]
    return [
        "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.2", *ports,
        "--dashboard-host=127.0.0.1", "--num-cpus=2", "--object-store-memory=100000000",
        "--disable-usage-stats", f"--temp-dir={folder / 'ray'}",
    ]  # fmt: skip


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the dashboard answers; that it wants a token is an answer."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/api/version", timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no Ray dashboard at {url}: {log.read_text()}")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """One for all tests of this file."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: Ray's sockets in it have a limit
    code = folder / "code"
    for name in ("jobs", "pipeline", "pqmim"):
        shutil.copytree(
            REPOSITORY / name, code / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    environment, port = environment_of(folder), free_ports(4)
    url, log = f"http://127.0.0.1:{port + 1}", folder / "head.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            start_command(folder, port), env=environment, stdout=output, stderr=output
        )
    try:
        wait_for(url, process, log)
        yield Head(url, f"127.0.0.2:{port}", environment, code)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
            shutil.rmtree(folder)


def ledger(archive: Path) -> set[str]:
    """Ids of the committed shards."""
    return set(commit.committed_ids(Store(str(archive))))


def table_of(archive: Path, shard_id: str) -> tuple[int, bytes]:
    """When a table was written, and its bytes."""
    path = archive / layout.table_name(shard_id)
    return path.stat().st_mtime_ns, path.read_bytes()


def states(archive: Path) -> list[str]:
    """Of the runs, oldest first."""
    runs = sorted(archive.glob("runs/*/summary.json"))
    return [json.loads(path.read_bytes())["state"] for path in runs]


def encode_command(tmp_path: Path) -> list[str]:
    """A job of :data:`SHARDS` shards with one image each."""
    shards = tmp_path / "shards"
    shards.mkdir()
    tar = make_tar([("a.jpg", jpeg(SIDE, SIDE))])
    for number in range(SHARDS):
        (shards / f"{number:03}.tar").write_bytes(tar)
    (tmp_path / "tiny.safetensors").write_bytes(tiny_bytes())
    return ["python", "-m", "jobs.encode", "--input", str(shards), "--device", "cpu",
            "--output", str(tmp_path / "archive"), "--quality", "3", "--store", "codes",
            "--weights", str(tmp_path / "tiny.safetensors")]  # fmt: skip


@pytest.mark.long
def test_a_job_stopped_half_way_is_finished_by_the_same_command(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, archive = encode_command(tmp_path), tmp_path / "archive"
    head.submit("first", command)
    deadline = time.monotonic() + PATIENCE_S
    while len(ledger(archive)) < 3:
        assert time.monotonic() < deadline, head.client.get_job_logs("first")
        time.sleep(0.05)
    head.client.stop_job("first")
    assert head.until_ended("first").status == "STOPPED"
    before = {shard_id: table_of(archive, shard_id) for shard_id in ledger(archive)}
    assert 3 <= len(before) < SHARDS
    log = head.client.get_job_logs("first")
    assert "replica-1 on " in log and "interrupted; run the same command again" in log
    assert states(archive) == ["interrupted"]

    head.submit("second", command)
    assert head.until_ended("second").status == "SUCCEEDED"
    log = head.client.get_job_logs("second")
    assert f"{len(before)} committed" in log and f"{SHARDS} of {SHARDS} shards" in log
    assert states(archive) == ["interrupted", "complete"]
    assert len(ledger(archive)) == len(list(archive.glob("codes/**/*.parquet"))) == SHARDS
    assert {shard_id: table_of(archive, shard_id) for shard_id in before} == before
    assert verify.main(["--archive", str(archive), "--device", "cpu", "--min-psnr", "0",
                        "--sample", "2"]) == common.OK  # fmt: skip
    assert "complete" in capsys.readouterr().out


def test_a_bad_argument_fails_the_job_and_says_why(head: Head, tmp_path: Path) -> None:
    command = ["python", "-m", "jobs.encode", "--input", str(tmp_path / "no-such.tar"),
               "--output", str(tmp_path / "archive"), "--device", "cpu"]  # fmt: skip
    head.submit("bad", command)
    info = head.until_ended("bad")
    assert info.status == "FAILED" and info.driver_exit_code == common.USAGE
    log = head.client.get_job_logs("bad").splitlines()
    errors = [line for line in log if line.startswith("error: ")]
    assert len(errors) == 1 and "no-such.tar" in errors[0]
    assert not any("Traceback" in line for line in log)


@pytest.mark.long  # six times a start of Python and Ray's command line
def test_the_command_line_of_ray_runs_a_job(head: Head, tmp_path: Path) -> None:
    def ray_job(verb: str, *arguments: str, fails: bool = False) -> str:
        command = ["ray", "job", verb, "--log-color=false", "--address", head.url, *arguments]
        done = subprocess.run(
            command, env=head.environment, text=True, timeout=PATIENCE_S,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, f"{' '.join(command)}: {done.stdout}"
        return done.stdout

    def submit(name: str, entrypoint: list[str], fails: bool = False) -> str:
        where = ["--working-dir", str(head.working_dir), "--submission-id", name]
        return ray_job("submit", *where, "--", *entrypoint, fails=fails)

    command = encode_command(tmp_path)
    assert f"{SHARDS} of {SHARDS} shards" in submit("typed", command)
    assert "error: " in submit("typed-badly", [*command, "--quality", "99"], fails=True)
    assert "Job 'typed-badly' failed" in ray_job("status", "typed-badly")
    listed = ray_job("list")
    assert "typed" in listed and "SUCCEEDED" in listed and "FAILED" in listed


@pytest.mark.parametrize("named", [True, False])
def test_only_the_ray_that_ray_address_names_is_joined(head: Head, named: bool) -> None:
    script = (
        "import ray; from jobs.common import pools; from pipeline.plan import Resources; "
        "pools.connect(Resources(device='cpu')); print(ray.get_runtime_context().gcs_address)"
    )
    environment = head.environment | ({"RAY_ADDRESS": head.address} if named else {})
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=head.working_dir,
        text=True, capture_output=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    address = done.stdout.split()[-1]
    assert address.startswith("127.0.0.2:")
    assert (address == head.address) == named
