"""Floats made from integers export to the same integers; training goes on from there."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pqmim.training.masters import masters
from pqmim.training.network import Prior
from pqmim.training.to_integers import calibrate, export, quantise
from tests.models import TINY_PRIOR, tiny_prior
from tests.pqmim.prior.exact_tools import tiny_checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize("make", [tiny_prior, tiny_checkpoint])
def test_masters_export_to_the_integers_that_they_were_made_from(make) -> None:
    original = make()
    again = export(*masters(original, CPU))
    assert again.model_id == original.model_id
    assert again.probe_sha256 == original.probe_sha256


def test_those_of_a_trained_model_too() -> None:
    torch.manual_seed(3)
    prior = Prior(dataclasses.replace(TINY_PRIOR, local=(True, False)))
    tokens = torch.randint(0, 17, (2, 16, 16, 4))
    original = export(prior, calibrate(prior, [(tokens, None)]))
    assert export(*masters(original, CPU)).model_id == original.model_id


def test_the_floats_say_about_what_the_integers_say() -> None:
    """Wrong powers shared wrongly would still export well, and train badly."""
    torch.manual_seed(4)
    prior = Prior(TINY_PRIOR)
    tokens = torch.randint(0, 17, (4, 16, 16, 4))
    made, powers = masters(export(prior, calibrate(prior, [(tokens, None)])), CPU)
    with torch.no_grad():
        before = prior.logits(prior.hidden(tokens, None).flatten(0, 1), 0)
        after = made.logits(made.hidden(tokens, None).flatten(0, 1), 0)
    assert (before - after).abs().mean() < 0.1 * before.std()
    rows = made.blocks[0].query_key_value.weight.chunk(3)
    sizes = [float(part.square().mean().sqrt().log2()) for part in rows]
    assert max(sizes) - min(sizes) < 3
    assert quantise(made, powers).config == TINY_PRIOR
