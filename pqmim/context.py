"""The caller's settings of PyTorch, kept out of the codec.

What a file says must not depend on what its caller is doing.  Under ``torch.autocast`` products of
float32 become products of bfloat16 with rounded sums, and files came out that no machine could
decode; a default dtype of float64, another default device or a lower float32 precision change
codes, or fail.  Every door of the codec (:func:`plainly`) sets these aside and puts them back.

Autocast, gradients and the default device belong to a thread.  Default dtype and float32 precision
belong to the process: they are set aside while any thread is inside, so another thread of the
caller may meet the plain ones for that time.  Costs 10 microseconds a call, 1 where the caller has
changed nothing or is inside already.

A forked process has none of the threads of its parent, and PyTorch waits for them for ever: the
first door that it comes to sets it to one thread, if its parent had more, and says so.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch

from pqmim.arguments import checked

Call = TypeVar("Call", bound=Callable[..., Any])
DEVICES = ("cpu", "cuda")

log = logging.getLogger(__name__)

_here = threading.local()
_lock = threading.Lock()
_inside = 0  # threads that hold the process's settings
_outer: tuple[torch.dtype, str] = (torch.float32, "highest")  # what they are put back to
_forked = False  # since then nothing was done about it


def _after_fork() -> None:
    """In the new process: nobody else holds a lock, or is inside."""
    global _lock, _inside, _forked
    _lock, _forked = threading.Lock(), True
    if _inside and not getattr(_here, "plain", False):
        _inside = 0
        _set(*_outer)


os.register_at_fork(after_in_child=_after_fork)


def plainly(function: Call) -> Call:
    """A function that runs as in a fresh process, whatever its caller has set, and with arguments
    that :mod:`pqmim.arguments` has checked."""
    check = checked(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _forked:
            _one_thread()
        if getattr(_here, "plain", False):
            return function(*args, **kwargs)
        with _plain():
            args, kwargs = check(*args, **kwargs)
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _one_thread() -> None:
    """Make a forked process one that can compute."""
    global _forked
    _forked = False
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
        log.warning(
            "a forked process: one PyTorch thread, for the %d of its parent are not in it; "
            "processes that are spawned (multiprocessing's start method) have their own", threads
        )  # fmt: skip


@contextmanager
def _plain() -> Iterator[None]:
    """Set the caller's settings aside for the block."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_process_settings())
        _here.plain = True
        try:
            yield
        finally:
            _here.plain = False


@contextmanager
def _process_settings() -> Iterator[None]:
    """Set aside what belongs to the process, from the first thread to the last."""
    global _inside, _outer
    with _lock:
        if _inside == 0:
            _outer = torch.get_default_dtype(), torch.get_float32_matmul_precision()
            _set(torch.float32, "highest")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _set(*_outer)


def _set(dtype: torch.dtype, precision: str) -> None:
    """Change the settings that differ."""
    if torch.get_default_dtype() != dtype:
        torch.set_default_dtype(dtype)
    if torch.get_float32_matmul_precision() != precision:
        torch.set_float32_matmul_precision(precision)
