"""The compiled engine gives the integers of the oracle and the bytes of the tensor engine."""

from __future__ import annotations

import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch

import pqmim
from pqmim.coding import payloads
from pqmim.prior import exact, frequencies, integers, load, oracle, products, tensors
from pqmim.prior.config import PriorConfig
from pqmim.prior.engine import probe_sha256
from tests.pqmim.prior import exact_harness
from tests.pqmim.prior.exact_tools import (
    TINY,
    UNCHAINED,
    centred,
    compare_with_oracle,
    lcg,
    some_codes,
    tiny_arrays,
    tiny_checkpoint,
)

fused = pytest.importorskip("pqmim.prior.fused", reason="no numba")
kernels = fused.kernels

CPU = torch.device("cpu")
ODD = PriorConfig(
    subcodes=9, codewords=17, group=3, dims=40, heads=5, hidden=24, local=(False, True)
)


@pytest.fixture(scope="module", params=[TINY, ODD, UNCHAINED], ids=["tiny", "odd", "unchained"])
def checkpoint(request: pytest.FixtureRequest) -> integers.Checkpoint:
    return tiny_checkpoint(request.param)


def some_windows(config: PriorConfig, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens over the whole alphabet, a third masked; every other window is cut."""
    shape = (batch, 16, 16, config.subcodes)
    tokens = (lcg(int(np.prod(shape)), 3) % config.codewords).reshape(shape)
    tokens[centred(shape, 1, 4) == 0] = config.mask
    present = np.ones(shape[:3], dtype=bool)
    present[1::2, 11:] = present[1::2, :, 3:] = False
    return torch.from_numpy(tokens), torch.from_numpy(present)


@pytest.mark.parametrize("form", products.FORMS)
def test_hidden_states_and_logits_equal_the_oracle(
    checkpoint: integers.Checkpoint, form: str
) -> None:
    config = checkpoint.config
    if form == "int8" and not products.is_exact(64, 32, CPU):
        pytest.skip("this CPU's int8 kernels are not exact")
    model = fused.load(checkpoint, form)
    tokens, present = some_windows(config, 2)
    assert compare_with_oracle(model, checkpoint.arrays, tokens, present) > 0


@pytest.mark.parametrize("share", [0.0, 0.004, 0.3, 1.0])
def test_rows_asked_for_are_those_of_all(checkpoint: integers.Checkpoint, share: float) -> None:
    model = fused.load(checkpoint)
    tokens, present = some_windows(checkpoint.config, 3)
    cells = present & torch.from_numpy(np.random.default_rng(0).random((3, 16, 16)) < share)
    wanted = tensors.Engine(checkpoint, CPU, form="float32").hidden(tokens, present)
    rows = model.rows(tokens, present, cells)
    assert torch.equal(rows.float(), wanted.flatten(0, 1)[cells.reshape(-1)])


def saturated(seed: int) -> integers.Arrays:
    arrays = tiny_arrays()
    for name, a in arrays.items():
        if name.endswith("weight"):
            a[:] = np.where(a >= 0, 127, -127)
        if name in ("codes", "row", "column"):
            a[:] = np.where(a >= 0, 32767, -32767)
        if name.endswith("position") and seed:
            a[:] = np.where(a >= 0, 2**22 - 1, 1 - 2**22)
        if name.endswith("exponents") and seed:
            a[:] = (0, 8, 1) if seed == 1 else (20, 8, 20)
        if name.endswith("shift") and seed:
            a[:] = 0 if seed == 1 else 20
    return arrays


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_saturated_models_equal_the_oracle(seed: int) -> None:
    arrays = saturated(seed)
    integers.prove(TINY, arrays)
    want = probe_sha256(tensors.Oracle(TINY, arrays))
    model = fused.load(integers.Checkpoint(TINY, arrays, want))
    assert probe_sha256(model) == want


@pytest.mark.parametrize("dims", [8, 128, 1000, 1024])
def test_norms_equal_the_oracle_at_every_magnitude(dims: int) -> None:
    rows = [centred((dims,), 2**bits - 1, bits) for bits in range(18)]
    rows += [np.zeros(dims, np.int64), np.full(dims, 2**17 - 1), np.eye(1, dims, 3, dtype=int)[0]]
    x = np.stack([*rows, -(2**17 - 1) * rows[-1]])
    out = np.empty(x.shape, np.int8)
    kernels.norm(x.astype(np.int32), float(exact.norm_gain(dims)), out)
    assert (out == oracle.norm(x)).all()


def test_means_of_values_are_floors_of_exact_fractions() -> None:
    totals = np.array([[128, 129, 255, 32767, 32768, 1000]], np.int32)
    for exponent in (0, 3, 8):
        # sums whose quotients lie on an integer, just below and just above
        aim = centred((6, 40), 127, exponent + 1) * 2 * totals.T - totals.T
        mixed = (aim // 2 ** (exponent + 1) + centred((6, 40), 1, 9))[None].astype(np.int32)
        out = np.empty((6, 40), np.int8)
        kernels.mix(mixed, totals, np.zeros((256, 40), np.int8), 2**exponent, out)
        for (r, d), found in np.ndenumerate(out):
            half = Fraction(1, 2)
            value = Fraction(int(mixed[0, r, d]) * 2**exponent, int(totals[0, r])) + half
            assert found == min(127, max(-127, value.__floor__()))


@pytest.mark.parametrize("spread", [0, 1, 40, 900, 2**15])
@pytest.mark.parametrize("codewords", [3, 17, 256])
def test_frequencies_equal_the_oracle(spread: int, codewords: int) -> None:
    sums = centred((6, 2 * codewords), spread, spread + codewords)
    table = np.array(frequencies.exponential_table(), np.int32)
    zero = np.zeros(2 * codewords, np.int32)
    out = np.empty((12, codewords), np.float32)
    kernels.frequencies(sums.astype(np.int32), zero, zero, codewords, table, out)
    wanted = [oracle.frequencies(row) for row in sums.reshape(12, codewords)]
    assert (out == np.stack(wanted)).all()


def test_choices_and_intervals_equal_the_tensor_form() -> None:
    model = fused.load(tiny_checkpoint(TINY))
    logits = torch.from_numpy(centred((50, 3, 256), 300, 5)).to(torch.float32)
    weights = frequencies.weights(logits)
    error = torch.from_numpy(centred((3, 50, 256), 60, 6)).to(torch.float32)  # with equal ones
    scale = torch.tensor([0.0, 0.1, 30.0])
    wanted = frequencies.cheapest(error.clone(), scale, weights)
    codes = model.cheapest(error, scale, weights.float())
    assert torch.equal(codes, wanted) and len(codes.unique()) > 20
    flat, symbols = weights.flatten(0, 1), codes.reshape(-1)
    for mine, theirs in zip(
        model.intervals(flat.float(), symbols), frequencies.intervals(flat, symbols), strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("height", "width", "subcodes", "plan"),
    [(1, 1, 1, (1,)), (16, 33, 8, (4, 2)), (17, 5, 5, (133, 130)), (20, 35, 3, (2, 1))],
)
def test_payloads_are_the_tensor_engine_s_and_each_reads_the_other(
    height: int, width: int, subcodes: int, plan: tuple[int, ...]
) -> None:
    checkpoint = tiny_checkpoint(TINY)
    model, plain = fused.load(checkpoint), tensors.Engine(checkpoint, CPU, form="float32")
    codes = some_codes(height, width, subcodes, seed=height)
    payload = payloads.code_image(model, codes, plan)
    assert payload == payloads.code_image(plain, codes, plan)
    for each in (model, plain):
        assert (payloads.decode_image(each, payload, codes.shape, plan) == codes).all()


def test_threads_side_by_side_give_the_same() -> None:
    model = fused.load(tiny_checkpoint(TINY))
    inputs = exact_harness.windows(2)
    wanted = model.hidden(*inputs)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model.hidden(*inputs), range(16)))
    assert all(torch.equal(one, wanted) for one in found)


@pytest.mark.parametrize(
    ("slow", "taken"), [(tensors.Engine, fused.Fused), (fused.Fused, tensors.Engine)]
)
def test_loading_takes_the_faster_engine(
    slow: type, taken: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = slow.rows
    monkeypatch.setattr(slow, "rows", lambda *args: time.sleep(1) or rows(*args))
    assert isinstance(load.load(tiny_checkpoint(TINY), CPU), taken)


def test_without_numba_the_tensor_engine_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("fused", "kernels"):
        monkeypatch.delitem(sys.modules, f"pqmim.prior.{name}")
        monkeypatch.delattr(pqmim.prior, name)
    with caplog.at_level(logging.INFO):
        model = load.load(tiny_checkpoint(TINY), CPU)
    assert isinstance(model, tensors.Engine) and "for want of numba" in caplog.text


def test_a_compiled_engine_that_computes_wrongly_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = kernels.requantise

    def wrong(total: np.ndarray, bias: np.ndarray, shift: np.ndarray, out: np.ndarray) -> None:
        right(total, bias + 300, shift, out)

    monkeypatch.setattr(kernels, "requantise", wrong)
    model = load.load(tiny_checkpoint(TINY), CPU)
    assert isinstance(model, tensors.Engine)
    assert "wrong test vector on cpu, compiled" in caplog.text


def test_loops_that_do_not_compile_or_differ_are_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = kernels.compiled(lambda x, gain, out: x.no_such_attribute)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "norm", broken)
        assert isinstance(load.load(tiny_checkpoint(TINY), CPU), tensors.Engine)
        assert "do not compile" in caplog.text
    monkeypatch.setattr(kernels, "intervals", lambda rows, symbols, pair: pair.fill(1))
    assert isinstance(load.load(tiny_checkpoint(TINY), CPU), tensors.Engine)
    assert "differ from the tensor form" in caplog.text


def test_a_function_that_cannot_be_cached_compiles_all_the_same() -> None:
    scope: dict = {}
    exec("def double(x):\n    return 2 * x\n", scope)  # of no file: numba has no place for it
    assert kernels.compiled(scope["double"])(21) == 42


def test_windows_alike_before_the_first_stage_are_computed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tensors.Engine(tiny_checkpoint(TINY), CPU, form="float32")
    sizes, rows = [], model.rows
    monkeypatch.setattr(model, "rows", lambda t, p, c: sizes.append(len(t)) or rows(t, p, c))
    payloads.code_image(model, some_codes(16, 40, 4, 1), (2,))
    assert sizes == [3, 2]  # of 4 and 2: two full windows and a cut one, twice


def test_every_loop_is_compiled_once(checkpoint: integers.Checkpoint) -> None:
    model = fused.load(checkpoint)
    codes = np.minimum(some_codes(20, 35, 3, 1), checkpoint.config.codewords - 1)
    assert payloads.code_image(model, codes, (4,))
    loops = (kernels.embed, kernels.norm, kernels.add_norm, kernels.around, kernels.requantise,
             kernels.activate, kernels.attend, kernels.mix, kernels.frequencies,
             kernels.intervals, kernels.cheapest)  # fmt: skip
    assert [loop.__name__ for loop in loops if len(loop.signatures) != 1] == []
