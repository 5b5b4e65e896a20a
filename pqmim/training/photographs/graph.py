"""Steps that a GPU repeats without being told each kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger(__name__)
WARM_UP = 3


class Replayed:
    """A function of tensors of one shape, recorded as a CUDA graph at its first calls.

    A graph runs some thousand small kernels without Python between them; on the CPU, and where a
    GPU cannot record the function (said in the log), it is called as it is.  The function may
    change tensors in place; what it returns is overwritten by the next call.
    """

    def __init__(self, function: Callable[..., Tensor], *, record: bool = True) -> None:
        self.function, self.record, self.calls = function, record, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.output: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's value."""
        if not self.record or inputs[0].device.type != "cuda":
            return self.function(*inputs)
        if self.graph is None:
            return self._begin(inputs)
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        assert self.output is not None
        return self.output

    def _begin(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """A call on a stream of its own, as recording wants it; after some of them, record."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            value = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.calls += 1
        if self.calls >= WARM_UP:
            self._capture(inputs)
        return value

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.output = self.function(*self.inputs)
        except (RuntimeError, torch.AcceleratorError) as error:
            self.record = False
            log.warning("not recorded as a CUDA graph, so slower: %s", error)
            return
        self.graph = graph
