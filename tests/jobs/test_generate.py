"""``jobs.generate``: archive, pictures, resume, and its refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import common, decode, generate
from pipeline.store.storage import Store
from tests.models import tiny_bytes


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(tiny_bytes(prior=True))
    return path


def run(weights: Path, output: Path, *more: str) -> int:
    arguments = ["--weights", str(weights), "--output", str(output), "--count", "5",
                 "--size", "48x32", "--steps", "2", "--images-per-shard", "2", "--device", "cpu",
                 *more]  # fmt: skip
    return common.run(lambda: generate.main(arguments))


def tables(root: Path) -> dict[str, bytes]:
    store = Store(str(root))
    return {name: store.get(name) for name in store.names("codes/")}


def test_two_replicas_make_what_one_makes_and_resume(weights, tmp_path, capsys, request):
    assert run(weights, tmp_path / "two", "--replicas", "2", "--local") == common.OK
    request.getfixturevalue("here")
    assert run(weights, tmp_path / "one") == common.OK
    whole = tables(tmp_path / "one")
    assert len(whole) == 3 and tables(tmp_path / "two") == whole
    for kind in ("codes", "ledger"):
        min((tmp_path / "two" / kind).iterdir()).unlink()
    assert run(weights, tmp_path / "two") == common.OK
    assert tables(tmp_path / "two") == whole

    arguments = ["--archive", str(tmp_path / "one"), "--output", str(tmp_path / "pictures"),
                 "--device", "cpu"]  # fmt: skip
    assert decode.main(arguments) == common.OK
    pictures = sorted(path.name for path in (tmp_path / "pictures").glob("*/*.png"))
    assert pictures == [f"gen-{i:06d}.png" for i in range(5)]

    capsys.readouterr()
    assert run(weights, tmp_path / "one", "--seed", "1") == common.USAGE
    assert "generate:seed=0,first=0" in capsys.readouterr().err
    assert tables(tmp_path / "one") == whole


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--size", "48"], "WIDTHxHEIGHT"),
        (["--size", "0x32"], "must be 1 or more"),
        (["--count", "0"], "must be 1 or more"),
        (["--steps", "0"], "0 steps"),
        (["--temperature", "17"], "temperature"),
        (["--seed", "-1"], "seed -1"),
    ],
)
def test_a_request_that_cannot_be_is_refused(weights, tmp_path, capsys, flags, reason):
    assert run(weights, tmp_path / "new", *flags) == common.USAGE
    assert reason in capsys.readouterr().err
    assert not list((tmp_path / "new").glob("plan.json"))


def test_weights_without_an_entropy_model_are_refused(tmp_path, capsys):
    path = tmp_path / "bare.safetensors"
    path.write_bytes(tiny_bytes())
    assert run(path, tmp_path / "new") == common.USAGE
    assert "jobs.train --recipe prior makes one" in capsys.readouterr().err
