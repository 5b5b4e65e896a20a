"""Files of at most N bytes: never more, always the whole image, and what was sent is in it."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from pqmim.autoencoder.network import PQVAE
from pqmim.codec import Codec, NoPriorError
from pqmim.coding import range_coder
from pqmim.completion import filling
from pqmim.completion.rule import Rule
from pqmim.files import budget, single
from pqmim.files.budget import BudgetError
from pqmim.files.container import BitstreamError
from pqmim.metrics import psnr
from tests import photos
from tests.models import TINY, TINY_PRIOR, tiny_codec, tiny_prior
from tests.pqmim.prior.exact_tools import lcg, tiny_checkpoint
from tests.properties import long

GOLDEN = Path(__file__).parents[2] / "golden" / "compact.pqm"


@functools.cache
def codec() -> Codec:
    return tiny_codec(prior=True)


def smooth(height: int, width: int) -> torch.Tensor:
    y, x = np.mgrid[:height, :width]
    planes = [255 * y / height, 255 * x / width, 127 + 120 * np.sin(x / 9)]
    return torch.from_numpy(np.stack(planes).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "limit"),
    [((100, 150), 64), ((64, 64), 200), ((1, 1), 64), ((7, 400), 90), ((130, 130), 5000)],
)
def test_a_file_keeps_its_budget_and_shows_the_whole_image(size, limit):
    pixels = smooth(*size)
    choice = budget.search(codec(), pixels, limit)
    assert len(choice.data) <= limit
    assert codec().decompress(choice.data).shape == pixels.shape
    assert codec().compress_to(pixels, limit) == choice.data, "the same file every time"
    assert (choice.stream.height, choice.stream.width) == size


def test_the_choice_is_measured_as_its_reader_sees_it():
    pixels = smooth(96, 96)
    choice = budget.search(codec(), pixels, 100)
    shown = codec().decompress(choice.data)
    assert choice.psnr == psnr(pixels.numpy(), shown.numpy())


@pytest.mark.parametrize("limit", [20_000, 10**9])
def test_more_bytes_than_any_file_takes_give_the_best_one(limit):
    """Guesses from one size to the next never came to the lowest price."""
    choice = budget.search(shipped(), photograph(96, 96), limit)
    assert choice.price == pytest.approx(budget.LEAST)


def photograph(height: int, width: int) -> torch.Tensor:
    """The middle of a photograph, uint8 [3, height, width]."""
    pixels = photos.photograph()[0]
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return pixels[:, top : top + height, left : left + width].contiguous()


@functools.cache
def shipped() -> Codec:
    return Codec.load()


@pytest.mark.parametrize("quality", [long(None), long(16), 8])
@pytest.mark.parametrize("price", [long(0.01), long(0.06), 0.25, long(1.0)])
def test_a_budget_is_never_worse_than_plain_compression(quality, price):
    pixels = photograph(160, 208)
    plain = shipped().compress(pixels, quality, price=price)
    shown = psnr(pixels.numpy(), shipped().decompress(plain).numpy())
    choice = budget.search(shipped(), pixels, len(plain))
    assert len(choice.data) <= len(plain) and choice.psnr >= shown - 0.02


@pytest.mark.parametrize("limit", [long(64), long(150), long(400), long(1_000), 2_500, long(6_000)])
def test_a_budget_is_used_up_and_more_bytes_never_show_less(limit):
    pixels = photograph(160, 208)
    choice = budget.search(shipped(), pixels, limit)
    most = len(shipped().compress(pixels, price=budget.LEAST))
    assert len(choice.data) <= limit and len(choice.data) >= 0.93 * min(limit, most)
    assert budget.search(shipped(), pixels, 2 * limit).psnr >= choice.psnr - 0.01


def test_a_budget_that_is_too_small_names_the_smallest_file():
    with pytest.raises(BudgetError, match="10 bytes are too few .* the smallest file has (\\d+)"):
        codec().compress_to(smooth(300, 200), 10)
    try:
        codec().compress_to(smooth(300, 200), 1)
    except BudgetError as error:
        least = int(str(error).split()[-1])
    assert least < 64 and len(codec().compress_to(smooth(300, 200), least)) <= least


def test_bad_pixels_and_models_are_refused():
    with pytest.raises(ValueError, match=r"uint8 \[3,H,W\]"):
        codec().compress_to(smooth(5, 5).float(), 64)
    with pytest.raises(ValueError, match="sides go from"):
        codec().compress_to(torch.zeros(3, 1, 70_000, dtype=torch.uint8), 64)
    with pytest.raises(NoPriorError):
        tiny_codec().compress_to(smooth(5, 5), 64)


def compact(
    rows: int, columns: int, plan: tuple[int, ...], stages: int, m: int = 4, chain: bool = False
) -> bytes:
    codes = (lcg(rows * columns * m, 1) % 16).reshape(rows, columns, m).astype(np.uint8)
    fixed = Codec(codec().model, "0123456789abcdef" * 4, prior=tiny_prior(chain=chain))
    return single.compress_compact(fixed, codes, 200, 301, plan, stages)


def test_golden_bytes():
    data = compact(5, 7, (130, 1), 2)
    if os.environ.get("REGENERATE_GOLDEN") == "1":
        GOLDEN.write_bytes(data)
    assert data == GOLDEN.read_bytes()
    fixed = Codec(codec().model, "0123456789abcdef" * 4, prior=tiny_prior(chain=False))
    got = fixed.decompress_codes(data)
    kept = (lcg(140, 1) % 16).reshape(5, 7, 4)
    kept[..., 2:] = 0  # the second group was not sent
    assert (got == kept).all() and fixed.decompress(data).shape == (3, 200, 301)


def test_what_was_not_sent_is_filled_by_its_mean_unless_asked_otherwise():
    fixed = Codec(codec().model, "0123456789abcdef" * 4, prior=tiny_prior())
    data = compact(13, 19, (130, 1), 1, chain=True)
    mean = fixed.decompress(data)
    assert torch.equal(mean, fixed.decompress(data, fill="mean"))
    drawn = [fixed.decompress(data, fill=Rule(2, 1.0, seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(mean, fixed.decompress(data, fill="absent"))


def test_a_cut_file_is_completed_from_its_whole_stages():
    pixels = smooth(64, 64)
    whole = codec().compress(pixels, 4, (2, 130))
    cut = whole[: len(whole) * 2 // 3]
    with pytest.raises(BitstreamError):
        codec().decompress(cut)
    shown = [codec().decompress(cut, partial=True, fill=fill) for fill in ("mean", Rule(2))]
    assert all(image.shape == pixels.shape for image in shown)
    assert torch.equal(codec().decompress(whole, partial=True, fill="mean"),
                       codec().decompress(whole))  # fmt: skip


def test_a_compact_file_cut_anywhere_is_an_error_or_a_picture():
    data = codec().compress_to(smooth(96, 96), 90)
    for end in (*range(20), *range(20, len(data), 7), len(data) - 1):
        with pytest.raises(BitstreamError):
            codec().decompress(data[:end])
    assert torch.equal(codec().decompress(data, partial=True), codec().decompress(data))


def test_damage_to_a_compact_file_is_an_error_or_as_rare_as_its_checksum():
    data = codec().compress_to(smooth(32, 32), 64)
    good, rng, passed = codec().decompress(data), random.Random(5), 0
    for _ in range(150):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            shown = codec().decompress(bytes(damaged), max_pixels=64 * 64)
        except BitstreamError:
            continue
        passed += not torch.equal(shown, good)
    assert passed <= 1


def test_the_shortest_payload_decodes_whatever_follows():
    rng = np.random.default_rng(0)
    for count in (0, 1, 3, 40):
        raw = rng.integers(0, 1000, (count, 16)).astype(np.float64)
        weights = np.floor(raw * (2**24 - 16) / raw.sum(1, keepdims=True))
        weights[:, 0] += 2**24 - 16 - weights.sum(1)
        symbols = rng.integers(0, 16, count)
        ends = weights.cumsum(1)
        own = weights[np.arange(count), symbols]
        start = (ends[np.arange(count), symbols] - own + symbols).astype(np.int64)
        short = range_coder.encode_shortest(start, own.astype(np.int64) + 1)
        words = range_coder.encode_intervals(start, own.astype(np.int64) + 1)
        assert len(short) <= max(len(words), 1)
        for rest in (b"", b"\xff" * 9, b"\x00\xff" * 4):
            decoder = range_coder.Decoder(range_coder.to_words(short + rest))
            assert (decoder.decode(weights.astype(np.float32)) == symbols).all()


def test_the_climb_finds_the_top_and_survives_ladders_without_result():
    assert budget.climb([0.1, 0.2, 0.5, 0.4, 0.3].__getitem__, 5, 4) == 2
    assert budget.climb([0.1, 0.2, 0.5, 0.4, 0.3].__getitem__, 5, 0) == 2
    assert budget.climb([0.0, 0.0, 3.0].__getitem__, 3, 0) == 2
    assert budget.climb([0.0, 0.0].__getitem__, 2, 0) == 1


def test_grids_shrink_and_keep_the_shape():
    grids = budget.grids_of(32, 48)
    areas = [r * c for r, c in grids]
    assert areas == sorted(areas, reverse=True) and (grids[0], grids[-1]) == ((32, 48), (1, 1))
    assert all(abs(c - 1.5 * r) <= 1 for r, c in grids)
    assert budget.grids_of(1, 1) == [(1, 1)] and (1, 24) in budget.grids_of(1, 24)


def test_resizing_keeps_an_image_of_the_right_size_as_it_is():
    pixels = smooth(20, 30)
    assert filling.resize(pixels, 20, 30) is pixels
    assert filling.resize(pixels, 200, 17).shape == (3, 200, 17)


def test_more_than_four_groups_make_a_file_of_version_3():
    model = PQVAE(dataclasses.replace(TINY, subcodes=6))
    prior = tiny_checkpoint(dataclasses.replace(TINY_PRIOR, subcodes=6, group=1))
    many = Codec(model, "ab" * 32, prior=prior)
    pixels, plan = smooth(40, 50), (2, 1, 1, 1, 1, 1)
    for quality, version in ((4, 1), (5, 3), (6, 3)):
        data = many.compress(pixels, quality, plan, price=0)
        assert data[2] == version
        codes = many.encode(pixels[None], quality)
        assert torch.equal(many.decompress(data), many.decode(codes, 40, 50)[0])
        for end in (10, 26, len(data) - 1):
            with pytest.raises(BitstreamError):
                many.decompress(data[:end])
