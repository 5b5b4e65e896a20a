"""Every Python block of docs/codes.md runs, and gives what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.code_archives import make

TEXT = (Path(__file__).parent.parent / "docs" / "codes.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return make(str(tmp_path / "a"), [60, 40])


def run(name: str, archive) -> dict:
    (block,) = [block for block in BLOCKS if name in block]
    names = {"ARCHIVE": archive.store.root}
    exec(compile(block, name, "exec"), names)
    return names


def test_code_stream(archive):
    names = run("resumed =", archive)
    assert names["resumed"].epoch == 1 and names["state"]["epoch"] == 0
    first, resumed = names["state"], names["resumed"]
    resumed.load_state_dict(first)
    left = [key for batch in resumed.batches(2) for key in batch.key]
    assert len(left) == len(set(left)) == len(archive.ok) - 32


def test_a_dataloader_of_ones_own(archive):
    names = run("for epoch in range(3)", archive)
    assert names["images"] == [len(archive.ok)] * 3
    assert (names["state"]["epoch"], names["state"]["cursors"]) == (3, {})


def test_ranks(archive):
    assert run("even_batches", archive)["lengths"] == [3] * 4


def test_code_table(archive):
    names = run("CodeTable", archive)
    assert names["same"]["key"] == archive.ok[0].key == names["sample"]["key"]
    assert len(names["some"]) == 10 and not names["there"]
    assert names["every"] == [row.key for row in archive.ok]


def test_pandas(archive):
    pytest.importorskip("pandas")
    frame = run("import pandas", archive)["frame"]
    assert frame["codes"].to_list() == [row.codes for row in archive.ok]


def test_datasets(archive):
    pytest.importorskip("datasets")
    codes = run("import datasets", archive)["codes"]
    assert codes.tobytes() == archive.ok[-1].codes and codes.shape == (2, 2, 3)


def test_duckdb(archive):
    pytest.importorskip("duckdb")
    labels = run("import duckdb", archive)["labels"]
    assert sum(images for _, images, _ in labels) == len(archive.ok)
    assert sum(size for *_, size in labels) == sum(len(row.codes) for row in archive.ok)


def test_polars(archive):
    pytest.importorskip("polars")
    frame = run("import polars", archive)["frame"]
    assert frame["codes"].to_list() == [row.codes for row in archive.ok]


def test_no_block_is_left_out():
    assert len(BLOCKS) == 8
