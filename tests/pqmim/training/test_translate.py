"""An entropy model follows its codes to another autoencoder."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pqmim.autoencoder.network import PQVAE
from pqmim.codec import Codec
from pqmim.coding import payloads
from pqmim.prior import load
from pqmim.prior.integers import Checkpoint
from pqmim.training import translate
from tests.models import TINY, tiny_codec, tiny_prior

CPU = torch.device("cpu")


def renamed(permutations: torch.Tensor) -> Codec:
    """The tiny codec with its codewords in another order, [M, K]: new name -> old name."""
    model = PQVAE(TINY)
    model.load_state_dict(tiny_codec().model.state_dict())
    book = model.quantizer.codebook
    book.copy_(torch.stack([b[p] for b, p in zip(book, permutations, strict=True)]))
    return Codec(model, "renamed")


def photographs(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 12, 16, generator=generator)
    return list((torch.nn.functional.interpolate(small, (192, 256)) * 255).to(torch.uint8))


def bits(checkpoint: Checkpoint, codes: np.ndarray) -> float:
    model = load.load(checkpoint, CPU)
    return float(np.mean(payloads.bits_per_code(model, [codes], (2, 1))))


@pytest.mark.parametrize("chain", [True, False])
def test_renamed_codewords_cost_what_they_did(chain):
    generator = torch.Generator().manual_seed(1)
    names = torch.stack([torch.randperm(16, generator=generator) for _ in range(4)])
    old, new, images = tiny_codec(), renamed(names), photographs(4)
    same = torch.nn.functional.one_hot(names, 16)
    assert (translate.meetings(old, new, images) * (1 - same)).sum() == 0
    moved = translate.translate(tiny_prior(chain=chain), 1e4 * same)
    its, mine = (c.encode(images[0][None])[0].numpy() for c in (old, new))
    assert np.array_equal(np.stack([names[m].numpy()[mine[..., m]] for m in range(4)], -1), its)
    before = bits(tiny_prior(chain=chain), its)
    assert bits(moved, mine) == pytest.approx(before, abs=0.01)
    assert abs(bits(tiny_prior(chain=chain), mine) - before) > 0.04


def test_a_codec_that_meets_itself_meets_only_its_own_codewords():
    met = translate.meetings(tiny_codec(), tiny_codec(), photographs(3))
    assert met.sum() == 3 * 12 * 16 * 4
    assert torch.equal(met, torch.diag_embed(met.diagonal(dim1=1, dim2=2)))


def test_other_strides_are_refused():
    with pytest.raises(ValueError, match="stride 16 and 8"):
        other = Codec(PQVAE(dataclasses.replace(TINY, stem=4)), "fine")
        translate.meetings(tiny_codec(), other, photographs(1))
