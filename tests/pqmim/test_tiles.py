"""Large pictures by windows: what the whole picture gives, in memory for a window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pqmim import tiles
from pqmim.cli import main
from pqmim.codec import Codec
from pqmim.commands import images
from tests.models import tiny_bytes, tiny_codec
from tests.photos import photograph

CODEC = tiny_codec(prior=True)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 3 x 3 positions, for every picture of more than one."""
    monkeypatch.setattr(tiles, "LARGE", 1)
    monkeypatch.setattr(tiles, "SIDE", 3)


def noise(height: int, width: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def results(codec: Codec, pixels: torch.Tensor) -> list[torch.Tensor]:
    """All that the transforms are used for."""
    height, width = pixels.shape[2:]
    codes = codec.encode(pixels, 3)
    known = torch.arange(codes.numel()).reshape(codes.shape) % 3 > 0
    return [codec.latent(pixels), codes.float(), codec.decode(codes, height, width).float(),
            codec.decode(codes, height, width, known).float()]  # fmt: skip


def test_windows_give_what_the_whole_gives(monkeypatch):
    @settings(deadline=None, max_examples=30)
    @given(st.integers(1, 130), st.integers(1, 130), st.integers(1, 2))
    def check(height: int, width: int, batch: int) -> None:
        pixels = noise(height, width, batch)
        with monkeypatch.context() as patch:
            patch.setattr(tiles, "LARGE", 1)
            patch.setattr(tiles, "SIDE", 3)
            found = results(CODEC, pixels)
        wanted = results(CODEC, pixels)
        assert [f.shape for f in found] == [w.shape for w in wanted]
        assert torch.allclose(found[0], wanted[0], atol=1e-4)
        assert (found[1] != wanted[1]).float().mean() <= 0.01, "a code between two codewords"
        if torch.equal(found[1], wanted[1]):
            assert all((f - w).abs().max() <= 1 for f, w in zip(found[2:], wanted[2:], strict=True))

    check()


def test_files_of_windows_with_the_shipped_weights(small_windows, monkeypatch):
    codec, image = Codec.load(), photograph()[0, :, :96, :128]
    data, codes = codec.compress(image), codec.encode(image[None])
    shown = codec.decompress(data).float()
    monkeypatch.undo()
    assert (codes != codec.encode(image[None])).float().mean() <= 0.001
    assert (codec.decompress(data).float() - shown).abs().max() <= 1
    assert len(codec.compress(image)) == pytest.approx(len(data), abs=8)


def test_without_a_margin_windows_show(small_windows, monkeypatch):
    """So that the tests above say something."""
    pixels = noise(120, 120)
    codec = Codec.load()
    wanted = codec.latent(pixels)
    monkeypatch.setattr(tiles, "margin", lambda _: 0)
    assert not torch.allclose(codec.latent(pixels), wanted, atol=1e-2)


def test_no_call_is_larger_than_a_window_with_its_margin(small_windows, monkeypatch):
    seen: list[int] = []
    for name in ("encoder", "decoder"):
        part, before = getattr(CODEC.model, name), 16 if name == "encoder" else 1
        part.register_forward_pre_hook(
            lambda _, given, before=before: seen.append(given[0].shape[-1] // before)
        )
    pixels = noise(600, 700)
    CODEC.decode(CODEC.encode(pixels), 600, 700)
    most = 3 + 2 * max(tiles.margin(CODEC.model.encoder), tiles.margin(CODEC.model.decoder))
    assert len(seen) == 2 * 13 * 15 and max(seen) <= most < 700 // 16
    for name in ("encoder", "decoder"):
        getattr(CODEC.model, name)._forward_pre_hooks.clear()


def test_pictures_of_usual_sizes_go_whole(monkeypatch):
    calls: list[int] = []
    real = tiles._span
    monkeypatch.setattr(tiles, "_span", lambda *a: calls.append(1) or real(*a))
    CODEC.encode(noise(512, 768))
    assert not calls and tiles.LARGE * 16 * 16 == 2**22


def test_progress_of_large_pictures_is_shown(tmp_path: Path, capsys, small_windows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pqmim.meter.LINE_EVERY_S", 0.0)
    Path("w").write_bytes(tiny_bytes(prior=True))
    Image.fromarray(np.asarray(noise(100, 120)[0].permute(1, 2, 0))).save("in.png")
    commands = [["compress", "in.png", "x.pqm"], ["decompress", "x.pqm", "x.png"]]
    for command in commands:
        assert main([*command, "--weights", "w"]) == 0
        assert capsys.readouterr().err == "", "a small picture"
    monkeypatch.setattr(images, "LARGE", 100 * 120)
    for command in commands:
        assert main([*command, "--force", "--weights", "w"]) == 0
        shares = [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()]
        assert any("window 9 of 9" in share for share in shares)
        assert any("stage 1 of" in share for share in shares)
        percents = [int(share.split("%")[0]) for share in shares]
        assert percents == sorted(percents) and percents[0] == 0 and percents[-1] > 80
        assert main([*command, "--force", "--weights", "w", "--quiet"]) == 0
        assert capsys.readouterr().err == ""
