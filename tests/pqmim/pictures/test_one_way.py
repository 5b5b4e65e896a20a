"""The job, the command line, eval and training read a picture by the same rules."""

from __future__ import annotations

import io
import struct
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
from pqmim.pictures.picture import BadPicture
from pqmim.pictures.read import opened, read
from pqmim.training import crops
from tests.corpus import jpeg, make_tar, picture
from tests.models import tiny_bytes
from tests.picture_files import GREY, P3, icc, png, ramp, shown, tiff, tiff_page

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
    job = torch.from_numpy(images.decode(FILES[name], PLAN.pictures).pixels)
    for found in (
        formats.read_pixels(str(path)), rd.load_image(path),
        crops.load_images([tmp_path / "one.tar"])[0],
    ):  # fmt: skip
        assert found.dtype == torch.uint8 and found.is_contiguous()
        assert torch.equal(found, job)


DEEP = ramp(48, 64, 1, 16)
LEVEL = int(DEEP[5, 7, 0])
TAKEN_WRONGLY = {  # by Pillow's own conversion
    "white-is-zero of 16 bits": tiff(tiff_page(65535 - DEEP, 16, 0)),
    "12 bits": tiff(tiff_page(DEEP >> 4, 12, 1)),
    "a transparent level of 16 bits": png(DEEP, 16, GREY, [(b"tRNS", struct.pack(">H", LEVEL))]),
    "a transparent level of 4 bits": png(DEEP >> 12, 4, GREY, [(b"tRNS", b"\0\5")]),
    "declared colour": png(DEEP >> 8, 8, GREY, [(b"gAMA", struct.pack(">I", 100_000))]),
    "orientation": jpeg(64, 48, exif_orientation=6),
}


@pytest.mark.parametrize("name", TAKEN_WRONGLY)
def test_a_picture_that_pillow_has_opened_is_read_as_its_file(name: str) -> None:
    expected = read(TAKEN_WRONGLY[name])
    with Image.open(io.BytesIO(TAKEN_WRONGLY[name])) as image:
        found = opened(image)
        assert np.array_equal(found.pixels, expected.pixels) and found.dropped == expected.dropped
        image.load()
        if "16 bits" in name or name in ("12 bits", "orientation"):
            assert np.array_equal(opened(image).pixels, expected.pixels)


def test_an_opened_picture_that_is_refused_or_was_changed() -> None:
    planes = tiff(tiff_page(ramp(48, 64, 3, 16), 16, 2, planar=2, compress=True))
    with Image.open(io.BytesIO(planes)) as image, pytest.raises(BadPicture, match="planes"):
        opened(image)
    with Image.open(io.BytesIO(saved(picture(640, 480), "JPEG"))) as image:
        image.draft("RGB", (160, 120))
        assert opened(image).width == image.width < 640
    frames = [picture(64, 48, seed=i) for i in range(2)]
    data = saved(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as image:
        image.seek(1)
        assert np.array_equal(opened(image).pixels.transpose(1, 2, 0), np.asarray(frames[1]))


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
        ground = images.decode(FILES["logo.png"], PLAN.pictures).pixels.transpose(1, 2, 0)
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
        images.decode(data, PLAN.pictures)
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
