"""Training images out of tars, whole and damaged."""

from __future__ import annotations

import io
import tarfile

import pytest
import torch

from pqmim.training import crops
from tests.corpus import make_tar, png


def test_shards_without_images_are_an_error(tmp_path):
    (tmp_path / "x.tar").write_bytes(make_tar([("a.txt", b"x")]))
    with pytest.raises(ValueError, match="no .jpg"):
        crops.load_images([tmp_path / "x.tar"])


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_damaged_header_costs_its_own_picture_alone(form, tmp_path, caplog):
    entries = [(f"{'x' * 120 if n % 2 else 'y'}/{n}.png", png(24, 24, seed=n)) for n in range(9)]
    whole, path = make_tar(entries, form), tmp_path / "x.tar"
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        headers = [member.offset_data - 512 for member in tar]
    path.write_bytes(whole)
    alone = crops.load_images([path])
    assert len(alone) == 9 and not caplog.records
    for hit in (0, 3, 4, 8):
        damaged = bytearray(whole)
        damaged[headers[hit]] ^= 0xFF
        path.write_bytes(damaged)
        left = crops.load_images([path])
        wanted = [image for n, image in enumerate(alone) if n != hit]
        assert len(left) == 8 and all(map(torch.equal, left, wanted))
        assert (hit == 8) or caplog.text.count("bytes left out") == 1
        caplog.clear()


def test_a_tar_that_is_cut_off_gives_what_came_before(tmp_path, caplog):
    whole, path = (
        make_tar([(f"{n}.png", png(64, 64, seed=n)) for n in range(4)]),
        tmp_path / "x.tar",
    )
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        third = tar.getmembers()[2].offset_data
    for end in (third - 512, third - 100, third, third + 700):
        path.write_bytes(whole[:end])
        assert len(crops.load_images([path])) == 2
    assert "2.png left out" in caplog.text
