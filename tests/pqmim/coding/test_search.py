"""Codes chosen by distance plus price: the stream is the format's own, and prices order sizes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from pqmim.codec import Codec, NoPriorError
from pqmim.coding import payloads as code_stream
from pqmim.coding import search
from tests.models import tiny_codec

PLAN = (2, 130)


@functools.cache
def codec() -> Codec:
    return tiny_codec(prior=True)


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
def test_the_payload_is_what_entropy_coding_makes_of_the_codes(size, quality):
    codes, payloads = codec().search(smooth(2, *size), quality, 0.05, PLAN)
    assert codes.shape == (2, -(-size[0] // 16), -(-size[1] // 16), quality)
    assert payloads == codec().entropy_encode(codes, PLAN)
    assert torch.equal(codec().entropy_decode(payloads, *codes.shape[1:], PLAN), codes)


def test_a_price_near_zero_gives_the_nearest_codewords():
    pixels = smooth(1, 90, 300)
    codes, _ = codec().search(pixels, 4, 1e-9, PLAN)
    assert (codes == codec().encode(pixels, 4)).float().mean() > 0.999


def test_a_higher_price_gives_smaller_files_and_a_larger_error():
    pixels = smooth(2, 128, 208)
    model = codec().model
    target = model.quantizer.vectors(model.encoder(pixels.float() / 127.5 - 1))
    sizes, errors = [], []
    for price in (1e-6, 0.01, 0.1, 1.0, 100.0):
        codes, payloads = codec().search(pixels, 4, price, PLAN)
        sizes.append(sum(len(p) for p in payloads))
        chosen = model.quantizer.vectors(model.quantizer.decode(codes))
        error = (chosen - target).square().sum(-1).mean(1) * model.quantizer.gain
        errors.append(float(error.sum()))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0] / 2
    assert errors[0] < errors[2] < errors[-1]


def test_every_choice_has_the_least_cost_given_the_stages_before_it():
    """Brute force over one window: with one stage a group, the first group's costs are known."""
    pixels, price, plan = smooth(1, 64, 64), 0.05, (1, 1)
    codes, _ = codec().search(pixels, 2, price, plan)
    model, prior = codec().model, codec().needed_prior()
    tokens = torch.full((1, 16, 16, 4), prior.config.mask)
    present = torch.zeros(1, 16, 16, dtype=torch.bool)
    present[:, :4, :4] = True
    hidden = prior.hidden(tokens, present).reshape(16, 16, -1)[:4, :4].reshape(16, -1)
    first = codes.reshape(-1, 2)[:, :1].long()
    parts = prior.logits(hidden, 0), prior.logits(hidden, 1, first)
    octaves = torch.cat(parts, 1).double() / 32
    bits = torch.logsumexp(octaves * np.log(2), -1, keepdim=True) / np.log(2) - octaves
    latents = model.quantizer.vectors(model.encoder(pixels.float() / 127.5 - 1))[:2]
    for m in range(2):
        error = torch.cdist(latents[m], model.quantizer.codebook[m]).square()
        cost = error * model.quantizer.gain[m] + price * bits[:, m]
        mine = cost.gather(1, codes[0, ..., m].reshape(-1, 1).long())[:, 0]
        assert (mine - cost.amin(1)).max() < 1e-5 * cost.abs().max()


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
