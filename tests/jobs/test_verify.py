"""jobs.verify: the gate with real replicas, what it prints and keeps, and how it goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import common, verify
from jobs.common import work as jobs_work
from pipeline.archive import commit, layout
from pipeline.driver.report import Progress
from pipeline.plan import Plan, Resources, ShardSpec
from pipeline.proof.prover import Prover
from pipeline.store.storage import Store
from pipeline.work.replica import Replica
from tests.archives import Archive, encoded, shard
from tests.corpus import jpeg, make_tar

GATE = ["--full", "--min-psnr", "0"]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Two clean shards, and one with samples that were not encoded."""
    inputs = [tmp_path / "in/0.tar", tmp_path / "in/1.tar", shard(tmp_path / "in/bad.tar")]
    for seed, path in enumerate(inputs[:2]):
        path.write_bytes(make_tar([(f"{i}.jpg", jpeg(32, 24, 9 * seed + i)) for i in range(3)]))
    return encoded(tmp_path / "archive", inputs, store="both", hash=True)


def run(archive: Archive, *flags: str) -> int:
    return verify.main(["--archive", archive.store.root, "--device", "cpu", *flags])


def newest(archive: Archive) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last record and its lines."""
    path = max(archive.root.glob("runs/*/verify.json"), key=lambda p: p.stat().st_mtime_ns)
    lines = [json.loads(line) for part in sorted(path.parent.glob("verify/*.jsonl"))
             for line in part.read_bytes().splitlines()]  # fmt: skip
    return json.loads(path.read_bytes()), lines


def test_the_gate_with_real_replicas(
    archive: Archive, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    assert run(archive, *GATE, "--replicas", "2", "--local") == common.INCOMPLETE
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("DO NOT DELETE: the originals of 1 of 3 shards must stay: bad-")
    record, lines = newest(archive)
    assert record["complete"] and not record["safe_to_delete"] and record["verdict"] == last
    assert record["proved"]["compared"] == record["proved"]["bitstreams"] == 11
    assert record["not_in_archive"] == {"decode_error": 1, "duplicate_key": 1, "too_small": 1}
    assert [line["safe_to_delete"] for line in lines] == [True, True, False]
    assert "3 of its samples" in lines[2]["why_not"]

    request.getfixturevalue("here")
    assert run(archive, *GATE, "--accept-failed-images") == common.OK
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("SAFE TO DELETE the originals of 3 shards (11 images); not covered: ")
    assert "3 failed samples (1 decode_error, 1 duplicate_key, 1 too_small)" in last

    archive.table(1).write_bytes(archive.table(1).read_bytes()[:-1])
    assert run(archive, "--decode-fraction", "0.5", "--min-psnr", "0") == common.INCOMPLETE
    text = capsys.readouterr().out
    assert (
        f"problem: {archive.specs[1].shard_id}: " in text and "not proved: of every shard" in text
    )
    assert text.splitlines()[-1].startswith("DO NOT DELETE on this: only --full")
    assert not list(archive.store.names("failed/"))


# Without Ray: the replicas' work in this process -----------------------------------------------


class Replicas:
    """Stands for the replicas: works off what it is given until ``stop_after`` shards are done."""

    def __init__(self, replica: Replica) -> None:
        self.replica, self.stop_after = replica, 10**9
        self.done: list[str] = []

    def drive(
        self, plan: Plan, left: Sequence[ShardSpec], store: Store, own: Store, _: Progress,
        __: Resources, work: Prover,
    ) -> None:  # fmt: skip
        for number, spec in enumerate(left):
            if number == self.stop_after:
                raise KeyboardInterrupt
            if spec.url in os.environ.get("POISON", ""):
                commit.quarantine(own, spec, "its replica was lost", 3)
                continue
            work(spec, plan, store, self.replica)
            self.done.append(spec.shard_id)


@pytest.fixture
def replicas(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replicas]:
    here = Replicas(archive.replica)
    monkeypatch.setattr(jobs_work, "drive", here.drive)
    yield here


def test_an_interrupted_verification_is_resumed(archive: Archive, replicas: Replicas) -> None:
    replicas.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        run(archive, *GATE)
    (folder,) = archive.root.glob("runs/*")
    assert not (folder / "verify.json").exists()
    replicas.stop_after = 10**9
    flags = [*GATE, "--accept-failed-images", "--resume", folder.name]
    assert run(archive, *flags) == common.OK
    assert replicas.done == [spec.shard_id for spec in archive.specs]  # each once
    record, lines = newest(archive)
    assert record["proved"]["compared"] == 11 and len(lines) == 3
    os.utime(archive.specs[1].url, ns=(1, 1))  # replaced, after it was proved
    assert run(archive, *flags) == common.INCOMPLETE
    assert replicas.done[3:] == [archive.specs[1].shard_id]
    assert "was replaced" in newest(archive)[0]["verdict"]


def test_a_shard_that_kills_its_replicas_is_not_proved(
    archive: Archive, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POISON", archive.specs[1].url)
    assert run(archive, *GATE, "--accept-failed-images") == common.INCOMPLETE
    record, lines = newest(archive)
    assert "could not be checked in 3 attempts: its replica was lost" in record["verdict"]
    assert [line["safe_to_delete"] for line in lines] == [True, False, True]
    assert not list(archive.store.names("failed/"))


def test_without_sources_the_exit_code_is_that_of_the_archive(
    archive: Archive, replicas: Replicas, capsys: pytest.CaptureFixture[str]
) -> None:
    for spec in archive.specs:
        Path(spec.url).unlink()
    assert run(archive, *GATE) == common.INCOMPLETE
    assert run(archive, *GATE, "--no-source") == common.OK
    text = capsys.readouterr().out
    assert text.splitlines()[-1].startswith("DO NOT DELETE on this")
    assert "not proved: no image was decoded and compared with its source" in text


def test_a_wrong_model_stops_the_gate_and_tables_are_still_checked(
    archive: Archive, replicas: Replicas, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archive.root / layout.model_name(archive.plan.model)
    path.write_bytes(path.read_bytes()[:-1])
    archive.ledger(1).unlink()
    assert run(archive, *GATE) == common.INCOMPLETE and replicas.done == []
    text = capsys.readouterr().out
    assert text.splitlines()[-1].startswith("DO NOT DELETE: model: ")
    assert f"problem: {archive.specs[1].shard_id}: a table without ledger entry" in text


def test_a_plan_that_is_replaced_meanwhile_withholds_the_verdict(
    archive: Archive, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = replicas.drive

    def replace_plan(*arguments: Any) -> None:
        drive(*arguments)
        other = replace(archive.plan, min_side=archive.plan.min_side + 1)
        archive.store.put(layout.PLAN, other.to_json())

    monkeypatch.setattr(jobs_work, "drive", replace_plan)
    assert run(archive, *GATE, "--accept-failed-images") == common.INCOMPLETE
    verdict = newest(archive)[0]["verdict"]
    assert verdict.startswith("DO NOT DELETE: plan.json: was replaced")


def test_the_quick_check_has_lines_as_well_and_never_says_safe(
    archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(archive, "--min-psnr", "0") == common.OK
    assert capsys.readouterr().out.splitlines()[-1].startswith("DO NOT DELETE on this")
    record, lines = newest(archive)
    assert record["complete"] and len(lines) == 3
    assert not any(line["safe_to_delete"] for line in lines)


@pytest.mark.parametrize(
    "flags",
    [["--full", "--decode-fraction", "0.1"], ["--decode-fraction", "0"], ["--sample", "-1"],
     ["--decode-fraction", "1.5"], ["--resume", "x"], ["--accept-failed-images"]],
)  # fmt: skip
def test_flags_that_contradict_each_other_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        verify.parse(["--archive", "x", *flags])
