"""The product quantizer against brute force, of one layer and of two."""

import dataclasses

import pytest
import torch

from pqmim.autoencoder.config import AutoencoderConfig, ConfigError
from pqmim.autoencoder.quantizer import ProductQuantizer
from tests.models import LAYERED, LAYERED_DEAL, TINY, deal_out


def quantizer() -> tuple[ProductQuantizer, torch.Tensor]:
    torch.manual_seed(1)
    return ProductQuantizer(TINY), torch.randn(2, TINY.latent_dims, 3, 5)


def layered() -> tuple[ProductQuantizer, torch.Tensor]:
    torch.manual_seed(1)
    pq = ProductQuantizer(LAYERED)
    deal_out(pq)
    return pq, torch.randn(2, 6, 3, 5)


def test_each_sub_code_is_the_nearest_codeword_of_its_own_codebook():
    pq, latent = quantizer()
    codes = pq.encode(latent, 4)
    for b, y, x in [(0, 0, 0), (1, 2, 4), (0, 1, 3)]:
        for m in range(4):
            part = latent[b, 2 * m : 2 * m + 2, y, x]
            distances = (pq.codebook[m] - part).square().sum(1)
            assert codes[b, y, x, m] == distances.argmin()


def test_decoding_puts_codewords_and_absent_vectors_in_place():
    pq, latent = quantizer()
    pq.absent.data.normal_()
    codes = pq.encode(latent, 4)
    decoded = pq.decode(codes[..., :3])
    assert torch.equal(decoded[1, 4:6, 2, 4], pq.codebook[2, codes[1, 2, 4, 2]])
    assert torch.equal(decoded[1, 6:8, 2, 4], pq.absent[3])


def test_a_second_layer_codes_what_the_first_has_left():
    pq, latent = layered()
    codes = pq.encode(latent, 4)
    for b, y, x in [(0, 0, 0), (1, 2, 4), (0, 1, 3)]:
        left = latent[b, :, y, x].clone()
        for m, channels in enumerate(LAYERED_DEAL):
            used = [c for c in channels if c >= 0]
            distances = (pq.codebook[m, :, : len(used)] - left[used]).square().sum(1)
            assert codes[b, y, x, m] == distances.argmin()
            if m == 1:  # the second layer begins from what both have left
                for first in (0, 1):
                    word = pq.codebook[first, codes[b, y, x, first]]
                    left[LAYERED_DEAL[first]] -= word


def test_the_latent_is_the_sum_over_the_layers():
    pq, latent = layered()
    pq.absent.data.normal_()
    codes = pq.encode(latent, 3)
    decoded = pq.decode(codes)[1, :, 2, 4]
    wanted = torch.zeros(6)
    for m, channels in enumerate(LAYERED_DEAL):
        vector = pq.codebook[m, codes[1, 2, 4, m]] if m < 3 else pq.absent[m]
        for channel, value in zip(channels, vector, strict=True):
            if channel >= 0:
                wanted[channel] += value
    assert torch.allclose(decoded, wanted)
    assert torch.equal(pq.encode(latent, 2), codes[..., :2])  # nested


@pytest.mark.parametrize("make", [quantizer, layered])
def test_assembling_parts_from_their_first_sub_code_on_adds_up(make):
    pq, _ = make()
    vectors = torch.randn(7, 4, 2)
    if make is layered:
        vectors[:, 3, 1] = 0
    parts = pq.assemble(vectors[:, :1]) + pq.assemble(vectors[:, 1:], first=1)
    assert torch.allclose(parts, pq.assemble(vectors))
    if make is quantizer:
        assert torch.equal(pq.rows(pq.assemble(vectors)), vectors)


def test_a_price_trades_error_for_short_codes():
    pq, latent = layered()
    rows = latent.permute(0, 2, 3, 1).flatten(0, 2)
    bits, errors = [], []
    for price in (0.0, 0.01, 0.3, 3.0):
        codes = pq.choose(rows, 2, price)
        length = pq.lengths_at(price or 0.01)[:2]
        cost = (
            pq.gain[:2, None, None]
            * torch.cdist(pq.rows(rows)[:, :2].transpose(0, 1), pq.codebook[:2]).square()
            + price * length[:, None, :]
        )
        mine = cost.gather(2, codes.T[..., None])[..., 0]
        assert (mine - cost.amin(-1)).max() < 1e-4
        last = pq.lengths[-1, :2]
        bits.append(float(last.gather(1, codes.T).mean()))
        errors.append(float((pq.assemble(pq.codewords_of(codes)) - rows).square().sum()))
    assert bits[3] < bits[2] < bits[0] and errors[0] < errors[2] < errors[3]


def test_code_lengths_at_a_price_lie_between_those_of_its_neighbours():
    pq, _ = layered()
    low, high = pq.lengths
    assert torch.equal(pq.lengths_at(1e-5), low) and torch.equal(pq.lengths_at(0.01), low)
    assert torch.equal(pq.lengths_at(0.1), high) and torch.equal(pq.lengths_at(7.0), high)
    between = pq.lengths_at(0.1**1.5)
    assert torch.allclose(torch.exp2(-between), (torch.exp2(-low) + torch.exp2(-high)) / 2)
    assert ProductQuantizer(TINY).lengths_at(0.1) is None


def test_large_grids_are_quantised_in_bounded_pieces(monkeypatch):
    pq, latent = quantizer()
    whole = pq.encode(latent, 4)
    monkeypatch.setattr("pqmim.autoencoder.quantizer.CHUNK_DISTANCES", 4 * 16 * 7)
    assert torch.equal(pq.encode(latent, 4), whole)


def test_descriptions_without_layers_read_as_before():
    assert "layers" not in TINY.to_json() and "prices" not in TINY.to_json()
    assert AutoencoderConfig.from_json(LAYERED.to_json()) == LAYERED
    assert LAYERED.spans == [slice(0, 2), slice(2, 4)] and LAYERED.latent_dims == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(layers=(2, 1), channels=6), "not 4 sub-codes"),
        (dict(layers=(2, 2)), "both or none"),
        (dict(channels=6), "both or none"),
        (dict(prices=(0.1, 0.01)), "must be above 0, and rise"),
        (dict(prices=(0.0, 0.01)), "must be above 0, and rise"),
    ],
)
def test_descriptions_that_contradict_themselves_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(TINY, **changes)


def test_a_deal_of_channels_that_there_are_not_is_refused():
    pq, _ = layered()
    pq.deal[0, 0] = 6
    with pytest.raises(ConfigError, match="outside 6"):
        pq.check()
