"""The product quantizer against brute force, and its training parts."""

import torch

from pqmim.autoencoder.quantizer import ProductQuantizer
from tests.models import TINY


def quantizer() -> tuple[ProductQuantizer, torch.Tensor]:
    torch.manual_seed(1)
    return ProductQuantizer(TINY), torch.randn(2, TINY.latent_dims, 3, 5)


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


def test_the_training_form_gives_the_decoder_what_decoding_gives():
    pq, latent = quantizer()
    given, _, codes = pq(latent, torch.tensor([2, 4]), torch.zeros(2))
    wanted = pq.decode(pq.encode(latent, 4)[..., :2])[0]
    assert torch.allclose(given[0], wanted)
    assert torch.allclose(given[1], pq.decode(pq.encode(latent, 4))[1])
    assert codes.shape == (4, 2 * 3 * 5)


def test_gradients_pass_straight_through_what_is_kept():
    pq, latent = quantizer()
    latent.requires_grad_()
    given, _, _ = pq(latent, torch.tensor([1, 4]), torch.zeros(2))
    given.sum().backward()
    assert torch.equal(latent.grad[0, :2], torch.ones(2, 3, 5))
    assert torch.equal(latent.grad[0, 2:], torch.zeros(6, 3, 5))
    assert torch.equal(latent.grad[1], torch.ones(8, 3, 5))
    assert pq.absent.grad[0].abs().sum() == 0 and pq.absent.grad[3].abs().sum() > 0


def test_following_the_latents_reduces_the_error_and_revives_dead_codewords():
    pq, _ = quantizer()
    latent = torch.randn(8, TINY.latent_dims, 8, 8)
    pq.start(latent, 0.0)
    pq.codebook[0, 3] = 1e3  # nothing will ever choose it
    pq.total[0, 3] = 1e3 * pq.count[0, 3]
    before = (pq.decode(pq.encode(latent, 4)) - latent).square().mean()
    restarted = sum(pq.follow(latent, pq.encode(latent, 4).reshape(-1, 4).T) for _ in range(900))
    after = (pq.decode(pq.encode(latent, 4)) - latent).square().mean()
    assert restarted >= 1 and pq.codebook.abs().max() < 100
    assert after < before
    assert len(pq.usage()) == 4 and all(8 < used <= 16 for used in pq.usage())


def test_the_start_finds_separate_clusters():
    pq, _ = quantizer()
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = centres.repeat(100, 4) + 0.01 * torch.randn(400, 8)
    pq.start(points.reshape(4, 100, 1, 8).permute(0, 3, 1, 2), 0.0)
    for book in pq.codebook:
        assert torch.cdist(centres, book).min(1).values.max() < 0.1


def test_a_price_trades_error_for_common_codewords():
    torch.manual_seed(0)
    pq, _ = quantizer()
    latent = torch.randn(8, TINY.latent_dims, 16, 16) ** 3
    pq.start(latent, 0.0)
    pq.follow(latent, pq.encode(latent, 4).reshape(-1, 4).T)
    vectors, lengths = pq.vectors(latent), pq.lengths()
    bits, errors = [], []
    for price in (0.0, 0.3, 3.0):
        codes = pq.nearest(vectors, torch.full((vectors.shape[1],), price))
        chosen = torch.stack([b[c] for b, c in zip(pq.codebook, codes, strict=True)])
        cost = pq.gain[:, None, None] * torch.cdist(vectors, pq.codebook).square()
        cost = cost + price * lengths[:, None, :]
        assert torch.equal(codes, cost.argmin(-1)) or (
            (cost.gather(2, codes[..., None])[..., 0] - cost.amin(-1)).max() < 1e-4
        )
        bits.append(float(lengths.gather(1, codes).mean()))
        errors.append(float((chosen - vectors).square().mean()))
    assert bits == sorted(bits, reverse=True) and errors == sorted(errors)
    assert bits[2] < bits[0] - 0.5


def test_large_grids_are_quantised_in_bounded_pieces(monkeypatch):
    pq, latent = quantizer()
    whole = pq.encode(latent, 4)
    monkeypatch.setattr("pqmim.autoencoder.quantizer.CHUNK_DISTANCES", 4 * 16 * 7)
    assert torch.equal(pq.encode(latent, 4), whole)
