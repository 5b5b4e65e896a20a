"""Images to .pqm files and back: exact, at any size, and never silently wrong.

``REGENERATE_GOLDEN=1 python -m pytest tests/pqmim/files/test_single.py`` rewrites the golden file;
its change is a change of the format: a new version number and a line in the changelog.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqmim import checkpoint
from pqmim.autoencoder.network import PQVAE
from pqmim.codec import Codec, NoPriorError
from pqmim.coding.range_coder import PayloadError
from pqmim.files.container import HEADER_BYTES, BitstreamError
from pqmim.prior import exact, load, tensors
from tests import fuzz_bitstream
from tests.models import TINY, TINY_PRIOR, tiny_bytes, tiny_codec, tiny_prior
from tests.pqmim.prior.exact_tools import lcg, tiny_checkpoint
from tests.properties import examples

GOLDEN = Path(__file__).parents[2] / "golden"
PLAN = (2, 130)


@functools.cache
def codec() -> Codec:
    return tiny_codec(prior=True)


def noise(height: int, width: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 300), st.integers(1, 4),
    st.lists(st.sampled_from([1, 3, 130, 133]), min_size=2, max_size=2),
)  # fmt: skip
def test_any_size_quality_and_plan_comes_back_exactly(height, width, quality, plan):
    image = noise(height, width)
    data = codec().compress(image[0], quality, plan, price=0)
    codes = codec().encode(image, quality)
    assert torch.equal(codec().decompress(data), codec().decode(codes, height, width)[0])


@pytest.mark.parametrize(("name", "chain"), [("tiny.pqm", False), ("chain.pqm", True)])
def test_golden_bytes(name, chain):
    fixed = Codec(codec().model, "0123456789abcdef" * 4, prior=tiny_prior(chain=chain))
    codes = torch.from_numpy(lcg(3 * 18 * 4, 1).reshape(1, 3, 18, 4) % 16).to(torch.uint8)
    (data,) = fixed.compress_codes(codes, 41, 287, PLAN)
    if os.environ.get("REGENERATE_GOLDEN") == "1":
        (GOLDEN / name).write_bytes(data)
    assert data == (GOLDEN / name).read_bytes()
    assert torch.equal(fixed.decompress(data), fixed.decode(codes, 41, 287)[0])


@pytest.mark.parametrize(("name", "groups"), [("six-groups.pqm", 6), ("twelve-groups.pqm", 12)])
def test_golden_bytes_of_many_groups(name, groups):
    """Container versions 3 and 4."""
    subcodes = 2 * groups
    model = PQVAE(dataclasses.replace(TINY, subcodes=subcodes)).requires_grad_(False).eval()
    prior = tiny_checkpoint(dataclasses.replace(TINY_PRIOR, subcodes=subcodes))
    fixed = Codec(model, "0123456789abcdef" * 4, prior=prior)
    codes = torch.from_numpy(lcg(3 * 18 * subcodes, 1).reshape(1, 3, 18, subcodes) % 16)
    (data,) = fixed.compress_codes(codes.to(torch.uint8), 41, 287, PLAN)
    if os.environ.get("REGENERATE_GOLDEN") == "1":
        (GOLDEN / name).write_bytes(data)
    assert data == (GOLDEN / name).read_bytes() and data[2] == (3 if groups <= 8 else 4)
    assert torch.equal(fixed.decompress(data), fixed.decode(codes, 41, 287)[0])


def test_a_file_costs_at_most_24_bytes_over_the_payload():
    codes = codec().encode(noise(40, 40))
    (payload,) = codec().entropy_encode(codes)
    (data,) = codec().compress_codes(codes, 40, 40)
    assert data[24:] == payload and len(data) == len(payload) + 24


def test_a_batch_compresses_and_decompresses_like_each_image_alone():
    images = noise(33, 50, batch=3)
    files = codec().compress_batch(images, 3, PLAN)
    assert files == [codec().compress(image, 3, PLAN) for image in images]
    other = codec().compress(noise(7, 80)[0], 1)
    mixed = [files[2], other, files[0]]
    together = codec().decompress_batch(mixed)
    for image, data in zip(together, mixed, strict=True):
        assert torch.equal(image, codec().decompress(data))
    assert codec().decompress_batch([]) == []


def test_bare_payloads_come_back_whole_and_coarser():
    codes = codec().encode(noise(50, 300, batch=2))
    payloads = codec().entropy_encode(codes)
    h, w = codes.shape[1:3]
    assert torch.equal(codec().entropy_decode(payloads, h, w, 4), codes)
    assert torch.equal(codec().entropy_decode(payloads, h, w, 2), codes[..., :2])
    assert codec().entropy_decode([], h, w, 4).shape == (0, h, w, 4)
    with pytest.raises(PayloadError, match="cut off"):
        codec().entropy_decode([payloads[0], payloads[1][:40]], h, w, 4)
    with pytest.raises(PayloadError, match="multiple of 4"):
        codec().entropy_decode([payloads[0][:-1]], h, w, 4)


def test_the_first_stages_alone_are_a_file_and_a_prefix():
    image = noise(64, 64)[0]
    whole = codec().compress(image, 4, PLAN)
    seen = []
    for stages in range(1, 5):
        data = codec().compress(image, 4, PLAN, stages)
        assert whole[HEADER_BYTES:].startswith(data[HEADER_BYTES:-8])
        seen.append(codec().decompress(data))
    assert torch.equal(seen[-1], codec().decompress(whole))
    assert len({tuple(pixels.flatten().tolist()) for pixels in seen}) == 4
    one_group = codec().compress(image, 2, PLAN)
    assert torch.equal(seen[1], codec().decompress(one_group)), "absent is absent in both"


def test_a_file_cut_anywhere_shows_its_whole_stages_and_no_more():
    image = noise(64, 64)[0]
    data = codec().compress(image, 4, PLAN)
    stages = [codec().decompress(codec().compress(image, 4, PLAN, n)) for n in range(1, 5)]
    shown = []
    for end in range(HEADER_BYTES, len(data) + 1, 3):
        try:
            pixels = codec().decompress(data[:end], partial=True)
        except BitstreamError as error:
            assert "cut off within the first stage" in str(error)
            shown.append(0)
            continue
        shown.append(1 + next(i for i, stage in enumerate(stages) if torch.equal(stage, pixels)))
    assert shown == sorted(shown) and shown[0] == 0
    assert torch.equal(codec().decompress(data, partial=True), stages[-1])
    for end in range(len(data)):
        with pytest.raises(BitstreamError):
            codec().decompress(data[:end])


@functools.cache
def small() -> tuple[bytes, torch.Tensor]:
    """The cheapest file to decode, one position in one stage, and its image."""
    data = codec().compress(noise(9, 14)[0], 1, (1,))
    return data, codec().decompress(data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d[:3] + bytes(8) + d[11:], "weights 0000000000000000, those at hand are"),
        (lambda d: d[:11] + b"\x0a" + d[12:], "checksum"),  # same grid, one row more
        (lambda d: d[:20] + bytes([d[20] ^ 1]) + d[21:], "checksum"),
        (lambda d: d + bytes(4), "checksum|goes on"),
        (lambda d: d + bytes(40), "goes on"),
        (lambda d: d + b"\0", "multiple of 4"),
        (lambda d: d[:HEADER_BYTES], "cut off"),
        (lambda d: d[:15] + b"\x09" + d[16:], "quality 10, but the model has 4"),
        (lambda d: d[:11] + b"\xff\xff\xff\xff" + d[15:], "4294836225|65535 x 65535"),
    ],
)
def test_damage_is_named(change, says):
    with pytest.raises(BitstreamError, match=says):
        codec().decompress(change(small()[0]))


def exact_or_error(data: bytes) -> None:
    fuzz_bitstream.outcome(data, small()[1])


@settings(max_examples=examples(2000), deadline=None)
@given(st.binary(max_size=80))
def test_random_bytes_are_errors(data):
    with pytest.raises(BitstreamError):
        codec().decompress(data, max_pixels=fuzz_bitstream.MAX_PIXELS)


@settings(max_examples=examples(1000), deadline=None)
@given(st.binary(max_size=24))
def test_a_foreign_payload_is_an_error_or_the_exact_image(payload):
    exact_or_error(small()[0][:HEADER_BYTES] + payload)


# One integer an example: drawing edits one by one costs more than decoding them.
@settings(max_examples=examples(5000), deadline=None)
@given(st.integers(0, 2**32))
def test_a_mutated_header_is_an_error_or_the_exact_image(seed):
    rng, data = random.Random(seed), bytearray(small()[0])
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(HEADER_BYTES)] ^= rng.choice((1 << rng.randrange(8), rng.randrange(256)))
    exact_or_error(bytes(data))


@settings(max_examples=examples(2500), deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_streams_are_errors_or_the_exact_image(seed):
    exact_or_error(fuzz_bitstream.mutate(small()[0], random.Random(seed)))


def test_a_model_without_a_prior_says_so():
    bare = tiny_codec()
    assert bare.prior is None
    for call in (
        lambda: bare.compress(noise(8, 8)[0]),
        lambda: bare.decompress(small()[0]),
        lambda: bare.entropy_encode(torch.zeros(1, 1, 1, 4, dtype=torch.uint8)),
        lambda: bare.entropy_decode([], 1, 1, 4),
    ):
        with pytest.raises(NoPriorError, match="has no entropy model"):
            call()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"quality": 5}, r"outside 1\.\.4"),
        ({"plan": (1, 99)}, "plan byte 99"),
        ({"stages": 9}, "9 stages sent of a plan that has"),
        ({"stages": 0}, "stages 0"),
    ],
)
def test_compress_refuses_what_it_cannot_mean(arguments, says):
    with pytest.raises(ValueError, match=says):
        codec().compress(noise(20, 20)[0], **arguments)
    with pytest.raises(ValueError, match="sides go from"):
        codec().compress(noise(1, 2**16)[0], 1, (1,))


def test_the_prior_is_loaded_once_by_many_threads(monkeypatch):
    loads, real = [], load.load
    monkeypatch.setattr(load, "load", lambda *args: loads.append(1) or real(*args))
    fresh = tiny_codec(prior=True)
    assert not loads, "loaded at first use"
    data = small()[0]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: fresh.decompress(data), range(8)))
    assert len(loads) == 1
    assert all(torch.equal(image, small()[1]) for image in images)


def test_a_machine_that_computes_wrongly_falls_back_to_the_oracle(monkeypatch, caplog):
    norm = exact.norm
    monkeypatch.setattr(exact, "norm", lambda x: norm(x) + (x > 300))
    slower = functools.partial(tensors.Engine, device=torch.device("cpu"))
    monkeypatch.setattr(load, "_compiled", slower)  # which has a norm of its own
    fresh = tiny_codec(prior=True)
    with caplog.at_level(logging.WARNING):
        assert isinstance(fresh.prior, tensors.Oracle)
    assert "falling back to the int64 oracle" in caplog.text
    assert torch.equal(fresh.decompress(small()[0]), small()[1])


def test_weights_of_both_halves_have_one_fingerprint():
    without = checkpoint.parse(tiny_bytes(), "a")
    both = checkpoint.parse(tiny_bytes(prior=True), "b")
    assert without.prior is None and both.prior is not None
    assert both.prior.model_id == tiny_prior().model_id
    assert both.fingerprint != without.fingerprint == checkpoint.from_bytes(tiny_bytes(), "a")[1]
    assert checkpoint.parse(checkpoint.to_bytes(both.model, both.prior), "c").fingerprint == (
        both.fingerprint
    )


def test_weights_file_is_written_under_its_fingerprint(tmp_path):
    path = checkpoint.write(codec().model, tmp_path, tiny_prior())
    assert path.stem == codec().fingerprint[:16]
    assert Codec.load(path).fingerprint == codec().fingerprint


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9, 0.999])
def test_one_flipped_bit_of_the_prior_is_an_error(place):
    data = bytearray(tiny_bytes(prior=True))
    data[int(place * len(data))] ^= 1
    with pytest.raises(checkpoint.CheckpointError, match="flipped"):
        checkpoint.parse(bytes(data), "flipped")


def test_a_prior_of_other_codes_is_refused():
    model = checkpoint.parse(tiny_bytes(codewords=8), "other").model
    with pytest.raises(checkpoint.CheckpointError, match="4 sub-codes of 8 codewords.* 4 of 16"):
        checkpoint.to_bytes(model, tiny_prior())
