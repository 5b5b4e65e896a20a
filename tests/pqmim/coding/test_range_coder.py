"""Frequencies and the range coder against slow, obvious references."""

from __future__ import annotations

import hashlib

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqmim.coding import range_coder
from pqmim.prior import frequencies, oracle
from tests.pqmim.prior.exact_tools import centred, lcg

TOTAL = frequencies.TOTAL


def encode_by_hand(intervals: list[tuple[int, int]]) -> bytes:
    """A range coder on Python's unbounded integers: 64-bit range, 32-bit words."""
    low, width, words = 0, 2**64 - 1, 0
    for start, length in intervals:
        step = width >> 24
        low, width = low + step * start, step * length
        if width < 2**32:
            low, width, words = low << 32, width << 32, words + 1
    if not intervals:
        return b""
    point = (low + 2**32 - 1) >> 32  # the shortest number that every continuation keeps inside
    words += 1
    if (low + width) >> 32 == point:
        point, words = point << 32, words + 1
    big_endian = point.to_bytes(4 * words, "big")
    return np.frombuffer(big_endian, ">u4").astype("<u4").tobytes()


def random_logits(rows: int, codewords: int, spread: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(centred((rows, codewords), spread, seed)).to(torch.float32)


def full_rows(symbols: np.ndarray, weights: np.ndarray) -> bytes:
    encoder = constriction.stream.queue.RangeEncoder()
    family = constriction.stream.model.Categorical(perfect=False)
    encoder.encode(symbols.astype(np.int32), family, weights.astype(np.float32))
    return encoder.get_compressed().astype("<u4").tobytes()


def test_the_exponential_table_is_the_rounded_power_and_never_changes() -> None:
    table = frequencies.exponential_table()
    assert list(table) == oracle.exponential_table()
    assert table[0] == 2**20 and table[32] == 2**19 and table[672] == 1 and table[673] == 0
    digest = hashlib.sha256(np.array(table, dtype="<u4").tobytes()).hexdigest()
    assert digest == "e2a0e0ad00bc88d074b11ffb8d08e1395405a7a0e31d644353d141f2be7972db"


@pytest.mark.parametrize("spread", [0, 1, 40, 900, 2**15])
def test_frequencies_equal_the_oracle(spread: int) -> None:
    logits = random_logits(12, 256, spread, seed=spread + 1)
    got = frequencies.weights(logits).to(torch.int64).numpy()
    wanted = [oracle.frequencies(row.numpy().astype(np.int64)) for row in logits]
    assert (got == np.stack(wanted)).all()
    assert (got.sum(1) == TOTAL - 256).all() and got.min() >= 0


def test_what_flooring_leaves_goes_to_the_first_of_equal_bests() -> None:
    weights = frequencies.weights(torch.zeros(1, 7))[0]
    assert weights[0] - weights[1] == (TOTAL - 7) % 7 and (weights[1:] == weights[1]).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(1, 2**31),
    count=st.integers(0, 200),
    codewords=st.sampled_from([3, 4, 16, 256]),
    spread=st.sampled_from([0, 30, 400, 2**15]),
)
def test_interval_bytes_equal_full_tables_and_a_coder_by_hand(
    seed: int, count: int, codewords: int, spread: int
) -> None:
    weights = frequencies.weights(random_logits(count, codewords, spread, seed))
    symbols = lcg(count, seed + 1) % codewords
    start, length = frequencies.intervals(weights, torch.from_numpy(symbols))
    payload = range_coder.encode_intervals(start.numpy(), length.numpy())
    assert payload == full_rows(symbols, weights.numpy())
    assert payload == encode_by_hand(list(zip(start.tolist(), length.tolist(), strict=True)))
    decoder = range_coder.Decoder(payload)
    decoded = decoder.decode(weights.numpy().astype(np.float32))
    assert (decoded == symbols).all() and decoder.exhausted()


def test_first_and_last_symbols_and_the_longest_interval_code_the_same() -> None:
    logits = torch.full((4, 256), -(2.0**15))
    logits[0, 0] = logits[1, 255] = logits[2, 1] = logits[3, 0] = 2.0**15
    symbols = np.array([0, 255, 1, 255])
    weights = frequencies.weights(logits)
    start, length = frequencies.intervals(weights, torch.from_numpy(symbols))
    assert length.tolist() == [TOTAL - 255] * 3 + [1]
    got = range_coder.encode_intervals(start.numpy(), length.numpy())
    assert got == full_rows(symbols, weights.numpy())


def test_chunks_of_symbols_decode_like_the_whole() -> None:
    weights = frequencies.weights(random_logits(90, 256, 300, 5))
    symbols = lcg(90, 6) % 256
    start, length = frequencies.intervals(weights, torch.from_numpy(symbols))
    decoder = range_coder.Decoder(range_coder.encode_intervals(start.numpy(), length.numpy()))
    rows = weights.numpy().astype(np.float32)
    parts = [decoder.decode(rows[a:b]) for a, b in ((0, 1), (1, 1), (1, 64), (64, 90))]
    assert (np.concatenate(parts) == symbols).all()


def test_the_coder_costs_at_most_four_bytes_over_the_ideal() -> None:
    weights = frequencies.weights(random_logits(4000, 256, 200, 7))
    p = weights.numpy() + 1
    p /= TOTAL
    rng = np.random.default_rng(0)
    symbols = np.array([rng.choice(256, p=row) for row in p])
    start, length = frequencies.intervals(weights, torch.from_numpy(symbols))
    ideal = float((24 - np.log2(length.numpy())).sum()) / 8
    size = len(range_coder.encode_intervals(start.numpy(), length.numpy()))
    assert ideal <= size <= ideal + 4


def test_nothing_is_no_bytes() -> None:
    assert range_coder.encode_intervals(np.empty(0, np.int64), np.empty(0, np.int64)) == b""


@pytest.mark.parametrize(
    ("start", "length"), [(-1, 5), (0, 0), (TOTAL - 1, 2), (0, TOTAL - 1), (5, -3)]
)
def test_impossible_intervals_are_refused(start: int, length: int) -> None:
    with pytest.raises(ValueError, match="interval"):
        range_coder.encode_intervals(np.array([start]), np.array([length]))


@pytest.mark.parametrize("row", [[-1.0, TOTAL - 1.0], [1.0, 1.0], [0.5, TOTAL - 2.5]])
def test_wrong_weights_are_refused(row: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        range_coder.Decoder(b"").decode(np.array([row], dtype=np.float32))


def test_a_payload_of_odd_length_is_refused() -> None:
    with pytest.raises(range_coder.PayloadError, match="multiple of 4"):
        range_coder.Decoder(b"12345")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 30, 3000]), st.booleans())
def test_no_payload_holds_more_information_than_its_bits(seed, spread, likely):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy((rng.normal(size=(int(rng.integers(1, 80)), 256)) * spread).round())
    weight = frequencies.weights(logits)
    symbols = logits.argmax(-1) if likely else torch.from_numpy(rng.integers(0, 256, len(logits)))
    start, length = (x.numpy() for x in frequencies.intervals(weight, symbols))
    payload = range_coder.encode_intervals(start, length)
    assert 8 * len(payload) >= 24 * len(length) - np.log2(length).sum()
    assert len(payload) >= range_coder.least_bytes(len(length), 256)
    rows = weight.to(torch.float32).numpy()
    for rest in (b"", bytes(400), b"\xff" * 400):  # what follows the last word does not matter
        assert (range_coder.Decoder(payload + rest).decode(rows) == symbols.numpy()).all()


def test_a_payload_that_ends_early_or_that_nobody_wrote_is_an_error():
    weight = frequencies.weights(torch.zeros(100, 256))
    symbols = torch.from_numpy(lcg(100, 5) % 256)
    start, length = (x.numpy() for x in frequencies.intervals(weight, symbols))
    payload, rows = range_coder.encode_intervals(start, length), weight.to(torch.float32).numpy()
    assert range_coder.Decoder(payload).decode(rows).shape == (100,)
    with pytest.raises(range_coder.PayloadError, match="ends before the last code"):
        range_coder.Decoder(payload[:-8]).decode(rows)
    with pytest.raises(range_coder.PayloadError, match="no encoder wrote"):
        range_coder.Decoder(b"\xff" * len(payload)).decode(rows)
