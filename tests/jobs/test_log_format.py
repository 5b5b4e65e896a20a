"""``--log-format json``: every line of standard error is a record, replicas' lines included."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from pipeline import logs
from pipeline.plan import ShardFailure, ShardResult, ShardSpec
from pipeline.work.host import Host
from tests.corpus import jpeg, make_tar
from tests.models import tiny_bytes

FACTS = {"time", "level", "logger", "message"}


def job(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """jobs.encode on one whole shard and one that is a picture, in a process of its own."""
    shards = folder / "shards"
    shards.mkdir(exist_ok=True)
    (shards / "0.tar").write_bytes(make_tar([("a.jpg", jpeg(64, 64)), ("b.jpg", jpeg(64, 64))]))
    (folder / "tiny.safetensors").write_bytes(tiny_bytes())
    given = ["--input", str(shards), "--output", str(folder / "archive"), "--store", "codes",
             "--quality", "3", "--weights", str(folder / "tiny.safetensors"), "--device", "cpu",
             "--local", *arguments]  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "jobs.encode", *given], capture_output=True, text=True, timeout=300,
        env={k: v for k, v in os.environ.items() if k != logs.RUN} | environment,
    )  # fmt: skip


def records(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert found and all(set(record) >= FACTS for record in found)
    return found


def test_every_line_of_a_run_is_json_and_names_the_run(tmp_path: Path) -> None:
    done = job(tmp_path, "--log-format", "json")
    assert done.returncode == 0, done.stderr
    found = records(done)
    named = {record["run"] for record in found if "run" in record}
    (run,) = os.listdir(tmp_path / "archive" / "runs")
    assert named == {run.removesuffix(".json")}
    assert any(record["message"].startswith("progress") for record in found)


def test_a_replica_names_shard_and_process_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> ShardResult:
        raise ValueError("no such thing")

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    monkeypatch.setattr(logging.getLogger("pipeline"), "handlers", [handler])
    host = Host.__new__(Host)  # without a model
    host.work, host.store, host.plan = fails, None, None  # type: ignore[assignment]
    host.replica = types.SimpleNamespace(clocks={})  # type: ignore[assignment]
    failed = host.run(ShardSpec("0-abc", "s3://b/0.tar", 1, "e"), 1)
    assert isinstance(failed, ShardFailure) and "no such thing" in failed.message
    (record,) = map(json.loads, stream.getvalue().splitlines())
    host_name, _, pid = record["replica"].rpartition(":")
    assert host_name and int(pid) == os.getpid() and record["shard"] == "0-abc"
    assert record["level"] == "ERROR" and "ValueError: no such thing" in record["error"]


def test_an_error_for_a_person_is_a_record_too(tmp_path: Path) -> None:
    done = job(tmp_path, "--weights", str(tmp_path / "none"), PQMIM_LOG_FORMAT="json")
    assert done.returncode == 2 and "none" in records(done)[-1]["message"]


def test_text_is_as_before(tmp_path: Path) -> None:
    done = job(tmp_path)
    assert done.returncode == 0
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.stderr.splitlines()[0])


def test_what_a_remote_replica_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.RUN, "now")
    monkeypatch.delenv(logs.FORMAT, raising=False)
    assert logs.inherited() == {}
    monkeypatch.setenv(logs.FORMAT, "json")
    assert logs.inherited() == {logs.FORMAT: "json", logs.RUN: "now"}
