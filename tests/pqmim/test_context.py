"""Whatever a caller has set in PyTorch: the same codes, the same bytes, the same pixels."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from pqmim import context
from pqmim.codec import Codec
from tests.models import tiny_bytes
from tests.photos import photograph

WEIGHTS = tiny_bytes(prior=True)
PIXELS = photograph()[:, :, 40:104, 60:140].contiguous()


@contextlib.contextmanager
def set_to(get: Callable, change: Callable, value: object) -> Iterator[None]:
    """A process-wide setting for the block, which the block must leave as it is."""
    before = get()
    change(value)
    try:
        yield
        assert get() == value
    finally:
        change(before)


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
        assert torch.get_default_device().type == name
    finally:
        torch.set_default_device(None)


ENVIRONMENTS = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "default dtype float64": lambda: set_to(
        torch.get_default_dtype, torch.set_default_dtype, torch.float64
    ),
    "default dtype bfloat16": lambda: set_to(
        torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16
    ),
    "default device meta": lambda: default_device("meta"),
    "device context meta": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": lambda: torch.set_grad_enabled(True),
    "no gradients": torch.no_grad,
    "deterministic": lambda: set_to(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "medium precision": lambda: set_to(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "two threads": lambda: set_to(torch.get_num_threads, torch.set_num_threads, 2),
    "anomaly mode": torch.autograd.detect_anomaly,
}


@functools.cache
def codec() -> Codec:
    """Loaded outside of every environment."""
    return Codec.from_bytes(WEIGHTS)


@functools.cache
def given() -> tuple[torch.Tensor, torch.Tensor, bytes, list[bytes]]:
    """Codes, which of them are known, a file, payloads."""
    codes = codec().encode(PIXELS)
    known = torch.arange(codes.numel()).reshape(codes.shape) % 3 > 0
    return codes, known, codec().compress(PIXELS[0]), codec().entropy_encode(codes)


def size() -> tuple[int, int]:
    return int(PIXELS.shape[2]), int(PIXELS.shape[3])


def shape() -> tuple[int, int, int]:
    return tuple(given()[0].shape[1:])  # type: ignore[return-value]


ENTRIES: dict[str, Callable[[Codec], object]] = {
    "encode": lambda c: c.encode(PIXELS),
    "encode channels last": lambda c: c.encode(PIXELS.to(memory_format=torch.channels_last)),
    "encode not contiguous": lambda c: c.encode(PIXELS.flip(3).flip(3).transpose(2, 3).mT),
    "latent": lambda c: c.latent(PIXELS),
    "search": lambda c: c.search(PIXELS, price=0.2),
    "decode": lambda c: c.decode(given()[0], *size()),
    "decode known": lambda c: c.decode(given()[0], *size(), given()[1]),
    "compress": lambda c: c.compress(PIXELS[0]),
    "compress at a price": lambda c: c.compress(PIXELS[0], price=0.2),
    "compress to a budget": lambda c: c.compress_to(PIXELS[0], 150),
    "decompress": lambda c: c.decompress(given()[2]),
    "decompress a part": lambda c: c.decompress(given()[2][:-8], partial=True, fill="mean"),
    "entropy encode": lambda c: c.entropy_encode(given()[0]),
    "entropy decode": lambda c: c.entropy_decode(given()[3], *shape()),
    "complete": lambda c: c.complete(given()[0], given()[1], steps=2, seed=3),
    "preview": lambda c: c.preview(given()[0], given()[1], *size()),
}


def plain(value: object) -> object:
    """A result without tensors, to be compared."""
    if isinstance(value, torch.Tensor):
        assert value.device.type == "cpu" and not value.requires_grad
        return str(value.dtype), value.tolist()
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return value


@functools.cache
def expected(entry: str) -> object:
    return plain(ENTRIES[entry](codec()))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_the_callers_settings_change_nothing(entry: str, environment: str) -> None:
    wanted = expected(entry)
    with ENVIRONMENTS[environment]():
        assert plain(ENTRIES[entry](codec())) == wanted


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_codec_loaded_within_settings_is_the_same(environment: str) -> None:
    with ENVIRONMENTS[environment]():
        loaded = Codec.from_bytes(WEIGHTS)
        inside = {entry: plain(call(loaded)) for entry, call in ENTRIES.items()}
    for entry, call in ENTRIES.items():
        assert inside[entry] == expected(entry), entry
        assert plain(call(loaded)) == expected(entry), entry


def test_settings_come_back_also_after_an_error_and_from_many_threads() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError, match="quality"):
            codec().encode(PIXELS, 99)
        assert torch.get_default_dtype() == torch.float64
        gate, seen = threading.Barrier(4), []

        @context.plainly
        def work() -> None:
            gate.wait(10)
            seen.append(torch.get_default_dtype())
            gate.wait(10)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [torch.float32] * 4 and torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_without_the_guard_a_setting_does_change_something(monkeypatch) -> None:
    """So that the matrix above says something."""
    wanted = expected("latent")
    monkeypatch.setattr(context._here, "plain", True, raising=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert plain(codec().latent(PIXELS)) != wanted
