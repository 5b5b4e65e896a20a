"""The exactness promise: the same integers from every kernel, batch, thread count and mode."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pqmim.coding import payloads
from pqmim.coding.windows import Grid
from pqmim.prior import exact, frequencies, integers, load, oracle, products
from pqmim.prior import tensors as integer
from pqmim.prior.config import PriorConfig
from pqmim.prior.engine import probe_before, probe_sha256
from tests.pqmim.prior import exact_harness
from tests.pqmim.prior.exact_tools import (
    TINY,
    centred,
    compare_with_oracle,
    some_codes,
    tiny_arrays,
    tiny_checkpoint,
)

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]

# Made on x86 (AVX-512) with torch 2.13; a change here is a change of the format.
GOLDEN = {
    "chained model_id": "8e148f91d71dddfedb6f8b20cdc1fe7cfee4c9c4dfcf1645c159d54f0148e7c2",
    "chained probe": "b0ee66fc831455fdda33d97c4f7b84001068346ac63b4e2de5354b32954eaa8d",
    "chained payload": "3bd6835573985dc49bb1fd4b978198eb64704e2c8d7ce87c8f34ed9e7786a95e",
    "chained decoded": "True",
    "chained float32": "57ead499518e777a0a7ab76ad1de770d45da2a46ad707fafef5ac7e8ee37867d",
    "chained loaded": "57ead499518e777a0a7ab76ad1de770d45da2a46ad707fafef5ac7e8ee37867d",
    "unchained model_id": "099fb9dbcb369e6a45cae751f568eb5a44ecdeb8cf9406c62ba38e47d949e32e",
    "unchained probe": "8ce6be79c36cdc2a60e7801fe8dcaae0ca5a09d596b628e76e956605bf5ad7ca",
    "unchained payload": "944bb850e19f9711fef1d13ad07ccf2518752dd7b759d531843e117e7ae3552f",
    "unchained decoded": "True",
    "unchained float32": "1ebef8cdf56319b3f547acbe4082aa8fba8d5aaf2254d6109db881afd73e5ee4",
    "unchained loaded": "1ebef8cdf56319b3f547acbe4082aa8fba8d5aaf2254d6109db881afd73e5ee4",
}

# Environment and arguments of processes that choose other kernels.
MODES: dict[str, tuple[dict[str, str], list[str]]] = {
    "plain": ({"ATEN_CPU_CAPABILITY": "default"}, []),
    "avx2": ({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, ["--threads", "2"]),
    "mkl": ({"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}, []),
    "bf16": ({"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}, ["--precision", "medium"]),
}


@pytest.fixture(scope="module")
def checkpoint() -> integers.Checkpoint:
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def engine(checkpoint: integers.Checkpoint) -> integer.Engine:
    return integer.Engine(checkpoint, CPU, form="float32")


@pytest.fixture(scope="module")
def other_processes() -> dict[str, dict[str, str]]:
    """The harness's report from every mode; the processes run side by side."""
    command = [sys.executable, "-m", "tests.pqmim.prior.exact_harness"]
    running = {}
    for mode, (environment, arguments) in MODES.items():
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
        running[mode] = subprocess.Popen(
            [*command, *arguments], env=env, cwd=ROOT, stdout=subprocess.PIPE
        )
    return {mode: json.loads(p.communicate(timeout=300)[0]) for mode, p in running.items()}


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    return exact_harness.report()


def test_golden_model_logits_and_bytes(here: dict[str, str]) -> None:
    assert {k: here[k] for k in GOLDEN} == GOLDEN


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_other_kernels_give_the_golden_integers(
    mode: str, other_processes: dict[str, dict[str, str]]
) -> None:
    assert {k: other_processes[mode][k] for k in GOLDEN} == GOLDEN


@pytest.mark.long
def test_negative_control_the_float_form_differs_between_kernels(
    here: dict[str, str], other_processes: dict[str, dict[str, str]]
) -> None:
    forms = {here["float_form"], *(report["float_form"] for report in other_processes.values())}
    assert len(forms) > 1, "the harness cannot see a difference between kernels"


def test_engine_equals_the_oracle_on_a_million_logits(
    checkpoint: integers.Checkpoint, engine: integer.Engine
) -> None:
    tokens, present = exact_harness.windows(3)
    assert compare_with_oracle(engine, checkpoint.arrays, tokens, present) > 1_000_000


@pytest.mark.parametrize("batch", [1, 2, 8, 32])
def test_batch_size_changes_nothing(engine: integer.Engine, batch: int) -> None:
    tokens, present = exact_harness.windows(batch)
    one = engine.hidden(*exact_harness.windows(2))
    assert (engine.hidden(tokens, present) == one.repeat(16, 1, 1)[:batch]).all()


def test_a_subset_of_rows_gives_the_same_logits(engine: integer.Engine) -> None:
    hidden = engine.hidden(*exact_harness.windows(1))[0]
    whole = engine.logits(hidden, 1)
    for rows in ([3], [5, 200], list(range(7, 58))):
        assert (engine.logits(hidden[rows], 1) == whole[rows]).all()


def test_full_windows_equal_masked_ones(engine: integer.Engine) -> None:
    tokens, present = exact_harness.windows(2)
    alone = engine.hidden(tokens[:1], present[:1])
    beside_partial = engine.hidden(tokens, present)[:1]
    assert (alone == beside_partial).all()


def test_positions_outside_the_image_have_no_influence(engine: integer.Engine) -> None:
    tokens, present = exact_harness.windows(2)
    changed = tokens.clone()
    changed[~present] = 7
    inside = present.reshape(2, -1)
    assert (engine.hidden(tokens, present)[inside] == engine.hidden(changed, present)[inside]).all()


def test_an_open_autocast_changes_nothing(engine: integer.Engine) -> None:
    tokens, present = exact_harness.windows(2)
    plain = engine.hidden(tokens, present)
    with torch.autocast("cpu", torch.bfloat16):
        assert (engine.hidden(tokens, present) == plain).all()
        logits = engine.logits(plain[0], 0)
    assert (logits == engine.logits(plain[0], 0)).all()


def test_another_order_of_summation_changes_nothing(
    checkpoint: integers.Checkpoint,
) -> None:
    arrays = dict(checkpoint.arrays)
    d = np.random.default_rng(0).permutation(TINY.dims)
    f = np.random.default_rng(1).permutation(TINY.hidden)
    for name in ("codes", "row", "column", "chain"):
        arrays[name] = arrays[name][..., d]
    for name in integers.layer_shapes(TINY):
        kind = name.rpartition(".")[2]
        weight = arrays[f"{name}.weight"]
        if kind in ("query_key_value", "up", "head"):
            weight = weight[:, d]
        if kind == "local":
            weight = weight.reshape(TINY.dims, 8, TINY.dims)[:, :, d].reshape(weight.shape)
        if kind == "down":
            weight = weight[:, f]
        rows = {"up": f, "out": d, "down": d, "local": d}.get(kind, slice(None))
        arrays[f"{name}.weight"] = weight[rows]
        for part in ("bias", "shift"):
            arrays[f"{name}.{part}"] = arrays[f"{name}.{part}"][rows]
    permuted = integer.Engine(dataclasses.replace(checkpoint, arrays=arrays), CPU, form="float32")
    assert probe_sha256(permuted) == checkpoint.probe_sha256


def in_float64(part: Any) -> Any:
    """A copy of a network, or of a part of it, with every tensor in float64."""
    if isinstance(part, torch.Tensor):
        return part.double()
    if isinstance(part, list):
        return [in_float64(item) for item in part]
    if isinstance(part, (exact.Network, exact.Block, exact.Linear)):
        fields = {f.name: in_float64(getattr(part, f.name)) for f in dataclasses.fields(part)}
        return type(part)(**fields)
    return part


def test_float64_gives_the_same_integers(
    checkpoint: integers.Checkpoint, engine: integer.Engine
) -> None:
    wide = integer.Engine(checkpoint, CPU, form="float32")
    wide.net = in_float64(wide.net)
    tokens, present = exact_harness.windows(2)
    hidden = wide.hidden(tokens, present)
    assert hidden.dtype == torch.float64
    assert (hidden == engine.hidden(tokens, present)).all()
    assert (wide.logits(hidden[0], 1) == engine.logits(hidden[0].float(), 1)).all()


def test_other_number_types_are_refused(engine: integer.Engine) -> None:
    codes = engine.net.codes.bfloat16()
    narrow = dataclasses.replace(engine.net, codes=codes, place=engine.net.place.bfloat16())
    with pytest.raises(TypeError, match="not torch.bfloat16"):
        exact.hidden(narrow, exact_harness.windows(1)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_a_gpu_gives_the_integers_of_the_cpu(
    checkpoint: integers.Checkpoint, engine: integer.Engine, batch: int, int8: bool,
    tf32: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    gpu = integer.Engine(checkpoint, torch.device("cuda"), int8=int8)
    tokens, present = exact_harness.windows(batch)
    hidden = gpu.hidden(tokens.cuda(), present.cuda())
    wanted = engine.hidden(*exact_harness.windows(2)).repeat(32, 1, 1)[:batch]
    inside = present.reshape(batch, -1)
    assert (hidden.cpu()[inside] == wanted[inside]).all()
    for part in range(TINY.subcodes // TINY.together):
        before = probe_before(TINY, part, wanted[inside])
        logits = engine.logits(wanted[inside], part, before)
        found = gpu.logits(hidden[inside.cuda()], part, before.cuda())
        assert (found.cpu() == logits).all()
        assert (frequencies.weights(found).cpu() == frequencies.weights(logits)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_writes_the_bytes_of_the_cpu_and_each_reads_the_other(
    checkpoint: integers.Checkpoint, engine: integer.Engine
) -> None:
    gpu = load.load(checkpoint, torch.device("cuda"))
    assert gpu.device.type == "cuda"
    codes = some_codes(40, 35, 8, 9)
    payload = payloads.code_image(gpu, codes, (4, 2))
    assert payload == payloads.code_image(engine, codes, (4, 2))
    assert (payloads.decode_image(engine, payload, codes.shape, (4, 2)) == codes).all()
    assert (payloads.decode_image(gpu, payload, codes.shape, (4, 2)) == codes).all()


@pytest.mark.skipif(
    not products.is_exact(64, 32, CPU), reason="this CPU's int8 kernels are not exact"
)
def test_int8_kernels_that_pass_the_test_give_the_same_integers(
    checkpoint: integers.Checkpoint, engine: integer.Engine
) -> None:
    fast = integer.Engine(checkpoint, CPU, form="int8")
    assert fast.net.blocks[0].down.bytes_in_out is not None
    tokens, present = exact_harness.windows(4)
    hidden = fast.hidden(tokens, present)
    assert (hidden == engine.hidden(tokens, present)).all()
    assert (fast.logits(hidden[0], 0) == engine.logits(hidden[0], 0)).all()


def test_sums_within_one_percent_of_the_bound_are_exact() -> None:
    inputs = 516
    signs = np.where(centred((16, inputs), 1, 3) >= 0, 127, -127)
    weight = np.concatenate([signs, np.full((1, inputs), 127)])
    x = np.concatenate([signs, np.full((1, inputs), 127)])
    bias = np.full(17, integers.SUM_LIMIT - 1 - 127 * 127 * inputs)
    integers.prove_layer("w", weight.astype(np.int8), bias, np.full(17, 3))
    largest = integers.worst_sums(weight.astype(np.int8), bias).max()
    assert largest > 0.99 * integers.SUM_LIMIT
    layer = exact.Linear(
        torch.from_numpy(weight / 8).float(), torch.from_numpy(bias / 8).float(),
        torch.full((17,), 0.125), 2**22,
    )  # fmt: skip
    wanted = oracle.linear(
        {"w.weight": weight, "w.bias": bias, "w.shift": np.full(17, 3)}, "w", x, 2**22
    )
    for order in (np.arange(inputs), np.random.default_rng(2).permutation(inputs)):
        layer.weight = torch.from_numpy(weight[:, order] / 8).float()
        got = exact.linear(layer, torch.from_numpy(x[:, order]).float())
        assert (got.numpy() == wanted).all()
    assert wanted.max() == (integers.SUM_LIMIT - 1) >> 3


def test_a_saturated_model_equals_the_oracle() -> None:
    arrays = tiny_arrays()
    for name, a in arrays.items():
        if name.endswith("weight"):
            a[:] = np.where(a >= 0, 127, -127)
        if name in ("codes", "row", "column"):
            a[:] = np.where(a >= 0, 32767, -32767)
    integers.prove(TINY, arrays)
    want = probe_sha256(integer.Oracle(TINY, arrays))
    model = integer.Engine(integers.Checkpoint(TINY, arrays, want), CPU, form="float32")
    assert probe_sha256(model) == want


def damaged(checkpoint: integers.Checkpoint, name: str, value: int) -> integers.Arrays:
    arrays = {k: v.copy() for k, v in checkpoint.arrays.items()}
    arrays[name].reshape(-1)[0] = value
    return arrays


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("blocks.0.up.bias", integers.SUM_LIMIT - 1, "row 0: sums may reach"),
        ("blocks.0.up.bias", -integers.SUM_LIMIT, "row 0: sums may reach"),
        ("head.weight", -128, "holds -128"),
        ("blocks.1.out.shift", 21, "above 20"),
        ("blocks.1.position", 2**22, "position reaches"),
        ("blocks.1.exponents", 21, "exponents 21"),
    ],
)
def test_integers_that_could_overflow_are_refused(
    checkpoint: integers.Checkpoint, name: str, value: int, says: str
) -> None:
    with pytest.raises(integers.RangeError, match=says):
        integers.prove(TINY, damaged(checkpoint, name, value))


def test_checkpoint_comes_back_and_damage_is_noticed(
    checkpoint: integers.Checkpoint,
) -> None:
    tensors, metadata = checkpoint.to_tensors()
    again = integers.Checkpoint.from_tensors(tensors, metadata)
    assert again.model_id == checkpoint.model_id and again.config == TINY
    tensors["blocks.0.up.weight"][3, 4] ^= 1
    with pytest.raises(integers.CheckpointError, match="damaged"):
        integers.Checkpoint.from_tensors(tensors, metadata)
    del tensors["row"]
    with pytest.raises(integers.CheckpointError, match="row"):
        integers.Checkpoint.from_tensors(tensors, metadata)
    with pytest.raises(integers.CheckpointError, match="spec"):
        integers.Checkpoint.from_tensors(tensors, metadata.replace(integers.SPEC, "exact-mim-9"))
    with pytest.raises(integers.CheckpointError, match="metadata"):
        integers.Checkpoint.from_tensors(tensors, "{}")


def test_a_device_that_computes_wrongly_is_replaced_by_the_oracle(
    checkpoint: integers.Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    norm = exact.norm
    monkeypatch.setattr(exact, "norm", lambda x: norm(x) + (x > 300))
    monkeypatch.setattr(load, "_compiled", partial(integer.Engine, device=CPU))
    with caplog.at_level(logging.WARNING):
        model = load.load(checkpoint, CPU)
    assert isinstance(model, integer.Oracle)
    assert "wrong test vector on cpu" in caplog.text and "oracle" in caplog.text


def test_a_wrong_test_vector_is_an_error(checkpoint: integers.Checkpoint) -> None:
    with pytest.raises(integers.CheckpointError, match="test vector"):
        load.load(dataclasses.replace(checkpoint, probe_sha256="0" * 64), CPU)


def test_square_roots_are_repaired() -> None:
    n = torch.tensor([0, 1, 2, 4095, 4096, 65535, 10**6, 123456789, 2**44 - 1, 2**44])
    wanted = oracle.isqrt(256 * n.numpy()).clip(1)
    assert (exact.root(n.double()).numpy() == wanted).all()


def test_attention_weights_follow_the_specification() -> None:
    t = np.arange(exact.LAST_STEP + 1)
    wanted = ((((64 - (t & 31)) * 256) >> (t >> 5)) + 64) >> 7
    got = exact.attention_weight(torch.from_numpy(t).to(torch.int32))
    assert (got.numpy() == wanted).all() and wanted[0] == 128 and wanted[-1] == 0


@pytest.mark.parametrize(
    ("height", "width", "subcodes", "plan"),
    [(1, 1, 1, (1,)), (16, 16, 8, (4, 2)), (17, 5, 5, (133, 130)), (3, 40, 4, (16, 1)),
     (20, 35, 3, (2, 1))],
)  # fmt: skip
def test_codes_come_back(
    engine: integer.Engine, height: int, width: int, subcodes: int, plan: tuple[int, ...]
) -> None:
    codes = some_codes(height, width, subcodes, seed=height)
    payload = payloads.code_image(engine, codes, plan)
    assert (payloads.decode_image(engine, payload, codes.shape, plan) == codes).all()


def test_a_batch_of_images_codes_like_each_alone(
    checkpoint: integers.Checkpoint, engine: integer.Engine
) -> None:
    images = [some_codes(18, 7, 8, 1), some_codes(5, 5, 3, 2), some_codes(16, 33, 6, 3)]
    together = payloads.encode_images(engine, images, (4, 2))
    fast = load.load(checkpoint, CPU)
    assert together == [payloads.code_image(fast, image, (4, 2)) for image in images]
    decoded = payloads.decode_images(engine, together, [i.shape for i in images], (4, 2))
    assert all((a == b).all() for a, b in zip(images, decoded, strict=True))


def test_a_stream_decodes_to_any_coarser_group(engine: integer.Engine) -> None:
    codes = some_codes(20, 18, 8, 4)
    payload = payloads.code_image(engine, codes, (4, 2))
    coarse = payloads.decode_image(engine, payload, (20, 18, 4), (4, 2))
    assert (coarse == codes[..., :4]).all()
    own = payloads.code_image(engine, np.ascontiguousarray(codes[..., :4]), (4, 2))
    shared = len(own) - 8  # the last words close the range
    assert own[:shared] == payload[:shared]


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (np.zeros((2, 2, 9), np.uint8), "9 sub-codes"),
        (np.zeros((2, 2), np.uint8), "uint8"),
        (np.zeros((2, 0, 1), np.uint8), "uint8"),
        (np.zeros((2, 2, 1), np.int64), "uint8"),
    ],
)
def test_codes_that_do_not_fit_are_refused(
    engine: integer.Engine, codes: np.ndarray, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        payloads.code_image(engine, codes, (4, 2, 1))


def test_a_code_beyond_the_alphabet_is_refused() -> None:
    config = PriorConfig(
        subcodes=2, codewords=16, group=1, dims=8, heads=1, hidden=8, local=(False,)
    )
    with pytest.raises(ValueError, match="code 16"):
        Grid.of(np.full((1, 1, 1), 16, np.uint8), (1,), config)


def test_frequencies_of_a_window_equal_the_oracle(engine: integer.Engine) -> None:
    hidden = engine.hidden(*exact_harness.windows(1))[0, :5]
    logits = engine.logits(hidden, 0).flatten(0, 1)
    got = frequencies.weights(logits).to(torch.int64).numpy()
    rows = [oracle.frequencies(row.numpy().astype(np.int64)) for row in logits]
    assert (got == np.stack(rows)).all()
