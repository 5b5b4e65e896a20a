"""The engine that runs the entropy model the same on every machine.

Loading runs a built-in test vector on the chosen device and compares the SHA-256 of its logits; a
device that fails is replaced by the CPU, then by the int64 NumPy oracle, and the log says so.  On
a CPU with numba the compiled engine (``pqmim.prior.fused``) comes first.

Int8 kernels are used only for matrix shapes that pass a test with full-range operands in this very
process: PyTorch's are wrong (16-bit saturation) on CPUs without VNNI, for instance.

Loading a 5 M parameter model costs 0.2 s on one core.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqmim.prior import exact, oracle
from pqmim.prior import frequencies as entropy
from pqmim.prior.config import PriorConfig
from pqmim.prior.integers import Arrays, Checkpoint, CheckpointError
from pqmim.prior.schedule import WINDOW

log = logging.getLogger(__name__)


class Model(Protocol):
    """What the coder needs of an entropy model."""

    config: PriorConfig
    model_id: bytes
    device: torch.device

    def hidden(self, tokens: Tensor, present: Tensor) -> Tensor:
        """int64 [B, 16, 16, M] and bool [B, 16, 16] -> [B, 256, D]."""

    def rows(self, tokens: Tensor, present: Tensor, cells: Tensor) -> Tensor:
        """The rows of :meth:`hidden` where bool ``cells`` [B, 16, 16], [n, D] in any dtype."""

    def logits(self, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
        """[n, D] -> integers in [n, sub-codes of the part, K].

        Args:
            rows: of :meth:`hidden`.
            part: which head (``PriorConfig.parts``).
            before: int64 [n, j], codes at the same positions of the j sub-codes of the group that
                come before the part; None: there are none.  Models without a chain ignore it.
        """

    def frequencies(self, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
        """:func:`pqmim.prior.frequencies.weights` of :meth:`logits`, in float32 or float64."""

    def intervals(self, weights: Tensor, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """:func:`pqmim.prior.frequencies.intervals`."""

    def cheapest(self, error: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
        """:func:`pqmim.prior.frequencies.cheapest`."""


class Tensors:
    """What a model needs besides ``hidden`` and ``logits``, by tensor operations."""

    def rows(self: Model, tokens: Tensor, present: Tensor, cells: Tensor) -> Tensor:
        """See :class:`Model`."""
        return self.hidden(tokens, present).flatten(0, 1)[cells.reshape(-1)]

    def frequencies(self: Model, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
        """See :class:`Model`."""
        return entropy.weights(self.logits(rows, part, before))

    def intervals(self, weights: Tensor, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Model`."""
        return entropy.intervals(weights, symbols)

    def cheapest(self, error: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
        """See :class:`Model`."""
        return entropy.cheapest(error, scale, weights)


def probe(config: PriorConfig) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The test vector: one window [16, 16, M], 9 x 7 positions of it present, half masked."""
    state, tokens = 1, np.full((WINDOW, WINDOW, config.subcodes), config.mask, dtype=np.int64)
    for index in np.ndindex(9, 7, config.subcodes):
        state = (state * 1664525 + 1013904223) % 2**32  # Numerical Recipes
        if state >> 31:
            tokens[index] = (state >> 16) % config.codewords
    present = np.zeros((WINDOW, WINDOW), dtype=np.bool_)
    present[:9, :7] = True
    return tokens, present


def probe_sha256(model: Model) -> str:
    """SHA-256 of the test vector's logits, as little-endian int32."""
    tokens, present = probe(model.config)
    hidden = model.hidden(
        torch.from_numpy(tokens)[None].to(model.device),
        torch.from_numpy(present)[None].to(model.device),
    )
    rows = hidden[0, torch.from_numpy(present.reshape(-1)).to(model.device)]
    digest, config = hashlib.sha256(), model.config
    for part in range(config.subcodes // config.together):
        values = model.logits(rows, part, probe_before(config, part, rows)).to(torch.int32)
        digest.update(np.ascontiguousarray(values.cpu().numpy(), dtype="<i4").tobytes())
    return digest.hexdigest()


def probe_before(config: PriorConfig, part: int, rows: Tensor) -> Tensor:
    """The test vector's codes of the sub-codes before a part, int64 [n, j]."""
    known = torch.arange(part * config.together % config.group, device=rows.device)
    row = torch.arange(len(rows), device=rows.device)[:, None]
    return (7 * row + 13 * known + part) % config.codewords


class Oracle(Tensors):
    """The int64 NumPy specification behind the engine's interface, seconds per window."""

    device = torch.device("cpu")

    def __init__(self, config: PriorConfig, arrays: Arrays, model_id: bytes = b"") -> None:
        self.config, self.arrays, self.model_id = config, arrays, model_id

    def hidden(self, tokens: Tensor, present: Tensor) -> Tensor:
        """See :class:`Model`."""
        result = np.zeros((len(tokens), exact.POSITIONS, self.config.dims), dtype=np.float32)
        for out, t, p in zip(result, tokens.numpy(), present.numpy(), strict=True):
            out[p.reshape(-1)] = oracle.hidden(self.config, self.arrays, t, p)
        return torch.from_numpy(result)

    def logits(self, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
        """See :class:`Model`."""
        known = np.zeros((len(rows), 0), np.int64) if before is None else before.numpy()
        integers = rows.numpy().astype(np.int64)
        values = oracle.logits(self.config, self.arrays, integers, part, known)
        return torch.from_numpy(values.astype(np.float32))


class Engine(Tensors):
    """Integers carried in float32 on one device; same results on all of them."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, *, int8: bool) -> None:
        self.config, self.model_id = checkpoint.config, checkpoint.model_id
        self.device = device
        self.net = to_network(checkpoint.config, checkpoint.arrays, device)
        if int8:
            use_int8_kernels(self.net)

    @torch.no_grad()
    def hidden(self, tokens: Tensor, present: Tensor) -> Tensor:
        """See :class:`Model`."""
        return exact.hidden(self.net, tokens, None if bool(present.all()) else present)

    @torch.no_grad()
    def logits(self, rows: Tensor, part: int, before: Tensor | None = None) -> Tensor:
        """See :class:`Model`."""
        return exact.logits(self.net, rows, part, before)


def to_network(config: PriorConfig, arrays: Arrays, device: torch.device) -> exact.Network:
    """The engine's form of proven integers."""

    def carrier(name: str) -> Tensor:
        return torch.from_numpy(arrays[name].astype(np.float32)).to(device)

    def scale(name: str) -> Tensor:
        values = [math.ldexp(1.0, -int(s)) for s in arrays[name]]
        return torch.tensor(values, dtype=torch.float32, device=device)

    def layer(name: str, limit: int, rows: slice = slice(None)) -> exact.Linear:
        weight, bias, by = (
            carrier(f"{name}.weight"),
            carrier(f"{name}.bias"),
            scale(f"{name}.shift"),
        )
        return exact.Linear((weight * by[:, None])[rows], (bias * by)[rows], by[rows], limit)

    blocks = []
    for b, local in enumerate(config.local):
        name = f"blocks.{b}"
        score, value, act = (int(v) for v in arrays[f"{name}.exponents"])
        position = carrier(f"{name}.position").flatten(1) * math.ldexp(1.0, -score)
        blocks.append(
            exact.Block(
                local=layer(f"{name}.local", 2**17) if local else None,
                query_key_value=layer(f"{name}.query_key_value", exact.ACTIVATION),
                bias=position[:, exact.relative_index(device)],
                score_scale=math.ldexp(1.0, -score),
                value_scale=math.ldexp(1.0, value),
                out=layer(f"{name}.out", 2**17),
                up=layer(f"{name}.up", exact.HIDDEN),
                act_scale=math.ldexp(1.0, -act),
                down=layer(f"{name}.down", 2**17),
            )
        )
    span, rows = config.together * config.codewords, config.subcodes * config.codewords
    heads = [
        layer("head", exact.LOGIT, slice(first, first + span)) for first in range(0, rows, span)
    ]
    place = (carrier("row")[:, None] + carrier("column")[None]).flatten(0, 1)
    chain = carrier("chain").flatten(0, 1) if config.chain else None
    return exact.Network(config, carrier("codes").flatten(0, 1), place, blocks, heads, chain)


def int8_is_exact(inputs: int, outputs: int, device: torch.device) -> bool:
    """Whether this process's int8 kernel is right for full-range operands of this shape."""
    if inputs % 8 or outputs % 8:
        return False
    generator = torch.Generator().manual_seed(0)
    for rows in (exact.INT8_ROWS, exact.POSITIONS):
        a = torch.randint(-127, 128, (rows, inputs), generator=generator).to(torch.int8)
        b = torch.randint(-127, 128, (inputs, outputs), generator=generator).to(torch.int8)
        a[0], b[:, 0], a[1], b[:, 1] = 127, 127, 127, -127
        try:
            got = torch._int_mm(a.to(device), b.to(device)).cpu()
        except RuntimeError as error:
            log.info("no int8 kernel for %d x %d on %s: %s", inputs, outputs, device, error)
            return False
        if not torch.equal(got.double(), a.double() @ b.double()):
            return False
    return True


def use_int8_kernels(net: exact.Network) -> None:
    """Switch every linear layer whose shape passes the test to the int8 kernel."""
    layers = list(net.heads)
    for block in net.blocks:
        layers += [block.query_key_value, block.out, block.up, block.down]
        layers += [block.local] if block.local is not None else []
    good: dict[torch.Size, bool] = {}
    for layer in layers:
        shape, device = layer.weight.shape, layer.weight.device
        if shape not in good:
            good[shape] = int8_is_exact(shape[1], shape[0], device)
        if good[shape]:
            integers = layer.weight / layer.scale[:, None]
            layer.bytes_in_out = integers.to(torch.int8).T.contiguous()
    if not all(good.values()):
        log.info("int8 kernels are not exact in this process; float32 carries the integers")


def fused_engine(checkpoint: Checkpoint) -> Model:
    """The compiled engine.

    Raises:
        ImportError: no numba.
        RuntimeError: it does not compile, or cannot run here.
    """
    from pqmim.prior import fused  # optional, and 0.3 s

    return fused.load(checkpoint)


def load(checkpoint: Checkpoint, device: torch.device) -> Model:
    """The fastest engine that reproduces the model's test vector.

    Raises:
        CheckpointError: not even the oracle does; the test vector itself is wrong.
    """
    cpu = torch.device("cpu")
    trials: list[tuple[str, Callable[[], Model]]] = [
        (f"{where} (int8 {int8})", partial(Engine, checkpoint, where, int8=int8))
        for where, int8 in ((device, True), (device, False), (cpu, False))
    ]
    if device.type == "cpu":
        trials = [("cpu (compiled)", partial(fused_engine, checkpoint)), *trials[:2]]
    for name, build in trials:
        try:
            engine = build()
            same = probe_sha256(engine) == checkpoint.probe_sha256
        except ImportError as error:
            log.info("entropy model: the slower engine, for want of numba: %s", error)
            continue
        except (RuntimeError, TypeError) as error:  # no float64 on the device, no memory
            log.warning("entropy model: cannot run on %s: %s", name, error)
            continue
        if same:
            log.info("entropy model %s on %s", checkpoint.model_id.hex()[:8], name)
            return engine
        log.warning("entropy model: wrong test vector on %s", name)
    last = Oracle(checkpoint.config, checkpoint.arrays, checkpoint.model_id)
    if probe_sha256(last) != checkpoint.probe_sha256:
        raise CheckpointError("the entropy model does not reproduce its own test vector")
    log.warning("entropy model: falling back to the int64 oracle, seconds per window")
    return last
