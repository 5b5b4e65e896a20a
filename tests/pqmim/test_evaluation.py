"""Rates and curves on real photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pqmim.evaluation import rate, rd
from tests.models import tiny_codec
from tests.photos import photograph


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(2):
        pixels = photograph(number + 1)[0, :, :96, :128].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_the_curve_has_real_bytes_and_jpeg_beside_it(folder):
    ours, jpeg, count = rd.compare(tiny_codec(), folder)
    assert count == 2 and [p.quality for p in ours] == [1, 2, 3, 4]
    assert ours[3].bpp == pytest.approx(4 * 8 / 256)  # a byte for each of the sub-codes
    assert jpeg[0].psnr < jpeg[-1].psnr and jpeg[0].bpp < jpeg[-1].bpp
    assert rd.at_bpp(jpeg, jpeg[5].bpp) == pytest.approx(jpeg[5].psnr)
    assert rd.at_bpp(jpeg, jpeg[0].bpp / 2) is None
    assert "none: its smallest is" in rd.table(ours, jpeg)


def test_rates_count_the_container_and_bound_static_tables(folder):
    codec = tiny_codec(prior=True)
    results = rate.rates(codec, folder, [2, 4], (1, 1))
    assert [r.quality for r in results] == [2, 4]
    for result in results:
        assert result.static < result.raw  # 16 codewords do not fill a byte
        assert result.file > 8 * 24 / (96 * 128)
        assert result.saving == pytest.approx(1 - result.file / result.raw)
    assert len(rate.table(results).splitlines()) == 3


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        list(rd.load_folder(tmp_path))
