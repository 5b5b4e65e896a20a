"""Stage 1: crops by step alone, exact resume, a start that is a transform codec, a step without
questions to the device."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pqmim import checkpoint, cli
from pqmim.autoencoder.network import PQVAE, to_float
from pqmim.training.photographs import autoencoder, runs, starts
from pqmim.training.photographs.autoencoder import Recipe, Trainer
from pqmim.training.photographs.photos import Photos, load
from pqmim.training.photographs.starts import Layer
from tests.corpus import jpeg, make_tar, pixels, png
from tests.models import TINY, tiny_codec

CPU = torch.device("cpu")
LAYERS = (Layer(2, 2, 3.0), Layer(4, 2, 2.0))
MODEL = starts.with_layers(TINY, LAYERS, (0.01, 0.1, 1.0, 10.0))
RECIPE = Recipe(model=MODEL, layers=LAYERS, crop=64, batch=4, minutes=1e9)


def images(count: int = 6, side: int = 96) -> list[torch.Tensor]:
    return [
        torch.from_numpy(pixels(side, side + 8 * i, i).transpose(2, 0, 1).copy())
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def photos() -> Photos:
    return Photos(images(), 64, CPU)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "START_BATCHES", 2)
    monkeypatch.setattr(autoencoder, "learning_rate", lambda recipe, used: 1e-3)


def started(photos: Photos) -> Trainer:
    trainer = Trainer(RECIPE, CPU)
    trainer.start(photos)
    return trainer


def test_a_resumed_run_is_the_uninterrupted_one(photos: Photos, tmp_path: Path) -> None:
    whole, first = started(photos), started(photos)
    for _ in range(6):
        whole.train_step(photos)
    for _ in range(3):
        first.train_step(photos)
    first.save(tmp_path / "checkpoint.pt")
    second = Trainer(RECIPE, CPU)
    second.load(tmp_path / "checkpoint.pt")
    for _ in range(3):
        second.train_step(photos)
    assert second.step == 6
    for name, tensor in whole.average.state_dict().items():
        assert torch.equal(tensor, second.average.state_dict()[name]), name


def test_a_step_moves_weights_books_and_lengths(photos: Photos) -> None:
    trainer = started(photos)
    model = trainer.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(3):
        report = trainer.train_step(photos)
    assert torch.isfinite(report).all()
    fixed = {"encoder.used", "quantizer.deal"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name in fixed), name


def test_a_steady_step_asks_the_device_for_nothing(photos: Photos) -> None:
    """No number is waited for: a GPU would stand still for each."""
    trainer = started(photos)
    trainer.train_step(photos)
    arguments = (photos.cut(photos.draw(4, 0, 1)), torch.rand(4, 2), torch.rand(6, 16))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        trainer.run(*arguments)
    counts = {event.key: event.count for event in seen.key_averages()}
    assert counts["aten::convolution_backward"] > 0
    # AdamW looks at its steps and rates on the CPU; on a GPU they are tensors there (capturable).
    numbers = len(list(trainer.model.parameters())) + len(trainer.optimizer.param_groups)
    assert counts.get("aten::_local_scalar_dense", 0) <= numbers
    assert "aten::nonzero" not in counts


def test_the_start_reconstructs_better_with_every_sub_code_and_layer(photos: Photos) -> None:
    model = started(photos).model
    shown = torch.stack([image[:, :96, :96] for image in images()])
    errors = [
        float((model.decode(model.encode(shown, q)).float() - shown.float()).square().mean())
        for q in (1, 2, 4, 6)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.7 * errors[1] < 0.5 * float(shown.float().var())


def test_channels_are_dealt_by_water_filling_and_anew_to_the_next_layer() -> None:
    energy = [2.0 ** (4 - k) for k in range(40)]
    config = starts.with_layers(TINY, LAYERS, ())
    table = starts.deal(config, LAYERS, energy)
    assert table.shape == (6, 2) and config.channels == 8
    first, second = table[:2].tolist(), table[2:].tolist()
    assert first[0] == [0, -1] and first[1][0] == 1
    used = [c for row in first for c in row if c >= 0]
    again = [c for row in second for c in row if c >= 0]
    assert set(used) <= set(again) and len(again) == len(set(again))
    assert sorted(again) == list(range(len(again)))
    for row in second:  # no part mixes channels of two sub-codes of the first layer
        owners = {next((i for i, f in enumerate(first) if c in f), None) for c in row if c >= 0}
        assert len(owners) <= 1


def test_a_model_with_other_sub_codes_continues_from_the_trunks(photos: Photos) -> None:
    torch.manual_seed(0)
    old, new = PQVAE(MODEL), PQVAE(MODEL)
    x = to_float(photos.cut(photos.draw(32, 0, 0)))
    for model in (old, new):
        starts.start_model(model, x, LAYERS)
    with torch.no_grad():
        turned = torch.linalg.qr(torch.randn(8, 8))[0]
        used = old.encoder.used.flatten()
        weight = old.encoder.linear.weight.flatten(1)
        assert used.sum() >= 4
        old.encoder.linear.weight.copy_((turned @ weight).reshape(old.encoder.linear.weight.shape))
        old.encoder.linear.bias.copy_(turned @ old.encoder.linear.bias)
        old.encoder.used.fill_(1.0)
        torch.nn.init.normal_(old.decoder.trunk[-2].weight, std=0.05)
        starts.transplant(new, old)
        shown = [m.decoder.trunk(m.encoder(x)) for m in (old, new)]
    assert (shown[0] - shown[1]).std() < 0.2 * shown[0].std()
    with pytest.raises(ValueError, match="widths"):
        starts.transplant(PQVAE(dataclasses.replace(MODEL, widths=(8, 8))), old)


def test_dead_codewords_come_back(photos: Photos) -> None:
    trainer = started(photos)
    trainer.books.total[0, 3] = 1e3 * trainer.books.count[0, 3]
    trainer.model.quantizer.codebook[0, 3] = 1e3  # nothing will ever choose it
    for _ in range(900):
        numbers = torch.rand(6, 16, generator=torch.Generator().manual_seed(trainer.step))
        rows = trainer.model.encoder(to_float(photos.cut(photos.draw(4, 0, trainer.step))))
        levels = rows.detach().permute(0, 2, 3, 1).flatten(0, 2).unflatten(0, (4, -1))
        codes, seen = trainer.books.quantise(levels, trainer.books.penalties())
        trainer.books.follow(codes, seen, numbers)
        trainer.step += 1
    assert trainer.model.quantizer.codebook[0].abs().max() < 100


def test_prices_order_the_rates(photos: Photos) -> None:
    trainer = started(photos)
    lengths = trainer.model.quantizer.lengths
    entropy = (torch.exp2(-lengths) * lengths).sum((1, 2))
    assert (entropy[1:] < 1.03 * entropy[:-1]).all() and entropy[-1] < 0.7 * entropy[0]


def test_crops_are_whole_pixels_of_the_photographs(photos: Photos) -> None:
    numbers = photos.draw(40, 3, 7)
    assert torch.equal(numbers, photos.draw(40, 3, 7))
    assert not torch.equal(numbers, photos.draw(40, 3, 8))
    originals = {image.shape: image for image in images()}
    seen = 0
    for crop, which in zip(photos.cut(numbers), numbers[:, 0].long().tolist(), strict=True):
        if which >= len(originals):
            continue  # of another scale
        source = images()[which]
        views = source.unfold(1, 64, 1).unfold(2, 64, 1)
        both = [(views == side[:, None, None]).all(-1).all(-1).all(0).any()
                for side in (crop, crop.flip(2))]  # fmt: skip
        assert any(both)
        seen += 1
    assert seen > 10


def test_photographs_that_are_smaller_than_a_crop_are_refused() -> None:
    with pytest.raises(ValueError, match="sides of 128 pixels"):
        Photos(images(), 128, CPU)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number in range(5):
        data = png(300, 280, seed=number) if number == 4 else jpeg(300, 280, seed=number)
        suffix = "png" if number == 4 else "jpg"
        (tmp_path / "photos" / "more" / f"{number}.{suffix}").write_bytes(data)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    yield tmp_path / "photos"


def test_photographs_come_from_folders_and_tars(folder: Path, tmp_path: Path) -> None:
    entries = [(f"{i}.jpg", jpeg(300, 280, seed=i)) for i in range(4)]
    (tmp_path / "0.tar").write_bytes(make_tar([*entries, ("0.txt", b"not an image")]))
    assert len(load([tmp_path / "0.tar"])) == 4
    assert len(load(folder)) == 5
    with pytest.raises(ValueError, match="5 images, none of them with sides of 400"):
        load(folder, 400)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="broken.jpg.*remove it"):
        load(folder)


def test_the_commands_make_weights_of_both_stages(folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(autoencoder, "sized", lambda size: MODEL)
    monkeypatch.setattr(
        Recipe, "on",
        classmethod(lambda cls, _, size, minutes: dataclasses.replace(RECIPE, minutes=minutes)),
    )  # fmt: skip
    monkeypatch.setattr(runs, "LOOK_S", 0.0)
    monkeypatch.setattr(runs, "HELD_OUT_SIZE", 64)

    def call(*arguments: object) -> int:
        return cli.main(["train", *map(str, arguments), "--quiet"])

    given = ("--images", folder, "--output", tmp_path / "first", "--minutes", 0.01)
    assert call("autoencoder", *given) == 0
    path = Path(capsys.readouterr().out.strip())
    weights = checkpoint.parse(path.read_bytes(), "new")
    assert weights.fingerprint.startswith(path.stem) and weights.model.config == MODEL
    lines = [json.loads(line) for line in (tmp_path / "first" / "log.jsonl").open()]
    assert lines[0]["images"] == 4 and lines[-1]["score"] < 0
    given = ("--images", folder, "--output", tmp_path / "second", "--minutes", 0.02)
    assert call("prior", *given, "--weights", path) == 0
    both = checkpoint.parse(Path(capsys.readouterr().out.strip()).read_bytes(), "new")
    assert both.prior is not None and both.prior.config.subcodes == MODEL.subcodes
    assert torch.equal(both.model.quantizer.codebook, weights.model.quantizer.codebook)
    lines = [json.loads(line) for line in (tmp_path / "second" / "log.jsonl").open()]
    assert 0 < lines[-1]["bits"] < 8 and lines[-1]["static_bits"] > 0


def test_a_second_run_goes_on_with_weights_of_its_own_shape(photos: Photos) -> None:
    first = started(photos)
    for _ in range(2):
        first.train_step(photos)
    second = Trainer(RECIPE, CPU)
    second.start(photos, first.average)
    for (name, mine), its in zip(
        second.model.named_parameters(), first.average.parameters(), strict=True
    ):
        assert torch.equal(mine, its), name
    assert tiny_codec().config != MODEL


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", "{}/*.tar"], "matches 0 tars, two are needed"),
        (["--images", "{}/none"], "0 images"),
    ],
)
def test_too_few_photographs_are_said(arguments, says, tmp_path, capsys) -> None:
    given = [part.format(tmp_path) for part in arguments]
    code = cli.main(["train", "autoencoder", *given, "--output", str(tmp_path / "run")])
    assert code == 2 and says in capsys.readouterr().err
