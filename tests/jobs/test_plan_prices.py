"""``jobs.plan --prices``: three shards are measured and priced; a wrong file is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs import common, plan
from tests.corpus import jpeg, make_tar
from tests.models import tiny_bytes

EXAMPLE = str(Path(__file__).parents[2] / "infra" / "prices.example.yaml")


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    (tmp_path / "tiny.safetensors").write_bytes(tiny_bytes(prior=True))
    for number in range(4):
        entries = [(f"{i}.jpg", jpeg(32, 32)) for i in range(1 + 2 * number)]
        (tmp_path / f"{number}.tar").write_bytes(make_tar(entries))
    return ["--input", str(tmp_path), "--weights", str(tmp_path / "tiny.safetensors"),
            "--quality", "3", "--device", "cpu", "--replicas", "4"]  # fmt: skip


@pytest.mark.parametrize("store", ["codes", "bitstream"])
def test_the_bill_stands_below_the_forecast(
    flags: list[str], store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.main([*flags, "--store", store, "--prices", EXAMPLE]) == common.OK
    text = capsys.readouterr().out
    forecast, priced = text.split("\n\n")
    assert "replicas 4 on cpu" in forecast and "by 3 measured shards" in priced
    lines = {line[:34].strip(): line[34:].split() for line in priced.splitlines()}
    assert len(lines["once, in all"]) == 3
    assert ("of tables with bitstreams" in lines) == (store == "bitstream")
    assert "of tables with codes" in lines


def test_what_is_measured_is_the_tables_that_a_run_would_write(flags: list[str]) -> None:
    from jobs.common import shards, work
    from pipeline.work.replica import Replica
    from pqmim import checkpoint
    from pqmim.codec import Codec

    args = plan.parse([*flags, "--store", "both"])
    specs = shards.list_shards(args.input)
    codec = Codec.from_bytes(checkpoint.read(args.weights), "cpu", name=args.weights)
    frozen = work.plan_of(args, specs, codec)
    found = plan.measure(specs[1], frozen, Replica(codec))
    assert found.tables["both"] > found.tables["codes"] > 0
    assert found.tables["both"] > found.tables["bitstream"] > 0
    assert found.source_bytes == specs[1].size and found.encode_s > 0 and found.decode_s > 0


def test_a_file_that_is_not_there_is_named(flags: list[str], tmp_path: Path) -> None:
    with pytest.raises(common.UsageError, match=r"no\.yaml"):
        plan.main([*flags, "--prices", os.fspath(tmp_path / "no.yaml")])
