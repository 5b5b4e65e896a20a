"""Rates, curves and the page, on real photographs."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pqmim import cli
from pqmim.evaluation import bd, coders, page, published, rate, rd, report
from pqmim.evaluation.coders import OperatingPoint
from tests.models import tiny_bytes, tiny_codec
from tests.photos import photograph

CODECS = ["jpeg", "webp", "avif"]


def save(folder: Path, height: int, width: int, count: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = photograph(number + 1)[0, :, :height, :width].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "images", 96, 128)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    path.write_bytes(tiny_bytes(prior=True))
    return path


@pytest.fixture(scope="module")
def output(tmp_path_factory, weights) -> Path:
    """What one whole run over two images leaves."""
    root = tmp_path_factory.mktemp("eval")
    images = save(root / "images", 176, 224)
    arguments = ["--weights", str(weights), "--quality", "2", "4", "--published", "default"]
    assert cli.main(["eval", str(images), *arguments, "--codecs", ",".join(CODECS),
                     "--output", str(root / "out")]) == 0  # fmt: skip
    return root / "out"


def test_bd_rate_of_equal_curves_is_zero_and_of_half_the_rate_minus_fifty():
    curve = [(0.1, 27.0), (0.2, 29.5), (0.4, 31.0), (0.9, 34.2)]
    half = [(bpp / 2, quality) for bpp, quality in curve]
    assert bd.bd_rate(curve, curve).percent == pytest.approx(0, abs=1e-9)
    assert bd.bd_rate(curve, half).percent == pytest.approx(-50)
    assert bd.bd_rate(half, curve).percent == pytest.approx(100)
    assert bd.bd_rate(curve, list(reversed(half))).percent == pytest.approx(-50)


def test_bd_rate_over_a_range_of_rates_is_that_of_the_qualities_both_reach_there():
    anchor = [(2.0 ** (-4 + i), 24.0 + 3 * i) for i in range(6)]  # 3 dB for each doubling
    test = [(1.5 * bpp, quality) for bpp, quality in anchor]
    found = bd.bd_rate(anchor, test, (0.125, 0.5))
    assert found.percent == pytest.approx(50)
    assert found.low == pytest.approx(27.0)  # of the anchor at 0.125 bpp
    assert found.high == pytest.approx(33 - 3 * np.log2(1.5))  # of the test at 0.5 bpp


def test_bd_rate_of_two_point_curves_averages_the_logarithm():
    anchor, test = [(1.0, 30.0), (2.0, 32.0)], [(1.0, 30.0), (4.0, 32.0)]
    assert bd.bd_rate(anchor, test).percent == pytest.approx(100 * (2**0.5 - 1))


def test_there_is_no_bd_rate_without_common_qualities():
    low, high = [(0.1, 20.0), (0.2, 22.0)], [(0.1, 25.0), (0.2, 28.0)]
    assert bd.bd_rate(low, high) == bd.NONE
    assert bd.bd_rate(low, low, (0.5, 0.9)) == bd.NONE
    assert bd.bd_rate(low, [(0.1, 21.0)]) == bd.NONE
    assert report.describe(bd.NONE) == "no common quality"


def test_points_that_another_beats_do_not_count():
    curve = [(0.1, 27.0), (0.2, 29.5), (0.4, 31.0)]
    assert bd.bd_rate(curve, [*curve, (0.3, 29.0)]).percent == pytest.approx(0, abs=1e-9)
    assert bd.quality_at(curve, 0.05) is None and bd.quality_at(curve, 0.2) == pytest.approx(29.5)


def test_published_kodak_reproduces_known_distances():
    curves = {c.name: c for c in published.load("default").curves}
    assert len(curves) == 28 and all(c.description for c in curves.values())
    bpg, vtm = curves["BPG 4:4:4 (TFC)"], curves["VTM (CompressAI)"]
    psnr = bd.bd_rate(report.knots(vtm, "psnr"), report.knots(bpg, "psnr")).percent
    assert psnr == pytest.approx(20.4, abs=0.1)
    hyperprior = curves["bmshj2018-hyperprior (CompressAI)"]
    assert bd.quality_at(report.knots(hyperprior, "psnr"), 0.2) == pytest.approx(29.03, abs=0.01)
    assert hyperprior.points[0].ms_ssim == pytest.approx(0.91737)


def test_files_of_a_run_have_their_formats(output):
    for codec in ("pqmim", *CODECS):
        result = json.loads((output / f"{codec}.json").read_text())
        assert set(result) == {"name", "description", "results"} and result["name"] == codec
        lists = result["results"]
        assert set(lists) == {
            "bpp", "psnr-rgb", "ms-ssim-rgb", "encoding_time", "decoding_time"
        }  # fmt: skip
        assert len({len(values) for values in lists.values()}) == 1
        assert lists["bpp"] == sorted(lists["bpp"]) and min(lists["encoding_time"]) > 0
        assert all(0 < value < 1 for value in lists["ms-ssim-rgb"])
    rows = list(csv.DictReader((output / "images.csv").open()))
    points = {row["codec"]: 0 for row in rows}
    assert list(points) == ["pqmim", *CODECS]
    assert {row["image"] for row in rows} == {"0.png", "1.png"}
    first = rows[0]
    assert float(first["bpp"]) == pytest.approx(8 * int(first["bytes"]) / (176 * 224), abs=1e-6)
    against = json.loads((output / "bd-rates.json").read_text())["against"]
    assert set(CODECS) < set(against) and "VTM (CompressAI)" in against


def test_the_page_has_every_codec_and_needs_no_other_file(output):
    html = (output / "index.html").read_text()
    assert html.count("<svg") == 2
    for codec in ("pqmim", *CODECS):
        assert len(re.findall(rf"<figcaption>{codec} ", html)) >= 2, codec
        assert f">{codec}</text>" in html  # the legend of a plot
    assert "Worst images" in html and "published curves are of another set" in html
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)


def test_a_measurement_repeats_apart_from_its_times(folder):
    def run() -> tuple[list[rd.Sample], str]:
        torch.manual_seed(1)
        ours = coders.Model(tiny_codec(prior=True), [OperatingPoint(2), OperatingPoint(4)], (1, 1))
        used = [ours, *coders.classical(["jpeg", "webp"])]
        samples = [
            dataclasses.replace(s, encode_s=0.5, decode_s=0.25)
            for s in rd.measure(used, rd.image_paths(folder), lambda _: None)
        ]
        curves = [rd.curve(coder, samples) for coder in used]
        gallery = page.crops(used, samples, folder)
        return samples, page.render(
            curves, None, report.compare(curves[0], curves[1:]), gallery, []
        )

    assert run() == run()


def test_samples_count_the_whole_file(folder):
    codec = tiny_codec(prior=True)
    ours = coders.Model(codec, [OperatingPoint(4)], (1, 1))
    (sample, _) = rd.measure([ours], rd.image_paths(folder), lambda _: None)
    image = rd.load_image(folder / "0.png")
    assert sample.size == len(codec.compress(image, 4, (1, 1), price=0)) and sample.ms_ssim is None
    assert sample.bpp == 8 * sample.size / (96 * 128)
    point = rd.curve(ours, [sample]).points[0]
    assert point.encode_s_per_mpx == pytest.approx(sample.encode_s / (96 * 128 / 1e6))


def test_small_images_have_no_ms_ssim_and_the_report_says_so(folder, weights, capsys):
    arguments = ["--weights", str(weights), "--quality", "2", "4", "--codecs", "jpeg"]
    assert cli.main(["eval", str(folder), *arguments]) == 0
    text = capsys.readouterr().out
    assert "no MS-SSIM: 2 images have a side below 161 pixels, 0.png for one" in text
    assert "BD-rate against" in text


def test_rates_count_the_container_and_bound_static_tables(folder):
    codec = tiny_codec(prior=True)
    results = rate.rates(codec, folder, [OperatingPoint(2), OperatingPoint(4)], (1, 1))
    assert [str(r.point) for r in results] == ["2", "4"]
    for result in results:
        assert result.static < result.raw  # 16 codewords do not fill a byte
        assert result.file > 8 * 24 / (96 * 128)
        assert result.saving == pytest.approx(1 - result.file / result.raw)
    assert len(rate.table(results).splitlines()) == 3


@pytest.mark.parametrize(("arguments", "message"), [
    (["--codecs", "jpeg,bpg"], "no codec 'bpg'; there are jpeg, webp, avif, jxl"),
    (["--published", "absent.json"], "absent.json"),
    (["--quality", "9"], "quality 9 is outside 1..4"),
])  # fmt: skip
def test_bad_arguments_are_one_line(folder, weights, capsys, arguments, message):
    command = ["eval", str(folder), "--weights", str(weights), "--codecs", "jpeg", *arguments]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_missing_plugin_is_named_with_the_way_out(monkeypatch):
    absent = dataclasses.replace(coders.CLASSICAL["jxl"], plugin="no_such_module")
    monkeypatch.setitem(coders.CLASSICAL, "jxl", absent)
    with pytest.raises(ValueError, match="pip install pillow-jxl-plugin"):
        coders.classical(["jpeg", "jxl"])
    assert "jxl" not in [coder.name for coder in coders.classical(None)]


def test_an_empty_folder_and_an_unreadable_image_are_named(tmp_path, folder):
    with pytest.raises(ValueError, match="holds no image"):
        list(rd.load_folder(tmp_path))
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        list(rd.load_folder(folder))


@pytest.mark.parametrize(("text", "message"), [
    ("{", "is not JSON"),
    ("[1]", "must hold an object"),
    ('{"a": {"bpp": [1, 2], "psnr": [30]}}', "differ in length"),
    ('{"a": {"bpp": [1]}}', "no list of numbers 'psnr-rgb'"),
    ('{"a": 3}', "is not an object"),
])  # fmt: skip
def test_bad_published_files_say_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        published.parse(text, "file.json")


def test_a_result_can_be_read_back_as_a_published_curve(output):
    found = published.load(str(output / "webp.json"))
    (curve,) = found.curves
    stored = json.loads((output / "webp.json").read_text())["results"]
    assert [p.bpp for p in curve.points] == stored["bpp"]
    assert [p.ms_ssim for p in curve.points] == stored["ms-ssim-rgb"]
