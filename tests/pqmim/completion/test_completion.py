"""Completion: sent codes stay, a seed names one image everywhere, and nonsense is refused."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqmim.codec import Codec, NoPriorError
from pqmim.coding import schedule
from pqmim.completion import draw, masks
from pqmim.completion.rule import CompletionError, Rule
from pqmim.prior import frequencies, tensors
from tests.models import TINY_PRIOR, tiny_codec, tiny_prior
from tests.pqmim.prior.exact_tools import lcg

PLAN = (130, 130)


@functools.cache
def codec() -> Codec:
    return tiny_codec(prior=True)


def grids(batch: int, height: int = 18, width: int = 21, m: int = 4) -> torch.Tensor:
    values = lcg(batch * height * width * m, 1) % 16
    return torch.from_numpy(values.reshape(batch, height, width, m)).to(torch.uint8)


def half(codes: torch.Tensor) -> torch.Tensor:
    kept = masks.first_stages(tuple(codes.shape[1:]), PLAN, 2, 1)
    return torch.from_numpy(kept).expand(codes.shape)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 20), st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**32),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.integers(1, 5),
)  # fmt: skip
def test_sent_codes_stay_and_all_others_are_codes(height, width, m, seed, temperature, steps):
    codes = grids(1, height, width, m)
    rng = np.random.default_rng(seed)
    known = torch.from_numpy(rng.random(codes.shape) < rng.random())
    got = codec().complete(codes, known, steps=steps, temperature=temperature, seed=seed)
    assert got.dtype == torch.uint8 and got.shape == codes.shape
    assert torch.equal(got[known], codes[known]) and int(got.max()) < 16


def test_what_was_not_sent_is_not_looked_at():
    codes = grids(2)
    known = half(codes)
    other = torch.where(known, codes, 255).to(torch.uint8)
    assert torch.equal(codec().complete(codes, known), codec().complete(other, known))


def test_all_known_costs_nothing_and_changes_nothing(monkeypatch):
    codes = grids(1)
    monkeypatch.setattr(draw, "_take", None)
    assert torch.equal(codec().complete(codes, torch.ones_like(codes, dtype=torch.bool)), codes)


def test_a_batch_is_completed_like_each_image_alone():
    codes = grids(4)
    known = half(codes)
    together = codec().complete(codes, known, seed=7)
    for i in range(4):
        alone = codec().complete(codes[i : i + 1], known[i : i + 1], seed=7)
        assert torch.equal(together[i : i + 1], alone)


def test_the_number_of_threads_does_not_matter():
    codes = grids(1)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(codec().complete(codes, half(codes), seed=3))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_the_oracle_completes_to_the_same_codes():
    oracle = tensors.Oracle(TINY_PRIOR, tiny_prior().arrays)
    codes = grids(1, 5, 4).numpy()
    known = np.random.default_rng(0).random(codes.shape) < 0.3
    prior = codec().prior
    assert prior is not None and not isinstance(prior, tensors.Oracle)
    for temperature in (0.0, 0.7, 1.0):
        rule = Rule(3, temperature, 5)
        ours = draw.complete(prior, codes, known, rule)
        assert (ours == draw.complete(oracle, codes, known, rule)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_completes_to_the_same_codes():
    there = Codec(tiny_codec(prior=True).model, codec().fingerprint, "cuda", tiny_prior())
    codes = grids(4)
    for temperature in (0.0, 0.7, 1.0):
        options = {"temperature": temperature, "seed": 11}
        here = tiny_codec(prior=True).complete(codes, half(codes), **options)
        assert torch.equal(there.complete(codes, half(codes), **options), here)


def test_a_seed_an_image_gives_variations():
    codes = grids(1).expand(3, -1, -1, -1)
    known = half(codes)
    got = codec().complete(codes, known, seed=(1, 2, 1))
    assert torch.equal(got[0], got[2]) and not torch.equal(got[0], got[1])
    assert torch.equal(got[1:2], codec().complete(codes[:1], known[:1], seed=2))


@pytest.mark.parametrize("chain", [False, True])
def test_golden_codes(chain):
    """Changed values are changed pictures for everyone's seeds: a line in the changelog."""
    codes = grids(1, 3, 3)
    none = torch.zeros_like(codes, dtype=torch.bool)
    fixed = Codec(codec().model, codec().fingerprint, prior=tiny_prior(chain=chain))
    got = fixed.complete(codes, none, steps=2, seed=1).flatten().tolist()
    assert draw.points(draw.position_streams(1, 1, 2)[0], slice(0, 2)).tolist() == (GOLDEN_POINTS)
    assert got == GOLDEN_CODES[chain]


def test_temperature_one_is_what_the_coder_uses_and_zero_the_first_of_the_best():
    logits = torch.tensor([[[5.0, 9.0, 9.0, -300.0]]])
    coder = frequencies.weights(logits.double()) + 1
    assert torch.equal(draw.frequencies(logits, 256), coder)
    ends = coder.cumsum(-1).flatten().tolist()
    for symbol, end in enumerate(ends):
        at = torch.tensor([[int(end) - 1]])
        assert draw.draw(logits, 256, at).item() == symbol
    assert draw.draw(logits, 0, torch.tensor([[2**24 - 1]])).item() == 1
    hot = draw.frequencies(logits, 4096)
    assert hot.sum() == 2**24 and hot[0, 0, 3] > coder[0, 0, 3]


def test_draws_follow_the_frequencies():
    streams = draw.position_streams(9, 100, 100).reshape(-1)
    at = torch.from_numpy(draw.points(streams, slice(0, 2)))
    logits = torch.tensor([64.0, 32.0, 0.0, 0.0]).expand(len(at), 2, 4)  # 1, 1/2, 1/4, 1/4
    drawn = draw.draw(logits, 256, at)
    share = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    assert (share - torch.tensor([4, 2, 1, 1]) / 8).abs().max() < 0.02
    assert abs(float(torch.corrcoef(drawn.T.double())[0, 1])) < 0.05


def test_the_turns_cover_what_is_missing_in_bayer_order():
    missing = np.random.default_rng(0).random((3, 16, 16)) < 0.4
    turns = draw._turns(missing, 4)
    assert ((turns >= 0) == missing).all() and turns.max() == 3
    ranks = schedule.bayer_ranks()
    for window, mask in zip(turns, missing, strict=True):
        by_rank = window[mask][np.argsort(ranks[mask])]
        assert (np.diff(by_rank) >= 0).all()
        sizes = np.cumsum(np.bincount(by_rank, minlength=4))
        assert (sizes == mask.sum() * np.arange(1, 5) ** 2 // 16).all()


def test_the_mean_is_the_expectation_of_the_first_group():
    codes, none = grids(1, 2, 2), np.zeros((1, 2, 2, 4), bool)
    prior, book = codec().prior, codec().model.quantizer.codebook
    assert prior is not None
    means = draw.expected(prior, codes.numpy(), none, book)
    images, empty = codes.expand(300, -1, -1, -1).numpy(), np.repeat(none, 300, 0)
    rule = Rule(1, 1.0, tuple(range(300)))
    drawn = torch.from_numpy(draw.complete(prior, images, empty, rule)).long()
    sample = book[0][drawn[..., 0]]  # the next ones lean on the most probable one here
    error = (sample.mean(0) - torch.from_numpy(means[0, :, :, 0])).abs()
    assert (error < 5 * sample.std(0) / 300**0.5).all()


def test_a_preview_of_all_codes_is_the_picture_and_of_some_differs():
    codes = grids(2, 3, 4)
    whole = codec().decode(codes, 48, 60)
    assert torch.equal(codec().preview(codes, torch.ones_like(codes).bool(), 48, 60), whole)
    some = half(codes)
    shown = codec().preview(codes, some, 48, 60)
    assert shown.shape == whole.shape and not torch.equal(shown, whole)
    assert not torch.equal(codec().decode(codes, 48, 60, some), whole)


def test_masks():
    shape = (6, 8, 4)
    assert (masks.first_subcodes(shape, 3).sum((0, 1)) == [48, 48, 48, 0]).all()
    kept = masks.outside(shape, (17, 32, 16, 1), 16)
    assert (~kept[..., 0]).sum() == 2 and not kept[1:3, 2].any()
    stages = [masks.first_stages(shape, PLAN, 2, n).sum() for n in range(5)]
    assert stages == [0, 48, 96, 144, 192]
    share = masks.random_share((100, 100, 4), 0.25, 1)
    assert abs(share.mean() - 0.25) < 0.02 and (share == share[..., :1]).all()
    assert (share == masks.random_share((100, 100, 4), 0.25, 1)).all()
    assert masks.random_share(shape, 1.0).all() and not masks.random_share(shape, 0.0).any()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: masks.first_subcodes((2, 2, 4), 5), "5 sub-codes of 4"),
        (lambda: masks.first_stages((2, 2, 4), PLAN, 2, 5), "5 stages of a plan that has 4"),
        (lambda: masks.outside((2, 2, 4), (40, 0, 5, 5), 16), "lies outside"),
        (lambda: masks.outside((2, 2, 4), (0, 0, 0, 5), 16), "top, left, height, width"),
        (lambda: masks.random_share((2, 2, 4), 1.5), "not in 0..1"),
        (lambda: codec().complete(grids(1), half(grids(1)), steps=0), "0 steps"),
        (lambda: codec().complete(grids(1), half(grids(1)), steps=257), "257 steps"),
        (lambda: codec().complete(grids(1), half(grids(1)), temperature=-1), "temperature -1"),
        (lambda: codec().complete(grids(1), half(grids(1)), temperature=17), "temperature 17"),
        (lambda: codec().complete(grids(1), half(grids(1)), temperature=float("nan")), "nan"),
        (lambda: codec().complete(grids(1), half(grids(1)), seed=-1), "seed -1"),
        (lambda: codec().complete(grids(2), half(grids(2)), seed=(1,)), "1 seeds for 2 images"),
        (lambda: codec().complete(grids(1), half(grids(1))[:, :2]), "mask must be bool"),
        (lambda: codec().complete(grids(1), grids(1)), "mask must be bool"),
        (lambda: codec().complete(grids(1, m=5), half(grids(1, m=4))), "mask must be bool"),
        (lambda: codec().complete(grids(1) + 16, half(grids(1))), "another model"),
        (lambda: codec().complete(grids(1).float(), half(grids(1))), "codes"),
        (lambda: codec().decode(grids(1, 2, 2), 32, 32, half(grids(1, 3, 3))), "mask must be"),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_codes_of_more_subcodes_than_the_model_are_refused():
    codes = grids(1, m=5)
    with pytest.raises(CompletionError, match="5 sub-codes, the model has 4"):
        codec().complete(codes, torch.ones_like(codes).bool())
    with pytest.raises(NoPriorError):
        tiny_codec().complete(codes, codes.bool())


GOLDEN_POINTS = [[11635202, 7100309], [5731622, 7378366]]
GOLDEN_CODES = [  # of a model without a chain, and with one
    list(bytes.fromhex("060a020f010a02070e0d0f0f030d0d0b060d0b0d010d0b02010a050e010d060a01010202")),
    list(bytes.fromhex("030c030e030d000c0d0c0c0e03050c0c0902090f030d0a0c0202070e010c080802010806")),
]
