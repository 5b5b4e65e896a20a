"""Exact integer products: which forms are right on this machine, and which one is fast.

The same product of int8 operands can be carried by float32, which is exact as long as every sum
stays below 2**24 (proved for every model, see ``pqmim.prior.integers``), or run in PyTorch's int8
kernel.  Neither is the better one everywhere.  Without VNNI the int8 kernel wraps 16-bit sums on
some CPUs, and on others takes 15 to 32 times as long as float32 (AMD EPYC 7003, 256 x 128 x 384,
one thread: 9.1 ms against 0.29); with VNNI it is 2 to 4 times faster.  So every process asks, for
every shape: a measurement of some milliseconds, then a test with full-range operands.  Nothing is
kept on disk, where it would be wrong on the next machine.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MARGIN = 1.15  # by so much another form must be faster than the first one
REPEATS = 5
HOPELESS = 3.0  # times as long as the first form: measured no further
INT8_ROWS = 17  # what the int8 kernel of CUDA needs
FORMS = {"float32": torch.float32, "int8": torch.int8}  # and the carrier of its weights

Shape = tuple[int, int, int]  # rows, inputs, outputs


def float32(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """int8 [n, I] times integers in float32 [I, O] -> int32 [n, O]."""
    total = x.to(torch.float32) @ weight
    return total.to(torch.int32) if out is None else out.copy_(total)


def int8(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """int8 [n, I] times int8 [I, O] -> int32 [n, O]."""
    return torch._int_mm(x, weight) if out is None else torch._int_mm(x, weight, out=out)


def product(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """int8 [n, I] times integers [I, O], whose carrier says by which form, -> int32 [n, O]."""
    return (int8 if weight.dtype == torch.int8 else float32)(x, weight, out)


def fastest(
    calls: Mapping[str, Callable[[], object]], device: torch.device
) -> tuple[str, dict[str, float]]:
    """The name of the fastest call, and the least seconds of each.

    The first one is taken unless another is faster by MARGIN.  One that takes HOPELESS times as
    long as the first is called once more at most.
    """
    seconds = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        _timed(call, device)  # what only the first call does
    first = next(iter(calls))
    for _ in range(REPEATS):
        for name, call in calls.items():
            if seconds[name] == float("inf") or seconds[name] < HOPELESS * seconds[first]:
                seconds[name] = min(seconds[name], _timed(call, device))
    best = min(calls, key=lambda name: seconds[name])
    return (best if seconds[best] * MARGIN < seconds[first] else first), seconds


def _timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, to the end of what it gave the device to do."""
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def choose(shapes: Mapping[str, Shape], device: torch.device) -> dict[str, str]:
    """The form of each product, by name: float32, or int8 where that is faster, and exact."""
    chosen, known = {}, dict[Shape, tuple[str, str]]()
    for name, shape in shapes.items():
        if shape not in known:
            known[shape] = _choose(shape, device)
        chosen[name] = known[shape][0]
    for shape, (form, why) in known.items():
        log.debug("%s on %s: %s (%s)", "x".join(map(str, shape)), device, form, why)
    forms = Counter(form for form, _ in known.values())
    words = ", ".join(f"{form} for {count} shapes" for form, count in forms.items())
    slowest = max(known, key=lambda shape: shape[1] * shape[2])
    log.info("integer products on %s: %s (%s: %s)", device, words,
             "x".join(map(str, slowest)), known[slowest][1])  # fmt: skip
    return chosen


def _choose(shape: Shape, device: torch.device) -> tuple[str, str]:
    """The form of one shape, and why."""
    rows, inputs, outputs = shape
    x = torch.ones(rows, inputs, dtype=torch.int8, device=device)
    w = {name: torch.ones(inputs, outputs, dtype=d, device=device) for name, d in FORMS.items()}
    try:
        int8(x, w["int8"])
    except RuntimeError as error:
        return "float32", f"no int8 kernel: {str(error).splitlines()[0]}"
    form, seconds = fastest(
        {"float32": lambda: float32(x, w["float32"]), "int8": lambda: int8(x, w["int8"])}, device
    )
    why = f"float32 {1e3 * seconds['float32']:.2f} ms, int8 {1e3 * seconds['int8']:.2f}"
    if form == "int8" and not is_exact(inputs, outputs, device):
        return "float32", f"{why} but wrong"
    return form, why


def is_exact(inputs: int, outputs: int, device: torch.device) -> bool:
    """Whether this process's int8 kernel is right for full-range operands of this shape."""
    if inputs % 8 or outputs % 8:
        return False
    generator = torch.Generator().manual_seed(0)
    for rows in (INT8_ROWS, 256):
        a = torch.randint(-127, 128, (rows, inputs), generator=generator).to(torch.int8)
        b = torch.randint(-127, 128, (inputs, outputs), generator=generator).to(torch.int8)
        a[0], b[:, 0], a[1], b[:, 1] = 127, 127, 127, -127
        try:
            got = int8(a.to(device), b.to(device)).cpu()
        except RuntimeError:
            return False
        if not torch.equal(got.double(), a.double() @ b.double()):
            return False
    return True
