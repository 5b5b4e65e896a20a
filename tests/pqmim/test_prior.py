"""Training form, calibration, export: what is trained is what is decoded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pqmim.autoencoder.config import ConfigError
from pqmim.coding import payloads, schedule
from pqmim.prior import exact, integers, load, tensors
from pqmim.prior.config import PriorConfig
from pqmim.prior.engine import probe_before
from pqmim.training import prior as training
from pqmim.training import prior_run
from pqmim.training.masters import masters
from pqmim.training.network import Prior
from pqmim.training.starts import start_from_codebook
from pqmim.training.to_integers import calibrate, export, quantise
from tests.pqmim import exact_harness
from tests.pqmim.exact_tools import TINY, UNCHAINED, lcg, tiny_checkpoint

CPU = torch.device("cpu")
START = (
    torch.randn(8, 256, 4, generator=torch.Generator().manual_seed(0)),
    torch.full((8, 256), 8.0),
)
RECIPE = training.PriorRecipe(model=TINY, plan=(4, 2), batch=4, minutes=1.0)


def related_codes(count: int, height: int, width: int) -> list[np.ndarray]:
    """Grids whose sub-codes and neighbours share much: one slow wave, eight readings of it."""
    images = []
    for seed in range(1, count + 1):
        phase = lcg(1, seed)[0] % 64
        y, x = np.mgrid[:height, :width]
        wave = (y * 3 + x * 2 + phase) // 8
        images.append(((wave[..., None] + 5 * np.arange(8)) % 16).astype(np.uint8))
    return images


@pytest.fixture(scope="module")
def trained() -> training.Trainer:
    """Some dozens of float steps: logits with structure, activations of a real model."""
    torch.set_num_threads(1)
    trainer = training.Trainer(RECIPE, CPU)
    trainer.seconds = 3.0  # past the warm-up
    stream = training.batches(related_codes(6, 20, 24), RECIPE, 0, CPU)
    for _ in range(40):
        trainer.train_step(next(stream))
    trainer.average.load_state_dict(trainer.model.state_dict())
    return trainer


def test_training_forward_equals_the_engine_on_a_million_logits(trained: training.Trainer) -> None:
    stream = training.batches(related_codes(2, 20, 24), RECIPE, 5, CPU)
    powers = calibrate(trained.average, [(b.tokens, b.present) for b in (next(stream),)])
    checkpoint = export(trained.average, powers)
    engine = tensors.Engine(checkpoint, CPU, form="float32")
    net = quantise(trained.average, powers)
    tokens, present = exact_harness.windows(4)
    hidden = exact.hidden(net, tokens, present)
    assert hidden.requires_grad
    rows = present.reshape(4, -1)
    mine, theirs = hidden[rows], engine.hidden(tokens, present)[rows]
    assert (mine == theirs).all()
    compared = 0
    for part in range(TINY.subcodes // TINY.together):
        before = probe_before(TINY, part, theirs)
        logits = exact.logits(net, mine, part, before)
        assert (logits == engine.logits(theirs, part, before)).all()
        compared += logits.numel()
    assert compared > 1_000_000


def test_integers_cost_little_and_carry_gradients_everywhere(trained: training.Trainer) -> None:
    stream = training.batches(related_codes(6, 20, 24), RECIPE, 100, CPU)
    parts = [next(stream) for _ in range(3)]
    powers = calibrate(trained.average, [(b.tokens, b.present) for b in parts])
    with torch.no_grad():
        plain = sum(float(training.loss_bits(trained.average, None, b)) for b in parts)
        exactly = sum(float(training.loss_bits(trained.average, powers, b)) for b in parts)
    assert plain < 3 * 7.5, "the model has learned nothing"
    assert abs(exactly / plain - 1) < 0.01
    model = trained.average
    model.requires_grad_(True).zero_grad()
    training.loss_bits(model, None, parts[0]).backward()
    smooth = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    training.loss_bits(model, powers, parts[0]).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if name.endswith("weight"):
            alike = torch.cosine_similarity(p.grad.flatten(), smooth[name].flatten(), dim=0)
            assert alike > 0.8, f"{name}: the integer form's gradient points elsewhere"


def test_rows_that_would_overflow_are_coarsened_at_export(trained: training.Trainer) -> None:
    config = PriorConfig(
        subcodes=4, codewords=16, group=4, dims=64, heads=1, hidden=640, local=(False,)
    )
    prior = Prior(config)
    with torch.no_grad():
        prior.blocks[0].down.weight[0].fill_(0.24)  # 123 / 512
    tokens = torch.full((1, 16, 16, 4), config.mask)
    powers = calibrate(prior, [(tokens, None)])
    checkpoint = export(prior, powers)
    weight = checkpoint.arrays["blocks.0.down.weight"][0]
    assert (weight == 61).all()  # 123 * 127 * 640 is beyond 2**23


def test_weights_no_integer_can_hold_are_refused() -> None:
    prior = Prior(TINY)
    with torch.no_grad():
        prior.blocks[0].out.weight[3].fill_(1e4)
    tokens, _ = exact_harness.windows(1)
    with pytest.raises(integers.RangeError, match="blocks.0.out row 3"):
        calibrate(prior, [(tokens, None)])


def test_batches_mask_as_the_decoder_does() -> None:
    stream = training.batches(related_codes(3, 20, 24), RECIPE, 0, CPU)
    partial = 0
    for batch, _ in zip(stream, range(30), strict=False):
        partial += batch.present is not None
        for i, group in enumerate(batch.groups):
            tokens, masked = batch.tokens[i], batch.masked[i]
            present = torch.ones(16, 16, dtype=torch.bool)
            present = present if batch.present is None else batch.present[i]
            span = slice(4 * group, 4 * group + 4)
            assert (tokens[..., 4 * group + 4 :] == TINY.mask).all()
            assert (tokens[~present] == TINY.mask).all()
            assert (
                tokens[present][:, : 4 * group] == batch.targets[i][present][:, : 4 * group]
            ).all()
            assert not masked[..., : 4 * group].any() and not masked[~present].any()
            hidden_cells = tokens[present][:, span] == TINY.mask
            assert (masked[present][:, span] == hidden_cells).all()
    assert partial > 0


def test_batches_depend_on_their_number_alone() -> None:
    images = related_codes(3, 20, 24)
    stream = training.batches(images, RECIPE, 0, CPU)
    first = [next(stream) for _ in range(4)]
    again = next(training.batches(images, RECIPE, 3, CPU))
    assert (again.tokens == first[3].tokens).all() and (again.masked == first[3].masked).all()


def test_a_run_learns_exports_and_resumes(tmp_path: Path) -> None:
    images = related_codes(6, 20, 24)
    recipe = dataclasses.replace(RECIPE, minutes=0.05, integer_share=0.3)
    trainer = prior_run.begin(recipe, tmp_path, CPU, *START, None)
    checkpoint = prior_run.train(trainer, images[1:], images[:1], tmp_path, log_every=5)
    model = load.load(checkpoint, CPU)
    lines = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    assert first["step"] == 0 < last["step"]
    assert last["bits_per_code"] < min(8.5, first["bits_per_code"])
    payload = payloads.code_image(model, images[0], schedule.FAST_PLAN)
    shape = images[0].shape
    assert (payloads.decode_image(model, payload, shape, schedule.FAST_PLAN) == images[0]).all()
    trainer = prior_run.begin(recipe, tmp_path, CPU, *START, None)
    again = prior_run.train(trainer, images[1:], images[:1], tmp_path)
    assert again.model_id == checkpoint.model_id  # the budget was used up: nothing left to train


def test_a_run_goes_on_in_floats_from_a_model_without_a_chain(tmp_path: Path) -> None:
    other = tiny_checkpoint(UNCHAINED)
    trainer = prior_run.begin(RECIPE, tmp_path, CPU, *START, other)
    assert trainer.powers is None and trainer.model.chain is not None
    tokens, present = exact_harness.windows(2)
    earlier, _ = masters(other, CPU)
    before = exact_harness.all_logits(earlier, earlier.hidden(tokens, present)[0])
    after = exact_harness.all_logits(trainer.model, trainer.model.hidden(tokens, present)[0])
    assert torch.allclose(torch.cat(before, 1), torch.cat(after, 1), atol=1e-4)
    trainer.train_step(next(training.batches(related_codes(2, 20, 24), RECIPE, 0, CPU)))
    assert trainer.model.chain[:256].abs().max() > 0, "the first sub-code tells the second"


def test_ideal_code_length_is_what_the_coder_writes(trained: training.Trainer) -> None:
    tokens, present = exact_harness.windows(2)
    model = load.load(export(trained.average, calibrate(trained.average, [(tokens, present)])), CPU)
    codes = related_codes(1, 20, 24)[0]
    bits = payloads.bits_per_code(model, [codes], (4, 2))
    ideal = sum(bits) * codes.size / 2 / 8
    assert ideal <= len(payloads.code_image(model, codes, (4, 2))) <= ideal + 5


@pytest.mark.parametrize(
    "fields",
    [{"dims": 100, "heads": 3}, {"dims": 256, "heads": 2}, {"codewords": 257}, {"group": 3},
     {"local": ()}, {"hidden": 0}],
)  # fmt: skip
def test_impossible_shapes_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        PriorConfig(**fields)  # type: ignore[arg-type]


def test_config_survives_json() -> None:
    assert PriorConfig.from_json(TINY.to_json()) == TINY
    with pytest.raises(ConfigError):
        PriorConfig.from_json('{"layers": 3}')


def test_the_start_knows_the_static_lengths_and_which_codewords_are_alike() -> None:
    prior = Prior(TINY)
    book, lengths = START[0].clone(), torch.full((8, 256), 9.0)
    book[3, 7], lengths[:, 0] = book[3, 9], 1.0
    start_from_codebook(prior, book, lengths, seed=0)
    codes = prior.codes.reshape(8, 257, -1)
    near = (codes[3, 7] - codes[3, 9]).norm()
    assert near < 0.5 * torch.cdist(codes[3, :256], codes[3, :256]).median()
    logits = prior.logits(torch.randn(50, TINY.dims), 0)
    assert ((logits[..., :1] - logits[..., 1:]).mean(-1) > 4).all()
