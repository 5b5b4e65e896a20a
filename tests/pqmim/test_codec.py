"""Codec: pixels -> codes -> pixels at any size, and its limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqmim.autoencoder.padding import reflect_pad
from pqmim.codec import Codec
from tests.models import tiny_codec


def noise(height: int, width: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 4))
def test_any_size_and_quality_comes_back_with_its_shape(height, width, quality):
    codec = tiny_codec()
    codes = codec.encode(noise(height, width), quality)
    assert codes.shape == (1, *codec.grid(height, width), quality)
    assert codes.dtype == torch.uint8
    decoded = codec.decode(codes, height, width)
    assert decoded.shape == (1, 3, height, width) and decoded.dtype == torch.uint8


def test_quality_m_is_a_prefix_of_the_codes_of_every_higher_quality():
    codec = tiny_codec()
    full = codec.encode(noise(64, 48))
    for quality in (1, 2, 3):
        assert torch.equal(codec.encode(noise(64, 48), quality), full[..., :quality])


def test_sub_codes_that_are_not_sent_do_not_matter():
    codec = tiny_codec()
    codes = codec.encode(noise(32, 32), 4)
    codes[..., 2:] = 7
    assert torch.equal(codec.decode(codes[..., :2], 32, 32),
                       codec.decode(codec.encode(noise(32, 32), 2), 32, 32))  # fmt: skip
    assert not torch.equal(codec.decode(codes, 32, 32), codec.decode(codes[..., :2], 32, 32))


def test_batch_size_does_not_change_the_codes():
    codec = tiny_codec()
    images = noise(48, 32, batch=5)
    one_by_one = torch.cat([codec.encode(image[None]) for image in images])
    assert torch.equal(codec.encode(images), one_by_one)


def test_plain_vq_and_scalar_quantisation_are_legal_limits():
    vq = tiny_codec(subcodes=1, subcode_dims=8)
    assert vq.encode(noise(32, 32)).shape[-1] == 1
    scalar = tiny_codec(subcodes=8, subcode_dims=1)
    assert scalar.encode(noise(32, 32)).shape[-1] == 8
    large = tiny_codec(codewords=300)
    assert large.encode(noise(32, 32)).dtype == torch.uint16
    assert large.decode(large.encode(noise(32, 32)), 32, 32).shape == (1, 3, 32, 32)


def test_reflection_works_on_images_smaller_than_the_padding():
    row = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert reflect_pad(row, 8)[0, 0, 0].tolist() == [10, 20, 30, 20, 10, 20, 30, 20]
    assert reflect_pad(row, 8).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("pixels", "quality", "message"),
    [
        (torch.zeros(1, 3, 32, 32), 1, "uint8"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), 1, "uint8"),
        (torch.zeros(1, 1, 32, 32, dtype=torch.uint8), 1, "uint8"),
        (torch.zeros(1, 3, 0, 32, dtype=torch.uint8), 1, "empty"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 0, r"outside 1\.\.4"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 5, r"outside 1\.\.4"),
    ],
)
def test_encode_refuses_what_it_cannot_mean(pixels, quality, message):
    with pytest.raises(ValueError, match=message):
        tiny_codec().encode(pixels, quality)


def test_decode_refuses_codes_of_another_size_or_model():
    codec = tiny_codec()
    codes = codec.encode(noise(32, 32))
    with pytest.raises(ValueError, match="of 64 x 32 pixels"):
        codec.decode(codes, 64, 32)
    with pytest.raises(ValueError, match="the model has 4"):
        codec.decode(torch.cat([codes, codes], 3), 32, 32)
    with pytest.raises(ValueError, match=r"outside 0\.\.15"):
        codec.decode(codes + 16, 32, 32)


def test_shipped_weights_reconstruct_a_photograph():
    from tests.photos import photograph

    codec = Codec.load()
    image = photograph()
    height, width = image.shape[2:]
    errors = []
    codes = codec.encode(image)
    for quality in (2, 8, 16):
        decoded = codec.decode(codes[..., :quality], height, width)
        errors.append(float((decoded.float() - image.float()).square().mean()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 0.2 * float(image.float().var())
