"""The form of an integer product: the fastest that is exact, whatever the machine at hand has."""

from __future__ import annotations

import logging
import time

import pytest
import torch

from pqmim.prior import fused, products, tensors
from tests.pqmim.exact_tools import TINY, tiny_checkpoint

CPU = torch.device("cpu")
SHAPES = {"a": (256, 32, 64), "b": (256, 64, 32)}


def slowed(kernel, seconds=0.05):
    """A kernel that computes the same and takes its time."""

    def slow(x, weight, out=None):
        time.sleep(seconds)
        return kernel(x, weight, out)

    return slow


def right(x, weight, out=None):
    """An int8 kernel that is right on every machine."""
    total = (x.to(torch.int64) @ weight.to(torch.int64)).to(torch.int32)
    return total if out is None else out.copy_(total)


def test_a_slow_int8_kernel_is_not_taken_however_exact(monkeypatch, caplog):
    monkeypatch.setattr(products, "int8", slowed(right))
    with caplog.at_level(logging.INFO):
        assert products.choose(SHAPES, CPU) == {"a": "float32", "b": "float32"}
    assert "float32 for 2 shapes (256x32x64: float32 " in caplog.text


def test_a_fast_int8_kernel_is_taken_if_it_is_exact(monkeypatch):
    monkeypatch.setattr(products, "float32", slowed(products.float32))
    monkeypatch.setattr(products, "int8", right)
    assert products.choose(SHAPES, CPU) == {"a": "int8", "b": "int8"}


def test_a_wrong_int8_kernel_is_never_taken(monkeypatch, caplog):
    def wraps(x, weight, out=None):  # sums of 16 bits, as without VNNI
        return right(x, weight, out).to(torch.int16).to(torch.int32)

    monkeypatch.setattr(products, "float32", slowed(products.float32))
    monkeypatch.setattr(products, "int8", wraps)
    with caplog.at_level(logging.INFO):
        assert products.choose(SHAPES, CPU) == {"a": "float32", "b": "float32"}
    assert "but wrong" in caplog.text


def test_the_choice_is_made_for_each_shape(monkeypatch):
    def one_is_slow(x, weight, out=None):
        time.sleep(0.05 if x.shape[1] == 32 else 0)
        return right(x, weight, out)

    monkeypatch.setattr(products, "float32", slowed(products.float32, 0.005))
    monkeypatch.setattr(products, "int8", one_is_slow)
    assert products.choose(SHAPES, CPU) == {"a": "float32", "b": "int8"}


def test_a_device_without_the_kernel_has_floats(monkeypatch, caplog):
    def missing(x, weight, out=None):
        raise RuntimeError("_int_mm: not on this device")

    monkeypatch.setattr(products, "int8", missing)
    with caplog.at_level(logging.INFO):
        assert products.choose(SHAPES, CPU) == {"a": "float32", "b": "float32"}
    assert "no int8 kernel: _int_mm: not on this device" in caplog.text


def test_a_tie_goes_to_the_first_and_a_hopeless_one_is_not_called_again():
    calls = {"first": 0, "same": 0, "hopeless": 0}

    def call(name, seconds):
        def run():
            calls[name] += 1
            time.sleep(seconds)

        return run

    trial = {"first": call("first", 0.02), "same": call("same", 0.02)}
    assert products.fastest(trial, CPU)[0] == "first"
    trial = {"first": call("first", 0.01), "hopeless": call("hopeless", 0.2)}
    name, seconds = products.fastest(trial, CPU)
    assert name == "first" and seconds["hopeless"] > seconds["first"] and calls["hopeless"] <= 3


@pytest.mark.parametrize("engine", [fused.Fused, tensors.Engine])
def test_the_engines_run_what_was_chosen(engine, monkeypatch):
    used = {"float32": 0, "int8": 0}

    def counted(name, kernel):
        def count(x, weight, out=None):
            used[name] += 1
            return kernel(x, weight, out)

        return count

    checkpoint = tiny_checkpoint(TINY)
    monkeypatch.setattr(products, "int8", counted("int8", right))
    monkeypatch.setattr(products, "float32", counted("float32", products.float32))
    tokens = torch.full((1, 16, 16, TINY.subcodes), TINY.mask)
    everywhere = torch.ones(1, 16, 16, dtype=torch.bool)
    rows = {}
    for form in products.FORMS:
        make = (
            fused.load(checkpoint, form) if engine is fused.Fused else engine(checkpoint, CPU, form)
        )
        used.update(dict.fromkeys(used, 0))
        rows[form] = make.rows(tokens, everywhere, everywhere)
        other = "int8" if form == "float32" else "float32"
        assert used[other] == 0 and (
            used[form] > 0 or (form, engine) == ("float32", tensors.Engine)
        )
    assert torch.equal(rows["int8"], rows["float32"])
