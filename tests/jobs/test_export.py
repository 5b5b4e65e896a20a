"""``jobs.export``: WebDataset tars of codes that webdataset itself reads back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import webdataset

from jobs import common, export
from pipeline.out import codes
from pipeline.store.storage import Store
from tests.code_archives import make

GRIDS = ((2, 2), (3, 2))


def run(archive: object, output: object, *more: str) -> int:
    arguments = ["--archive", str(archive), "--output", str(output), *more]
    return common.run(lambda: export.main(arguments))


def read(folder) -> dict[str, dict]:
    names = sorted(str(path) for path in folder.glob("*.tar"))
    data = webdataset.WebDataset(names, shardshuffle=False, empty_check=False).decode()
    return {sample["__key__"]: sample for sample in data}


def test_webdataset_reads_codes_keys_and_kept_columns(tmp_path, capsys):
    made = make(str(tmp_path / "a"), [40, 0, 30], GRIDS)
    assert run(tmp_path / "a", tmp_path / "out") == common.OK
    found = read(tmp_path / "out")
    assert set(found) == {row.key for row in made.ok}
    for row in made.ok:
        sample = found[row.key]
        codes = np.frombuffer(row.codes, np.uint8).reshape(row.grid_h, row.grid_w, 3)
        assert np.array_equal(sample["npy"], codes) and sample["npy"].dtype == np.uint8
        assert sample.get("txt") == row.kept["txt"]
        assert sample["json"]["json.label"] == row.kept["json.label"]
        assert (sample["json"]["width"], sample["json"]["key"]) == (row.width, row.key)
    done = json.loads((tmp_path / "out/export.json").read_bytes())
    assert done["images"] == len(made.ok) and len(done["tars"]) == 3


def test_the_same_command_completes_a_half_written_export(root, capsys):
    make(root, [20, 20])
    output = Store(root + "-out")
    assert run(root, output.root) == common.OK
    whole = {name: output.get(name) for name in output.names()}
    output.delete(min(name for name in whole if name.endswith(".tar")))
    output.delete(codes.DONE)
    assert run(root, output.root) == common.OK
    assert {name: output.get(name) for name in output.names()} == whole


def test_wider_codes_are_uint16(tmp_path, capsys):
    make(str(tmp_path / "a"), [5], codewords=1000)
    assert run(tmp_path / "a", tmp_path / "out") == common.OK
    assert {s["npy"].dtype for s in read(tmp_path / "out").values()} == {np.dtype(np.uint16)}


def test_damaged_and_missing_tables_are_named_and_the_export_is_not_done(tmp_path, capsys):
    made = make(str(tmp_path / "a"), [20, 20, 20])
    first, second = (tmp_path / "a/codes" / f"{r.shard_id}.parquet" for r in made.results[:2])
    first.unlink()
    data = bytearray(second.read_bytes())
    data[data.index(made.ok[25].codes)] ^= 1
    second.write_bytes(data)
    assert run(tmp_path / "a", tmp_path / "out") == common.INCOMPLETE
    text = capsys.readouterr().out
    assert "shard-0000: no table" in text and "shard-0001: damaged" in text
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == ["shard-0002.tar"]
    assert not (tmp_path / "out/export.json").exists()


def test_a_wrong_crc_names_the_key(tmp_path, capsys):
    make(str(tmp_path / "a"), [9],
         change=lambda row, n: replace(row, crc32=1) if n == 2 else row)  # fmt: skip
    assert run(tmp_path / "a", tmp_path / "out") == common.INCOMPLETE
    assert "'000002'" in capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code == common.USAGE
    return capsys.readouterr().err


def test_what_cannot_be_exported_is_refused(tmp_path, capsys):
    make(str(tmp_path / "a"), [5], store="bitstream")
    error = refusal(capsys, run(tmp_path / "a", tmp_path / "out"))
    assert "jobs.transcode" in error and not (tmp_path / "out").exists()
    make(str(tmp_path / "b"), [5])
    make(str(tmp_path / "c"), [5], quality=2)
    assert run(tmp_path / "b", tmp_path / "out") == common.OK
    assert "another archive" in refusal(capsys, run(tmp_path / "c", tmp_path / "out"))
    code = run(tmp_path / "b", tmp_path / "new", "--shard", "nobody")
    assert "--shard nobody" in refusal(capsys, code)
