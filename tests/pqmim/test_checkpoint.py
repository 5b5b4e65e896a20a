"""Weights files: complete, checked, and never silently wrong."""

import pytest
import torch

from pqmim import checkpoint
from pqmim.autoencoder.config import AutoencoderConfig, ConfigError
from pqmim.autoencoder.network import PQVAE
from tests.models import TINY, tiny_bytes


def test_a_model_survives_the_file_with_its_fingerprint():
    model, fingerprint = checkpoint.from_bytes(tiny_bytes(), "tiny")
    again, same = checkpoint.from_bytes(checkpoint.to_bytes(model), "again")
    assert fingerprint == same
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(model.encode(pixels, 4), again.encode(pixels, 4))


def test_the_fingerprint_depends_on_weights_and_configuration():
    fingerprints = {
        checkpoint.from_bytes(tiny_bytes(**change), "x")[1]
        for change in ({}, {"codewords": 8}, {"subcodes": 2})
    }
    model, first = checkpoint.from_bytes(tiny_bytes(), "x")
    model.quantizer.codebook[0, 0, 0] += 1e-6
    assert len(fingerprints) == 3
    assert checkpoint.from_bytes(checkpoint.to_bytes(model), "x")[1] != first


@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
def test_one_flipped_bit_is_an_error(place):
    data = bytearray(tiny_bytes())
    data[int(place * len(data))] ^= 1
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.from_bytes(bytes(data), "flipped")


@pytest.mark.parametrize("data", [b"", b"\x08", b"hello world, not weights", tiny_bytes()[:-9]])
def test_foreign_and_cut_files_are_errors(data):
    with pytest.raises(checkpoint.CheckpointError, match="cut"):
        checkpoint.from_bytes(data, "cut")


def test_a_newer_format_is_named(monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", "pqmim-2")
    data = tiny_bytes()
    monkeypatch.undo()
    with pytest.raises(checkpoint.CheckpointError, match="'pqmim-2', this version reads 'pqmim-1'"):
        checkpoint.from_bytes(data, "new")


def test_unknown_names_list_what_ships():
    with pytest.raises(checkpoint.CheckpointError, match="shipped: default"):
        checkpoint.read("no-such-model")


def test_the_shipped_file_is_named_by_its_hash_and_small():
    data = checkpoint.read("default")
    _, fingerprint = checkpoint.from_bytes(data, "default")
    assert (checkpoint.WEIGHTS / f"{fingerprint[:16]}.safetensors").read_bytes() == data
    assert len(data) <= 20e6


def test_configurations_round_trip_and_refuse_the_unknown():
    assert AutoencoderConfig.from_json(TINY.to_json()) == TINY
    assert AutoencoderConfig().stride == 16
    for text in ("[]", "{", '{"nonsense": 1}', '{"widths": [8]}', '{"codewords": 1}'):
        with pytest.raises(ConfigError):
            AutoencoderConfig.from_json(text)
    assert PQVAE(TINY).encoder.linear.out_channels == TINY.latent_dims
