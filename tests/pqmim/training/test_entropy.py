"""Stage 2: what is masked, what the corpus holds, and that a run gets better than static tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pqmim import checkpoint
from pqmim.autoencoder.network import PQVAE
from pqmim.coding import schedule
from pqmim.prior.config import PriorConfig
from pqmim.training.photographs import entropy, runs
from pqmim.training.photographs.corpus import Corpus, priced
from pqmim.training.photographs.entropy import PriorRecipe, PriorTrainer
from pqmim.training.photographs.masking import Masks, shares
from pqmim.training.photographs.photos import Photos
from pqmim.training.starts import code_lengths
from tests.models import LAYERED, TINY, deal_out, tiny_codec
from tests.pqmim.training.test_training import CPU, images

CONFIG = PriorConfig(subcodes=4, codewords=16, group=2, dims=16, heads=2, hidden=32, local=(True,))
RECIPE = PriorRecipe(CONFIG, plan=(2,), batch=6, pool=2, renew_every=2, minutes=1e9)


def model() -> PQVAE:
    torch.manual_seed(0)
    found = PQVAE(LAYERED).requires_grad_(False)
    for layer in (found.encoder.linear, found.decoder.linear):
        torch.nn.init.normal_(layer.weight, std=0.05)
    deal_out(found.quantizer)
    return found.eval()


def corpus(found: PQVAE | None = None) -> Corpus:
    return Corpus(found or model(), Photos(images(4, 280), 256, CPU), 2, CONFIG, seed=0)


def test_every_group_has_its_share_of_a_batch() -> None:
    wide = dataclasses.replace(CONFIG, subcodes=96, group=8)
    groups = shares(wide, 128)
    counts = [groups.count(g) for g in range(12)]
    assert sum(counts) == 128 and counts == sorted(counts, reverse=True)
    assert counts[0] == round(128 * 0.5 / sum(1 / (g + 2) for g in range(12)))
    assert shares(wide, 12) == list(range(12))
    with pytest.raises(ValueError, match="no room for 12 groups"):
        shares(wide, 11)


def test_samples_see_coarser_groups_and_nothing_finer() -> None:
    masks = Masks(CONFIG, 400, (4, 2), CPU)
    codes = torch.randint(0, 16, (400, 16, 16, 4), generator=torch.Generator().manual_seed(0))
    numbers = torch.rand(400, 6, generator=torch.Generator().manual_seed(1))
    places = torch.rand(400, 16, 16, generator=torch.Generator().manual_seed(2))
    found = masks.of(codes, numbers, places)
    known = found.tokens != CONFIG.mask
    assert torch.equal(found.tokens[known], codes[known])
    assert not known[~found.present].any()
    for sample, group in enumerate(masks.groups):
        inside = found.present[sample]
        own = slice(2 * group, 2 * group + 2)
        assert known[sample, inside][:, : own.start].all()
        assert not known[sample, inside][:, own.stop :].any()
        assert torch.equal(found.asked[sample, inside], ~known[sample, inside][:, own])
        assert torch.equal(found.codes[sample], codes[sample][..., own])
    assert not found.asked[~found.present].any()
    partial = (~found.present).any((1, 2)).float().mean()
    assert 0.04 < partial < 0.16
    first = known[: masks.groups.count(0)]
    coarse = (first[..., 0] & ~first[..., 1]).any((1, 2)).float().mean()
    assert 0.1 < coarse < 0.3
    stage = schedule.position_stages(4)
    planned = [
        any(torch.equal(k[..., 0], torch.from_numpy(stage < s)) for s in range(4))
        for k, whole in zip(first, found.present, strict=False) if whole.all()
    ]  # fmt: skip
    assert 0.4 < sum(planned) / len(planned) < 0.7


def test_the_corpus_has_codes_of_every_price_and_the_nearest_ones() -> None:
    pool = corpus()
    assert pool.pool.shape == (8, 3, 16, 16, 4) and pool.allowed == [3, 2]
    pixels = pool.photos.cut(pool.photos.draw(12, 0, 0))
    found, quantizer = pool.model, pool.model.quantizer
    rows = found.encoder(pixels.float() / 127.5 - 1).permute(0, 2, 3, 1)
    for level, price in enumerate((0.0, *LAYERED.prices)):
        for i in range(4):
            own = rows[4 * level + i].reshape(256, -1)
            wanted = quantizer.choose(own, 4, price).reshape(16, 16, 4)
            assert (pool.pool[i, level] == wanted).float().mean() > 0.999
    before = pool.pool.clone()
    pool.renew()
    assert not torch.equal(pool.pool[:4], before[:4]) and torch.equal(pool.pool[4:], before[4:])
    levels = torch.tensor([3, 2, 1]).repeat(50)
    drawn, level = pool.draw(levels, torch.rand(150, 2))
    assert drawn.shape == (150, 16, 16, 4) and (level < levels).all() and int(level.max()) == 2


def test_training_gets_below_static_lengths_and_through_the_integers(tmp_path: Path) -> None:
    pool = corpus()
    trainer = PriorTrainer(dataclasses.replace(RECIPE, peak_lr=2e-2), CPU)
    runs._start_prior(trainer, pool.model, None)
    first = trainer.validate(pool)
    for _ in range(60):
        report = trainer.train_step(pool)
    assert torch.isfinite(report).all()
    then = trainer.validate(pool)
    assert then["bits"] < first["bits"] and then["bits"] < then["static_bits"]
    trainer.go_over(pool)
    for _ in range(3):
        trainer.train_step(pool)
    exact = trainer.validate(pool)
    assert abs(exact["bits"] - then["bits"]) < 0.2 * then["bits"]
    trainer.save(tmp_path / "state.pt")
    second = PriorTrainer(trainer.recipe, CPU)
    second.load(tmp_path / "state.pt")
    assert second.validate(pool) == exact
    data = checkpoint.to_bytes(pool.model, entropy_of(second))
    assert checkpoint.parse(data, "new").prior is not None


def entropy_of(trainer: PriorTrainer):  # noqa: ANN201 - integers.Checkpoint
    from pqmim.training.to_integers import export

    assert trainer.powers is not None
    return export(trainer.average, trainer.powers)


def test_a_model_without_code_lengths_gets_some_and_keeps_the_rest() -> None:
    old = tiny_codec().model
    found = priced(old, images(4, 280), seed=0)
    assert found.config == dataclasses.replace(TINY, prices=found.config.prices)
    assert priced(found, [], seed=0) is found
    for name, tensor in old.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name
    lengths = found.quantizer.lengths
    entropies = (torch.exp2(-lengths) * lengths).sum((1, 2))
    assert (entropies[1:] < 1.03 * entropies[:-1]).all() and entropies[-1] < 0.9 * entropies[0]


def test_code_lengths_are_a_code() -> None:
    uses = torch.tensor([[5.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    lengths = code_lengths(uses)
    assert (
        torch.allclose(torch.exp2(-lengths).sum(1), torch.ones(2)) and torch.isfinite(lengths).all()
    )
    assert lengths[0, 0] < lengths[0, 2] < lengths[0, 1]


def test_sizes_fit_their_sub_codes() -> None:
    wide = entropy.sized("base", 96, 256)
    assert (wide.groups, wide.dims) == (12, 160) and wide.chain
    assert entropy.sized("small", 32, 256) == PriorConfig()
