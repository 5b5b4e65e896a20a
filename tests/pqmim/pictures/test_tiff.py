"""TIFF: samples of every depth and layout become the right pixels, or a refusal by name."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pqmim.pictures.picture import BadPicture, Rules
from pqmim.pictures.read import probe, read
from tests.picture_files import RGB, over_white, png, ramp, shown, tiff, tiff_page
from tests.pqmim.pictures.test_formats import H, W, close, rgb, three


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_grey_tiff_of_every_depth_and_polarity_is_right_or_refused(
    photometric, bits, compress, order
):
    samples = ramp(H, W, 1, bits)
    white = (1 << bits) - 1
    stored = samples if photometric else white - samples
    data = tiff(tiff_page(stored, bits, photometric, order=order, compress=compress), order=order)
    try:
        found = read(data)
    except BadPicture as error:
        assert "not converted" in str(error)
        assert bits == 12 or (bits, photometric, order) == (16, 0, ">")
        return
    close(found, three(shown(samples, bits)), 0)
    assert found.dropped == ((f"bits:{bits}",) if bits > 8 else ())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("photometric", "extra"), [(2, None), (2, 0), (2, 1), (2, 2), (5, None)])
def test_colour_tiff_of_every_layout_is_right_or_refused(
    photometric, extra, bits, planar, compress, order
):
    channels = {2: 3, 5: 4}[photometric] + (extra is not None)
    samples = ramp(H, W, channels, bits)
    values = shown(samples, bits)
    tags = {} if extra is None else {338: (3, [extra])}
    if extra == 1:  # premultiplied
        samples[..., :3] = samples[..., :3] * samples[..., 3:] // ((1 << bits) - 1)
    page = tiff_page(samples, bits, photometric, order=order, planar=planar, compress=compress,
                     tags=tags)  # fmt: skip
    data = tiff(page, order=order)
    if bits == 16 and planar == 2:
        with pytest.raises(BadPicture, match="16 bits in separate planes"):
            read(data)
        return
    if planar == 2 and not compress and extra in (0, 1):
        with pytest.raises(BadPicture, match="in separate planes is not converted"):
            read(data)
        return
    if photometric == 5:
        ink = values.astype(int)
        expected = (255 - ink[..., :3]) * (255 - ink[..., 3:]) // 255
    else:
        expected = over_white(values[..., :3], values[..., 3]) if extra else values[..., :3]
    found = read(data)
    rounding = 3 if bits == 16 or photometric == 5 else 0
    close(found, expected, rounding + {None: 0, 0: 0, 1: 3, 2: 1}[extra])
    assert ("alpha" in found.dropped) == (extra in (1, 2))
    assert ("bits:16" in found.dropped) == (bits == 16)


def test_white_is_zero_of_16_bits_is_no_negative():
    samples = ramp(H, W, 1, 16)
    found = rgb(tiff(tiff_page(65535 - samples, 16, 0)))
    assert np.array_equal(found, three(shown(samples, 16)))


@pytest.mark.parametrize("kind", [{254: (4, [1])}, {255: (3, [2])}])
def test_a_thumbnail_page_is_not_the_picture(kind):
    small, large = ramp(6, 9, 3, 8), ramp(H, W, 3, 8)
    thumbnail = tiff_page(small, 8, 2, tags=kind)
    mask = tiff_page(small, 8, 2, tags={254: (4, [4])})
    found = read(tiff(thumbnail, mask, tiff_page(large, 8, 2)))
    close(found, large, 0)
    assert found.dropped == ()
    two = read(tiff(thumbnail, tiff_page(large, 8, 2), tiff_page(large, 8, 2)))
    assert two.dropped == ("frames:2",)
    with pytest.raises(BadPicture, match="every page says that it is a thumbnail"):
        read(tiff(thumbnail))


def test_the_picture_behind_a_thumbnail_has_the_limits():
    small, large = ramp(6, 9, 3, 8), ramp(H, W, 3, 8)
    data = tiff(tiff_page(small, 8, 2, tags={254: (4, [1])}), tiff_page(large, 8, 2))
    with pytest.raises(BadPicture) as caught:
        read(data, Rules(max_pixels=100))
    assert caught.value.status == "too_large"
    assert probe(data)[:2] == (W, H)


def test_the_size_is_known_whatever_the_metadata():
    text = (b"tEXt", b"parameters\0" + b"x" * 3_000_000)
    assert probe(png(ramp(H, W, 3, 8), 8, RGB, [text]))[:2] == (W, H)


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({339: (3, [2])}, "signed or floating-point"),
        ({339: (3, [3])}, "signed or floating-point"),
        ({262: (3, [32803])}, "photometric interpretation 32803"),
        ({266: (3, [2])}, "of reversed order"),
    ],
)
def test_layouts_that_are_taken_wrongly_are_refused_by_name(tags, named):
    with pytest.raises(BadPicture, match=named):
        read(tiff(tiff_page(ramp(H, W, 1, 16), 16, 1, tags=tags)))


def test_signed_bytes_and_other_inks_are_refused_by_name():
    with pytest.raises(BadPicture, match="signed"):
        read(tiff(tiff_page(ramp(H, W, 1, 8), 8, 1, tags={339: (3, [2])})))
    with pytest.raises(BadPicture, match="inks other than"):
        read(tiff(tiff_page(ramp(H, W, 4, 8), 8, 5, tags={332: (3, [2])})))


def test_orientation_of_a_tiff_is_recorded():
    samples = ramp(H, W, 3, 8)
    found = read(tiff(tiff_page(samples, 8, 2, tags={274: (3, [6])})))
    close(found, np.rot90(samples, -1), 0)
    assert found.dropped == ("rotated",)


def test_jpeg_in_a_tiff_is_decoded_strictly():
    buffer = io.BytesIO()
    Image.fromarray(ramp(160, 120, 3, 8).astype(np.uint8)).save(buffer, "TIFF", compression="jpeg")
    data = buffer.getvalue()
    assert rgb(data).shape == (160, 120, 3)
    scan = data.index(b"\xff\xda")
    damaged = data[: scan + 300] + b"\xff\xd9" + data[scan + 302 :]
    with Image.open(io.BytesIO(damaged)) as image:
        assert np.array(image).shape == (160, 120, 3)  # without a word
    with pytest.raises(BadPicture, match="strip or tile of JPEG"):
        read(damaged)
