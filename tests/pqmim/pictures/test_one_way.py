"""The job, the command line, eval and training read a picture by the same rules."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.plan import Plan
from pipeline.work import images
from pqmim import cli
from pqmim.codec import Codec
from pqmim.commands import formats
from pqmim.evaluation import rd
from pqmim.training import crops
from tests.corpus import jpeg, make_tar, picture
from tests.models import tiny_bytes
from tests.picture_files import GREY, P3, icc, png, ramp, shown

PLAN = Plan(model="m", quality=1, stride=16, codewords=256, inputs=1, inputs_digest="d", min_side=1)


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def logo() -> bytes:
    """A disc on nothing: all its colours are black."""
    y, x = np.mgrid[0:48, 0:64]
    values = np.zeros((48, 64, 4), np.uint8)
    values[..., 3] = np.where((x - 32) ** 2 + (y - 24) ** 2 < 300, 255, 0)
    return saved(Image.fromarray(values), "PNG")


FILES = {
    "logo.png": logo(),
    "deep.png": png(ramp(48, 64, 1, 16), 16, GREY),
    "p3.jpg": saved(picture(64, 48), "JPEG", icc_profile=icc(b"RGB ", P3)),
    "turned.jpg": jpeg(64, 48, exif_orientation=6),
    "cmyk.jpg": jpeg(64, 48, mode="CMYK"),
    "palette.webp": saved(picture(64, 48), "WEBP"),
}


@pytest.mark.parametrize("name", FILES)
def test_four_readers_give_the_same_pixels(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    (tmp_path / "one.tar").write_bytes(make_tar([(name, FILES[name])]))
    job = torch.from_numpy(images.decode(FILES[name], PLAN).pixels)
    for found in (
        formats.read_pixels(str(path)), rd.load_image(path),
        crops.load_images([tmp_path / "one.tar"])[0],
    ):  # fmt: skip
        assert found.dtype == torch.uint8 and found.is_contiguous()
        assert torch.equal(found, job)


def test_transparency_is_white_and_16_bits_are_scaled_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "logo.png").write_bytes(FILES["logo.png"])
    found = formats.read_pixels(str(tmp_path / "logo.png"))
    assert found[:, 0, 0].tolist() == [255, 255, 255] and found[:, 24, 32].tolist() == [0, 0, 0]
    (tmp_path / "deep.png").write_bytes(FILES["deep.png"])
    found = formats.read_pixels(str(tmp_path / "deep.png"))
    assert np.array_equal(found[0].numpy(), shown(ramp(48, 64, 1, 16), 16)[..., 0])


def test_compressing_a_logo_on_nothing_keeps_its_ground(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(tiny_bytes(prior=True))
    for name, data in (("logo.png", FILES["logo.png"]), ("white.png", None)):
        ground = images.decode(FILES["logo.png"], PLAN).pixels.transpose(1, 2, 0)
        white = saved(Image.fromarray(ground), "PNG")
        (tmp_path / name).write_bytes(data or white)
        args = ["compress", str(tmp_path / name), str(tmp_path / name) + ".pqm", "--price", "0"]
        assert cli.main([*args, "--weights", str(tmp_path / "w")]) == 0
    logo_file, white_file = (tmp_path / f"{n}.png.pqm" for n in ("logo", "white"))
    assert logo_file.read_bytes() == white_file.read_bytes()
    assert Codec.load(str(tmp_path / "w")).decompress(logo_file.read_bytes()).shape == (3, 48, 64)


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        saved(picture(64, 48), "TGA"),
        saved(picture(64, 48), "ICO"),
        saved(picture(64, 48), "PCX"),
    ],
)
def test_formats_that_are_not_listed_are_opened_nowhere(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(data)
    (tmp_path / "one.tar").write_bytes(make_tar([("x.png", data)]))
    with pytest.raises(images.BadImage):
        images.decode(data, PLAN)
    for reading in (
        lambda: formats.read_pixels(str(path)), lambda: rd.load_image(path),
        lambda: crops.load_images([tmp_path / "one.tar"]),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            reading()


def test_what_may_be_wrong_is_said_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = jpeg(64, 48)
    path = tmp_path / "odd.jpg"
    path.write_bytes(whole[:-2] + b"\x12\x34" * 30 + whole[-2:])
    formats.read_pixels(str(path))
    assert "odd.jpg: JPEG: Corrupt JPEG data" in capsys.readouterr().err
