"""``make demo`` as it is: the shipped weights, the example shards, all four jobs, the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import demo
from jobs import common


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_demo_runs_and_shows_every_picture_and_error(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.main() == common.OK
    page = (tmp_path / "demo" / "index.html").read_text()
    assert len(list((tmp_path / "demo" / "images").glob("*-reconstruction.*"))) == 57
    assert "crostata" in page and "field-notes" in page and "decode_error" in page
    assert "complete: 2 shards listed" in capsys.readouterr().out
