"""``make demo``: the example shards, all four jobs, the page.  The short form has tiny weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from examples import demo
from jobs import common
from tests.models import tiny_bytes


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    encode_flags: Sequence[str] = (), verify_flags: Sequence[str] = (),
) -> None:  # fmt: skip
    """The demo in an empty folder shows every picture and error."""
    monkeypatch.chdir(folder)
    assert demo.main(encode_flags, verify_flags) == common.OK
    page = (folder / "demo" / "index.html").read_text()
    assert len(list((folder / "demo" / "images").glob("*-reconstruction.*"))) == 57
    assert "crostata" in page and "field-notes" in page and "decode_error" in page
    assert "complete: 2 shards listed" in capsys.readouterr().out


def test_the_demo_shows_every_picture_and_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "tiny.safetensors"
    model.write_bytes(tiny_bytes(prior=True))
    flags = ["--weights", str(model), "--quality", "3"]
    run(tmp_path, monkeypatch, capsys, flags, ["--min-psnr", "0"])


@pytest.mark.long
def test_the_demo_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, monkeypatch, capsys)
