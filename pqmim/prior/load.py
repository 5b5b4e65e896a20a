"""The engine that runs the entropy model the same on every machine, and as fast as this one can.

Every engine is held against the model's built-in test vector: the SHA-256 of its logits.  On a CPU
with numba there are two that pass, the compiled one (``pqmim.prior.fused``) and the tensor one; the
faster is taken, by a measurement on one window.  A device that fails is replaced by the CPU, then
by the int64 NumPy oracle, and the log says so.

Loading a 5 M parameter model costs 0.3 s on one core, after numba is imported (1 s) and its loops
are compiled (10 to 80 s, once a machine).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pqmim.prior import products
from pqmim.prior.engine import Model, probe, probe_sha256
from pqmim.prior.integers import Checkpoint, CheckpointError
from pqmim.prior.tensors import Engine, Oracle

log = logging.getLogger(__name__)
CPU = torch.device("cpu")
# What reading a damaged file of Numba's raises: it is a pickle of machine code.
DAMAGE = (
    EOFError, pickle.UnpicklingError, OSError, ValueError, TypeError, AttributeError, ImportError,
    IndexError, KeyError, RuntimeError, AssertionError, OverflowError, MemoryError, SyntaxError,
)  # fmt: skip


def load(checkpoint: Checkpoint, device: torch.device) -> Model:
    """The fastest engine that reproduces the model's test vector.

    Raises:
        CheckpointError: not even the oracle does; the test vector itself is wrong.
    """
    engines = [_tried(f"{device}", checkpoint, lambda: Engine(checkpoint, device))]
    if device.type == "cpu":
        engines.append(_tried("cpu, compiled", checkpoint, lambda: _compiled(checkpoint)))
    else:
        engines.append(None)
        if engines[0] is None:
            engines[0] = _tried("cpu", checkpoint, lambda: Engine(checkpoint, CPU))
    good = [engine for engine in engines if engine is not None]
    if good:
        return good[0] if len(good) == 1 else _faster(*good)
    last = Oracle(checkpoint.config, checkpoint.arrays, checkpoint.model_id)
    if probe_sha256(last) != checkpoint.probe_sha256:
        raise CheckpointError("the entropy model does not reproduce its own test vector")
    log.warning("entropy model: falling back to the int64 oracle, seconds per window")
    return last


def _compiled(checkpoint: Checkpoint) -> Model:
    """The compiled engine.

    Raises:
        ImportError: no numba.
        RuntimeError: it does not compile, or cannot run here.
    """
    from pqmim.prior import fused, kernels  # optional, and 1 s

    for loop in vars(kernels).values():
        _mend(loop)
    if not _is_compiled(kernels.cheapest):
        log.warning(
            "compiling the entropy model's loops, once on this machine: 10 s of a fast core, a "
            "minute or more of a slow or busy one"
        )
    return fused.load(checkpoint)


def _mend(loop: Any) -> None:
    """Let a compiled loop do without its file on disk where that is damaged or cannot be written:
    Numba itself fails at every call until somebody finds and deletes it."""
    cache: Any = getattr(loop, "_cache", None)
    if not hasattr(cache, "_cache_file") or hasattr(cache, "mended"):
        return
    read, write = cache.load_overload, cache.save_overload

    def load_overload(*args: Any) -> Any:
        try:
            return read(*args)
        except DAMAGE as error:
            _say_once(f"{cache.cache_path}: damaged files of Numba's, compiled anew: {error}")
            with contextlib.suppress(OSError):
                cache.flush()
            return None

    def save_overload(*args: Any) -> None:
        try:
            write(*args)
        except OSError as error:
            _say_once(
                f"{cache.cache_path}: no place for compiled loops, so at every start: {error}"
            )

    cache.load_overload, cache.save_overload, cache.mended = load_overload, save_overload, True


@functools.cache
def _say_once(text: str) -> None:
    log.warning(text)


def _is_compiled(loop: Any) -> bool:
    """Whether machine code of an earlier process is on disk; without a place for it, never."""
    folder = Path(getattr(getattr(loop, "_cache", None), "cache_path", None) or "nowhere")
    return any(folder.glob(f"*.{loop.__name__}-*.nbi"))


def _tried(name: str, checkpoint: Checkpoint, build: Callable[[], Model]) -> Model | None:
    """An engine, if it can be built and reproduces the test vector."""
    try:
        engine = build()
        same = probe_sha256(engine) == checkpoint.probe_sha256
    except ImportError as error:
        log.info("entropy model: the slower engine, for want of numba: %s", error)
        return None
    except (RuntimeError, TypeError) as error:  # no float64 on the device, no memory
        log.warning("entropy model: cannot run on %s: %s", name, error)
        return None
    if not same:
        log.warning("entropy model: wrong test vector on %s", name)
        return None
    log.debug("entropy model %s runs on %s", checkpoint.model_id.hex()[:8], name)
    return engine


def _faster(tensors: Model, compiled: Model) -> Model:
    """The faster of two engines, by one window and the frequencies of a part of it."""
    tokens, present = (torch.from_numpy(a)[None] for a in probe(tensors.config))
    everywhere = torch.ones_like(present)

    def work(engine: Model) -> object:
        return engine.frequencies(engine.rows(tokens, everywhere, everywhere), 0)

    calls = {"tensors": lambda: work(tensors), "compiled": lambda: work(compiled)}
    name, seconds = products.fastest(calls, CPU)
    times = ", ".join(f"{each} {1e3 * least:.1f} ms" for each, least in seconds.items())
    log.info("entropy model: the %s engine (a window: %s)", name, times)
    return compiled if name == "compiled" else tensors
