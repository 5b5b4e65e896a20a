"""The training loop: crops by step alone, exact resume, and a start that is a transform codec."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from pqmim import checkpoint, cli
from pqmim.autoencoder.network import PQVAE, start_linear, to_float
from pqmim.training import autoencoder, codes, crops
from tests.corpus import jpeg, make_tar, png
from tests.models import TINY, TINY_PRIOR, tiny_bytes, tiny_codec, tiny_prior

RECIPE = autoencoder.Recipe(model=TINY, crop=64, batch=2, minutes=1e9)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    paths = []
    for number in range(2):
        entries = [(f"{i}.jpg", jpeg(300, 280, seed=10 * number + i)) for i in range(4)]
        paths.append(tmp_path / f"{number}.tar")
        paths[-1].write_bytes(make_tar([*entries, ("0.txt", b"not an image")]))
    return paths


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(autoencoder, "START_CROPS", 8)
    monkeypatch.setattr(autoencoder, "learning_rate", lambda recipe, used: 1e-3)


def steps(trainer: autoencoder.Trainer, images: list[torch.Tensor], count: int) -> None:
    stream = crops.batches(images, 64, 2, seed=0, first_step=trainer.step)
    for _ in range(count):
        trainer.train_step(next(stream))


def test_a_resumed_run_is_the_uninterrupted_one(shards, tmp_path):
    images = crops.load_images(shards)
    assert len(images) == 8
    whole = autoencoder.Trainer(RECIPE, torch.device("cpu"))
    whole.start(images)
    steps(whole, images, 6)
    first = autoencoder.Trainer(RECIPE, torch.device("cpu"))
    first.start(images)
    steps(first, images, 3)
    first.save(tmp_path / "checkpoint.pt")
    second = autoencoder.Trainer(RECIPE, torch.device("cpu"))
    second.load(tmp_path / "checkpoint.pt")
    assert second.step == 3
    steps(second, images, 3)
    for name, tensor in whole.average.state_dict().items():
        assert torch.equal(tensor, second.average.state_dict()[name]), name


def test_a_step_changes_the_weights_and_reports_finite_numbers(shards):
    images = crops.load_images(shards)
    trainer = autoencoder.Trainer(RECIPE, torch.device("cpu"))
    trainer.start(images)
    before = trainer.model.decoder.trunk[-2].weight.clone()
    report = trainer.train_step(next(crops.batches(images, 64, 2, 0, 0)))
    assert not torch.equal(before, trainer.model.decoder.trunk[-2].weight)
    assert all(value == value and abs(value) < 1e6 for value in report.values())


def test_the_command_writes_weights_and_log(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "LOG_EVERY", 1)
    monkeypatch.setattr(autoencoder, "SAVE_EVERY", 2)
    recipe = autoencoder.Recipe(model=TINY, crop=64, batch=2, minutes=0.01)
    model = autoencoder.train(recipe, shards, tmp_path / "run", torch.device("cpu"))
    path = checkpoint.write(model, tmp_path / "run")
    assert checkpoint.from_bytes(path.read_bytes(), "new")[1].startswith(path.stem)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert lines[0]["images"] == 4 and lines[-1]["psnr_0"] > 0


def unchained_bytes() -> bytes:
    return checkpoint.to_bytes(tiny_codec().model, tiny_prior(chain=False))


def test_an_entropy_model_goes_on_for_the_codes_of_another_autoencoder(shards, tmp_path, capsys):
    named = dict(bare=tiny_bytes(), full=unchained_bytes(), other=tiny_bytes(subcodes=2))
    for name, data in named.items():
        (tmp_path / name).write_bytes(data)
    command = ["train", "prior", "--input", str(tmp_path / "*.tar"), "--passes", "1"]
    command += ["--minutes", "0.001", "--output", str(tmp_path / "run")]

    def call(weights: str, go_on: str) -> int:
        paths = ["--weights", str(tmp_path / weights), "--go-on", str(tmp_path / go_on)]
        return cli.main([*command, *paths, "--searched", "1"])

    assert call("bare", "full") == 0
    written = checkpoint.parse(Path(capsys.readouterr().out.strip()).read_bytes(), "new")
    assert written.prior is not None and written.prior.config == TINY_PRIOR  # with a chain now
    assert call("bare", "bare") == 2
    assert "no entropy model" in capsys.readouterr().err
    assert call("other", "full") == 2
    assert "has 2 sub-codes" in capsys.readouterr().err


def test_the_start_reconstructs_better_with_every_sub_code():
    torch.manual_seed(0)
    model = PQVAE(TINY)
    images = torch.stack([torch.from_numpy(_smooth(seed)) for seed in range(12)])
    start_linear(model, to_float(images), 4.0)
    with torch.no_grad():
        model.quantizer.start(model.encoder(to_float(images)), 0.0)
    errors = [
        float((model.decode(model.encode(images, q)).float() - images.float()).square().mean())
        for q in (1, 2, 4)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.5 * float(images.float().var())


def test_a_model_with_other_sub_codes_continues_from_the_trunks():
    torch.manual_seed(0)
    images = torch.stack([torch.from_numpy(_smooth(seed)) for seed in range(12)])
    x = to_float(images)
    old, new = PQVAE(TINY), PQVAE(dataclasses.replace(TINY, subcodes=3, subcode_dims=3))
    start_linear(old, x, 4.0)
    start_linear(new, x, 5.0)
    for part in (old.encoder, old.decoder):
        torch.nn.init.normal_(part.trunk[-1 if part is old.encoder else -2].weight, std=0.05)
    autoencoder.transplant(new, old)
    with torch.no_grad():
        shown = [m.decoder.trunk(m.encoder.linear(m.encoder.patch(x))) for m in (old, new)]
        assert (shown[0] - shown[1]).std() < 0.5 * shown[0].std()
    with pytest.raises(ValueError, match="widths"):
        autoencoder.transplant(PQVAE(dataclasses.replace(TINY, widths=(8, 8))), old)


def _smooth(seed: int):
    from tests.corpus import pixels

    return pixels(96, 96, seed).transpose(2, 0, 1).copy()


def test_crops_depend_on_seed_and_step_alone(shards):
    images = crops.load_images(shards)
    ahead = crops.batches(images, 64, 2, seed=5, first_step=0, threads=3)
    third = [next(ahead) for _ in range(3)][2]
    assert torch.equal(third, next(crops.batches(images, 64, 2, seed=5, first_step=2)))
    assert not torch.equal(third, next(crops.batches(images, 64, 2, seed=6, first_step=2)))
    assert third.shape == (2, 3, 64, 64) and third.dtype == torch.uint8


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


def test_codes_for_the_prior_are_priced_and_searched(shards):
    codec, images = tiny_codec(prior=True), crops.load_images(shards)
    codes.measure_lengths(codec, images)
    lengths = codec.model.quantizer.lengths()
    assert torch.allclose(torch.exp2(-lengths).sum(1), torch.ones(4))
    plain = codes.corpus_codes(codec, images[:2], 2)
    assert [c.shape for c in plain[:2]] == [(18, 19, 4)] * 2 and len(plain) == 4
    searched = codes.searched_codes(codec, images, 3)
    assert len(searched) == 3 and all(c.shape[2] == 4 and c.dtype == "uint8" for c in searched)
    again = codes.searched_codes(codec, images, 3)
    assert all((a == b).all() for a, b in zip(searched, again, strict=True))
