"""``jobs.transcode``: there and back, resume, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import common, encode, transcode, verify
from pipeline.store.storage import Store
from tests.archives import Archive, begin, encoded, shard
from tests.models import tiny_bytes


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Two shards of bitstreams."""
    inputs = [shard(tmp_path / f"in/{i}.tar", 10 * i) for i in range(2)]
    return encoded(tmp_path / "archive", inputs, store="bitstream")


def run(source: object, output: object, store: str, *more: str) -> int:
    arguments = ["--archive", str(source), "--output", str(output), "--store", store,
                 "--device", "cpu", *more]  # fmt: skip
    return common.run(lambda: transcode.main(arguments))


def tree(root: Path, *parts: str) -> dict[str, bytes]:
    return {
        name: Store(str(root)).get(name) for part in parts for name in Store(str(root)).names(part)
    }


def test_to_raw_codes_and_back_is_the_same_archive(archive, tmp_path, request):
    there, back = tmp_path / "raw", tmp_path / "back"
    assert run(archive.root, there, "codes", "--replicas", "2", "--local") == common.OK
    request.getfixturevalue("here")
    assert run(there, back, "bitstream") == common.OK
    parts = ("codes/", "model/", "plan.json", "inputs.parquet")
    assert tree(back, *parts) == tree(archive.root, *parts)
    assert tree(there, "model/") == tree(archive.root, "model/")
    assert tree(there, "codes/") != tree(back, "codes/")
    for root in (there, back):
        arguments = ["--archive", str(root), "--device", "cpu", "--min-psnr", "0"]
        assert verify.main(arguments) == common.OK


def test_the_same_command_resumes_and_so_does_encode(here, archive, tmp_path, capsys):
    output = tmp_path / "raw"
    assert run(archive.root, output, "codes") == common.OK
    whole = tree(output, "codes/")
    for kind in ("codes", "ledger"):
        min((output / kind).iterdir()).unlink()
    assert run(archive.root, output, "codes") == common.OK
    assert tree(output, "codes/") == whole
    summary = json.loads(max(output.glob("runs/*/summary.json")).read_bytes())
    assert (summary["shards_encoded"], summary["shards_done"]) == (1, 2)
    assert summary["seconds"]["code"] > 0 and summary["of_limit"] is None

    weights = tmp_path / "tiny.safetensors"
    weights.write_bytes(tiny_bytes(prior=True))
    again = ["--input", str(tmp_path / "in"), "--output", str(output), "--weights", str(weights),
             "--quality", "3", "--device", "cpu", "--store", "codes"]  # fmt: skip
    assert encode.main(again) == common.OK
    assert tree(output, "codes/") == whole


def test_an_unfinished_archive_is_transcoded_as_far_as_it_goes(here, archive, tmp_path, capsys):
    archive.table(1).unlink()
    archive.ledger(1).unlink()
    assert run(archive.root, tmp_path / "raw", "codes") == common.INCOMPLETE
    assert "1 of 2 shards are not in" in capsys.readouterr().out
    assert len(tree(tmp_path / "raw", "codes/")) == 1


def test_a_damaged_table_is_quarantined_and_the_others_go_on(here, archive, tmp_path, capsys):
    data = archive.table(0).read_bytes()
    archive.table(0).write_bytes(data[:-1] + b"x")
    assert run(archive.root, tmp_path / "raw", "codes") == common.INCOMPLETE
    assert len(tree(tmp_path / "raw", "codes/")) == 1
    archive.table(0).write_bytes(data)
    assert run(archive.root, tmp_path / "raw", "codes", "--retry-failed") == common.OK


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code == common.USAGE
    return capsys.readouterr().err


def test_what_cannot_be_done_is_refused_before_any_work(tmp_path, capsys):
    inputs = [shard(tmp_path / "in/0.tar")]
    raw = begin(tmp_path / "archive", inputs)
    new = tmp_path / "new"
    error = refusal(capsys, run(raw.root, new, "bitstream"))
    assert "no entropy model" in error and "--store codes" in error
    assert "has that already" in refusal(capsys, run(raw.root, new, "codes"))
    assert "plan.json" in refusal(capsys, run(tmp_path / "in", new, "codes"))
    assert not new.exists() or not list(new.rglob("*.parquet"))
    coded = begin(tmp_path / "coded", inputs, store="bitstream")
    assert "store: 'codes', there 'bitstream'" in refusal(
        capsys, run(coded.root, coded.root, "codes")
    )
