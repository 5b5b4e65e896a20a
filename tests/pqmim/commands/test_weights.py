"""A file is decoded with the weights that its header names, or says where to put them."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pqmim import checkpoint
from pqmim.cli import main
from pqmim.codec import Codec
from tests.models import tiny_bytes, tiny_codec

TINY = tiny_bytes(prior=True)
MODEL = tiny_codec(prior=True).fingerprint


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, a picture, and files of it by tiny and by shipped weights."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "w").write_bytes(TINY)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "in.png")
    with contextlib.chdir(folder):
        for size in ([], ["--max-bytes", "60"]):  # 8 and 3 bytes of the fingerprint
            output = f"tiny{len(size)}.pqm"
            assert main(["compress", "in.png", output, "--weights", "w", *size]) == 0
        assert main(["compress", "in.png", "shipped.pqm", "--price", "1"]) == 0
    return folder


@pytest.fixture
def place(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, not there yet; in the working folder files of tiny and shipped weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PQMIM_WEIGHTS", str(tmp_path / "mine"))
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    return tmp_path / "mine"


def test_weights_that_ship_are_found(place):
    assert main(["decompress", "shipped.pqm", "x.png"]) == 0


@pytest.mark.parametrize("name", ["tiny0.pqm", "tiny2.pqm"])
def test_others_are_found_where_the_message_says(place, capsys, name):
    assert main(["decompress", name, "x.png"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pqmim: {name}: the weights {MODEL[:6]}") and error.count("\n") == 1
    assert f"into {place}, or name it with --weights" in error and not Path("x.png").exists()
    place.mkdir()
    (place / "any name.safetensors").write_bytes(TINY)
    (place / "damaged.safetensors").write_bytes(b"\xff" * 20)
    assert main(["decompress", name, "x.png"]) == 0
    assert main(["decompress", name, "y.png", "--weights", "w"]) == 0
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()
    assert Codec.load(MODEL[:8]).fingerprint == MODEL


def test_files_of_several_weights_at_once(place, capsys):
    names = ["shipped.pqm", "tiny0.pqm", "tiny2.pqm"]
    command = ["decompress", *names, "--output-dir", "out", "--quiet"]
    assert main(command) == 3
    assert "2 of 3 files were not made" in capsys.readouterr().err
    place.mkdir()
    (place / "tiny.safetensors").write_bytes(TINY)
    assert main([*command, "--force"]) == 0 and len(list(Path("out").iterdir())) == 3


def test_weights_that_are_asked_for_are_not_replaced_by_others(place, capsys):
    assert main(["decompress", "tiny0.pqm", "x.png", "--weights", "default"]) == 2
    assert f"made with the weights {MODEL[:16]}, those at hand are" in capsys.readouterr().err


def test_info_says_which_weights_and_whether_they_are_here(place, capsys):
    main(["info", "shipped.pqm"])
    report = json.loads(capsys.readouterr().out)
    assert Path(report["weights"]).stem.startswith(report["model"])
    main(["info", "tiny0.pqm"])
    assert "are not here: put their file" in json.loads(capsys.readouterr().out)["weights"]


def test_names_that_may_be_several_weights_are_refused(place):
    place.mkdir()
    (place / "copy.safetensors").write_bytes(checkpoint.read("default"))
    assert checkpoint.find("8245a25b") is not None, "a copy is no other"
    seeds = [tiny_bytes(prior=True, encoder_blocks=(1, n)) for n in range(1, 40)]
    for i, data in enumerate(seeds):
        (place / f"{i}.safetensors").write_bytes(data)
    prints = [checkpoint.parse(data, "").fingerprint for data in seeds]
    twice = next(p[0] for p in prints if sum(q[0] == p[0] for q in prints) > 1)
    with pytest.raises(checkpoint.CheckpointError, match="name one"):
        checkpoint.find(twice)
    assert checkpoint.find("") is None


def test_the_folder_is_the_users_where_no_other_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("PQMIM_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert checkpoint.own_folder() == tmp_path / "pqmim" / "weights"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert checkpoint.own_folder() == Path("/home/someone/.local/share/pqmim/weights")
