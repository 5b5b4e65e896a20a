"""The command line on real files: round trips, stdin and stdout, and one-line errors."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pqmim.cli import main
from pqmim.codec import Codec
from tests.models import tiny_bytes, tiny_codec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(tiny_bytes(prior=True))
    return str(path)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    y, x = np.mgrid[:45, :60]
    path = tmp_path / "in.png"
    Image.fromarray(np.stack([4 * x, 5 * y, x + y], -1).astype(np.uint8)).save(path)
    return path


def expected(codec: Codec, picture: Path, quality: int) -> np.ndarray:
    rgb = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)[None]
    return codec.decode(codec.encode(rgb, quality), *rgb.shape[2:])[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("speed", [[], ["--fast"]])
def test_a_picture_comes_back(tmp_path, weights, picture, speed):
    small, out = tmp_path / "x.pqm", tmp_path / "out.png"
    flags = ["--weights", weights]
    asked = ["--quality", "3", "--price", "0", *speed, *flags]
    assert main(["compress", str(picture), str(small), *asked]) == 0
    assert main(["decompress", str(small), str(out), *flags]) == 0
    assert (np.array(Image.open(out)) == expected(tiny_codec(prior=True), picture, 3)).all()


def test_a_price_makes_the_file_smaller(tmp_path, weights, picture):
    sizes = []
    for price in ("0", "0.1", "5"):
        out = tmp_path / f"{price}.pqm"
        flags = ["--price", price, "--weights", weights]
        assert main(["compress", str(picture), str(out), *flags]) == 0
        sizes.append(out.stat().st_size)
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < sizes[0]


def test_the_orientation_of_a_photograph_is_applied(tmp_path, weights, picture):
    turned, small = tmp_path / "turned.jpg", tmp_path / "x.pqm"
    image = Image.open(picture)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(turned, exif=exif)
    assert main(["compress", str(turned), str(small), "--weights", weights]) == 0
    assert tiny_codec(prior=True).decompress(small.read_bytes()).shape == (3, 60, 45)


def test_a_pipe_into_a_process_with_other_kernels_and_threads(weights, picture):
    here = tiny_codec(prior=True)
    rgb = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)
    data = here.compress_batch(rgb.expand(16, -1, -1, -1), 4, price=0)[11]
    env = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE",
           "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}  # fmt: skip
    command = [sys.executable, "-m", "pqmim", "decompress", "-", "-", "--weights", weights]
    done = subprocess.run(command, input=data, env=env, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    there = np.array(Image.open(io.BytesIO(done.stdout))).astype(int)
    assert np.abs(there - expected(here, picture, 4)).max() <= 1  # the float decoder may round


def test_info_describes_a_file_and_the_weights(tmp_path, weights, picture, capsys):
    small = tmp_path / "x.pqm"
    main(["compress", str(picture), str(small), "--weights", weights, "--quality", "2"])
    assert main(["info", str(small)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["width"], report["height"], report["quality"]) == (60, 45, 2)
    assert report["bytes"] == small.stat().st_size and report["stages"] == report["stages_planned"]
    assert main(["info", weights]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["fingerprint"].startswith(report["model"]) and about["prior"]["group"] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["decompress", "{picture}", "x.png"], "not a .pqm file"),
        (["decompress", "{missing}", "x.png"], "No such file"),
        (
            ["compress", "{weights}", "x.pqm"],
            "cannot be read as an image: no known image format",
        ),
        (["compress", "{picture}", "x.pqm", "--quality", "9"], r"quality 9 is outside 1..4"),
        (["decompress", "{good}", "x.nope"], "no image format has the suffix '.nope'"),
        (["decompress", "{cut}", "x.png"], "cut off"),
        (
            ["compress", "{picture}", "x.pqm", "--max-bytes", "9"],
            "9 bytes are too few",
        ),
        (["compress", "{picture}", "x.pqm", "--max-bytes", "99", "--quality", "2"], "chooses"),
        (["complete", "{picture}", "x.png", "--keep-subcodes", "1", "--steps", "0"], "0 steps"),
        (["complete", "{picture}", "x.png", "--replace", "1,2,x,4"], "four numbers"),
        (["complete", "{picture}", "x.png", "--replace", "900,2,3,4"], "outside the image"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(
    tmp_path, weights, picture, capsys, arguments, says, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    main(["compress", str(picture), "good.pqm", "--weights", weights])
    Path("cut.pqm").write_bytes(Path("good.pqm").read_bytes()[:-12])
    names = {"picture": picture, "missing": "none.pqm", "weights": weights, "good": "good.pqm",
             "cut": "cut.pqm"}  # fmt: skip
    filled = [argument.format(**names) for argument in arguments]
    assert main([*filled, "--weights", weights]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pqmim: ") and error.count("\n") == 1 and says in error
    assert not list(tmp_path.glob("x.*")), "no output after an error"


def test_a_cut_file_is_shown_on_request(tmp_path, weights, picture):
    small, out = tmp_path / "x.pqm", tmp_path / "out.png"
    main(["compress", str(picture), str(small), "--weights", weights])
    small.write_bytes(small.read_bytes()[:-8])
    flags = ["--weights", weights]
    assert main(["decompress", str(small), str(out), *flags]) == 2
    flags.append("--force")
    assert main(["decompress", str(small), str(out), "--partial", *flags]) == 0
    assert Image.open(out).size == (60, 45)
    assert main(["decompress", str(small), str(out), "--complete", *flags]) == 0
    assert Image.open(out).size == (60, 45)
    drawn = []
    for seed in ("1", "1", "2"):
        main(["decompress", str(small), str(out), "--complete", "draw", "--seed", seed, *flags])
        drawn.append(np.array(Image.open(out)))
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()


def test_a_picture_in_so_many_bytes(tmp_path, weights, picture, capsys):
    small, out = tmp_path / "x.pqm", tmp_path / "out.png"
    flags = ["--weights", weights]
    assert main(["compress", str(picture), str(small), "--max-bytes", "64", *flags]) == 0
    assert small.stat().st_size <= 64
    assert main(["decompress", str(small), str(out), *flags]) == 0
    assert Image.open(out).size == (60, 45)
    assert main(["info", str(small)]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 2


@pytest.mark.parametrize(
    "kept",
    [["--keep-stages", "1"], ["--keep-subcodes", "2"], 
     ["--replace", "0,0,20,20"], ["--keep-subcodes", "2", "--mean"]],
)  # fmt: skip
def test_a_picture_is_completed(tmp_path, weights, picture, kept):
    out, again = tmp_path / "out.png", tmp_path / "again.png"
    for path in (out, again):
        assert main(["complete", str(picture), str(path), *kept, "--weights", weights]) == 0
    assert Image.open(out).size == (60, 45) and out.read_bytes() == again.read_bytes()
    whole = expected(tiny_codec(prior=True), picture, 4)
    assert (np.array(Image.open(out)) != whole).any()
