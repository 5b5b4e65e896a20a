"""Codes chosen by distance plus price: the stream is the format's own, and prices order sizes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from pqmim.codec import Codec, NoPriorError
from pqmim.coding import payloads as code_stream
from pqmim.coding import search
from tests.models import LAYERED, TINY, tiny_codec

PLAN = (2, 130)


@functools.cache
def codec(*, layers: bool = False) -> Codec:
    return tiny_codec(prior=True, of=LAYERED if layers else TINY)


@functools.cache
def shipped() -> Codec:
    return Codec.load()


def smooth(batch: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    small = torch.rand(batch, 3, 4, 6, generator=generator)
    grown = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
    return (grown * 255).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("size", [(40, 50), (90, 300), (260, 16)])
@pytest.mark.parametrize("quality", [1, 3, 4])
@pytest.mark.parametrize("layers", [False, True])
def test_the_payload_is_what_entropy_coding_makes_of_the_codes(size, quality, layers):
    mine = codec(layers=layers)
    codes, payloads = mine.search(smooth(2, *size), quality, 0.05, PLAN)
    assert codes.shape == (2, -(-size[0] // 16), -(-size[1] // 16), quality)
    assert payloads == mine.entropy_encode(codes, PLAN)
    assert torch.equal(mine.entropy_decode(payloads, *codes.shape[1:], PLAN), codes)


@pytest.mark.parametrize("layers", [False, True])
def test_a_price_near_zero_gives_the_nearest_codewords(layers):
    pixels = smooth(1, 90, 300)
    codes, _ = codec(layers=layers).search(pixels, 4, 1e-9, PLAN)
    assert (codes == codec(layers=layers).encode(pixels, 4)).float().mean() > 0.999


@pytest.mark.parametrize("layers", [False, True])
def test_a_higher_price_gives_smaller_files_and_a_larger_error(layers):
    pixels = smooth(2, 128, 208)
    mine = codec(layers=layers)
    target = mine.latent(pixels)
    power = mine.model.decoder.linear.weight.square().sum((0, 2, 3))
    sizes, errors = [], []
    for price in (1e-6, 0.01, 0.1, 1.0, 100.0):
        codes, payloads = mine.search(pixels, 4, price, PLAN)
        sizes.append(sum(len(p) for p in payloads))
        chosen = mine.model.quantizer.decode(codes).permute(0, 2, 3, 1)
        errors.append(float(((chosen - target).square() * power).sum()))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0] / 2
    assert errors[0] < errors[2] < errors[-1]


@pytest.mark.parametrize("layers", [False, True])
def test_every_choice_has_the_least_cost_given_the_stages_before_it(layers):
    """Brute force over one window: with one stage a group, all that a choice follows from is known.
    Where the weights hold static lengths, the mean of both counts."""
    pixels, price, plan, mine = smooth(1, 64, 64), 0.05, (1, 1), codec(layers=layers)
    codes, _ = mine.search(pixels, 4, price, plan)
    quantizer, prior = mine.model.quantizer, mine.needed_prior()
    present = torch.zeros(1, 16, 16, dtype=torch.bool)
    present[:, :4, :4] = True
    flat, left = codes.reshape(16, 4).long(), mine.latent(pixels).reshape(16, -1)
    for m in range(4):
        tokens = torch.full((1, 16, 16, 4), prior.config.mask)
        first = m // 2 * 2
        tokens[0, :4, :4, :first] = codes[0, ..., :first].long()
        hidden = prior.hidden(tokens, present).reshape(16, 16, -1)[:4, :4].reshape(16, -1)
        octaves = prior.logits(hidden, m, flat[:, first:m])[:, 0].double() / 32
        bits = torch.logsumexp(octaves * np.log(2), -1, keepdim=True) / np.log(2) - octaves
        if layers:
            static = quantizer.lengths_at(price)[m]
            bits = search.TRUST * bits + (1 - search.TRUST) * static
            if m == 2:
                left = left - quantizer.assemble(quantizer.codewords_of(flat[:, :2]))
        error = torch.cdist(quantizer.rows(left)[:, m], quantizer.codebook[m]).square()
        cost = error * quantizer.gain[m] + price * bits
        chosen = cost.gather(1, flat[:, m : m + 1])[:, 0]
        assert (chosen - cost.amin(1)).max() < 1e-4 * cost.abs().max()


@pytest.mark.parametrize("size", [(70, 130), (260, 530)])  # 1 and 6 windows
def test_batches_and_single_images_agree(size):
    pixels = smooth(3, *size)
    codes, payloads = codec().search(pixels, 4, 0.05, PLAN)
    for i in range(3):
        one, (payload,) = codec().search(pixels[i : i + 1], 4, 0.05, PLAN)
        assert torch.equal(one[0], codes[i]) and payload == payloads[i]


def test_images_that_share_batches_as_on_a_gpu_come_out_the_same(monkeypatch):
    pixels = smooth(3, 70, 300)
    codes, payloads = codec().search(pixels, 4, 0.05, PLAN)
    monkeypatch.setattr(code_stream, "company", lambda model, grid: grid.codes.shape[-1])
    assert codec().entropy_encode(codes, PLAN) == payloads
    assert torch.equal(codec().entropy_decode(payloads, *codes.shape[1:], PLAN), codes)
    together, _ = codec().search(pixels, 4, 0.05, PLAN)
    assert (together == codes).float().mean() > 0.999


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="price -1"):
        codec().search(smooth(1, 16, 16), 4, -1.0, PLAN)
    with pytest.raises(ValueError, match="quality 5"):
        codec().search(smooth(1, 16, 16), 5, 0.1, PLAN)
    with pytest.raises(NoPriorError):
        tiny_codec().search(smooth(1, 16, 16), 4, 0.1, PLAN)


def test_a_high_price_shifts_no_colour(monkeypatch):
    """The mean error of a channel, which a picture of blue sky shows before any other."""
    sky = torch.tensor([70.0, 120.0, 210.0])[:, None, None]
    ramp = torch.linspace(-25, 25, 320)[None, :, None]
    noise = torch.randn(3, 320, 320, generator=torch.Generator().manual_seed(1))
    pixels = (sky + ramp + 6 * noise).clamp(0, 255).to(torch.uint8)[None]
    shifts = []
    for feedback in (0.0, search.FEEDBACK):
        monkeypatch.setattr(search, "FEEDBACK", feedback)
        codes, _ = shipped().search(pixels, 16, 0.8)
        error = shipped().decode(codes, 320, 320)[0].double() - pixels[0]
        shifts.append(float(error.mean((1, 2)).abs().max()))
    assert shifts[1] < 0.7 * shifts[0], shifts
