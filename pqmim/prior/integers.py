"""The entropy model's checkpoint: integer tensors, a small JSON, and the proof that they are exact.

Integers are made once, at export; a loader never derives them from floats.  Reading checks names,
types and shapes, proves from the weights that no sum can leave the exact range of float32 for any
input, and compares the SHA-256 of the integers, which is the model's id in every stream.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqmim.autoencoder.config import ConfigError
from pqmim.prior import exact
from pqmim.prior.config import WINDOW, PriorConfig

SPEC = "exact-mim-1"
MAX_SHIFT = 20
SUM_LIMIT = 2**23  # one bit to spare below the 2**24 of float32
POSITION_LIMIT = 2**22
SPAN = 2 * WINDOW - 1  # relative positions along one axis
LAYERS = ("query_key_value", "out", "up", "down")

Arrays = dict[str, NDArray[np.integer]]


class CheckpointError(ValueError):
    """A weights file that is missing, damaged, of another format, or not provably exact."""


class RangeError(CheckpointError):
    """A tensor's values could overflow the exact range for some input."""


@dataclass(frozen=True)
class Checkpoint:
    """A proven model: integers, its id, and the hash of its test vector."""

    config: PriorConfig
    arrays: Arrays
    probe_sha256: str

    @property
    def model_id(self) -> bytes:
        """SHA-256 over the description and every integer; streams carry its first bytes."""
        digest = hashlib.sha256(f"{SPEC}\n{self.config.to_json()}\n".encode())
        for name in sorted(self.arrays):
            a = self.arrays[name]
            digest.update(f"{name} {a.dtype.name} {a.shape}\n".encode())
            digest.update(np.ascontiguousarray(a, dtype=a.dtype.newbyteorder("<")).tobytes())
        return digest.digest()

    def to_tensors(self) -> tuple[dict[str, Tensor], str]:
        """The tensors and their JSON, for a safetensors file."""
        meta = {
            "spec": SPEC,
            "config": self.config.to_json(),
            "model_id": self.model_id.hex(),
            "probe_sha256": self.probe_sha256,
        }
        tensors = {name: torch.from_numpy(a.copy()) for name, a in self.arrays.items()}
        return tensors, json.dumps(meta, sort_keys=True)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: str) -> Checkpoint:
        """Read :meth:`to_tensors` output and prove it exact.

        Raises:
            CheckpointError: another format, incomplete, or the integers do not match their id.
            RangeError: the weights are not provably exact.
        """
        try:
            meta = json.loads(metadata)
            spec, wanted, probe = meta["spec"], meta["model_id"], meta["probe_sha256"]
            config = PriorConfig.from_json(meta["config"])
        except (json.JSONDecodeError, KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"not the metadata of an entropy model: {error!r}") from error
        if spec != SPEC:
            raise CheckpointError(f"entropy model of spec {spec!r}; this version reads {SPEC!r}")
        checkpoint = cls(config, {k: v.cpu().numpy() for k, v in tensors.items()}, probe)
        prove(config, checkpoint.arrays)
        if checkpoint.model_id.hex() != wanted:
            raise CheckpointError(
                f"the integers have id {checkpoint.model_id.hex()[:8]}, but the file says "
                f"{wanted[:8]}: the weights are damaged"
            )
        return checkpoint


def layer_shapes(config: PriorConfig) -> dict[str, tuple[int, int]]:
    """Name -> (outputs, inputs) of every linear layer."""
    d, f = config.dims, config.hidden
    shapes = {}
    for b, local in enumerate(config.local):
        if local:
            shapes[f"blocks.{b}.local"] = (d, len(exact.NEIGHBOURS) * d)
        for name, shape in zip(LAYERS, ((3 * d, d), (d, d), (f, d), (d, f)), strict=True):
            shapes[f"blocks.{b}.{name}"] = shape
    shapes["head"] = (config.subcodes * config.codewords, d)
    return shapes


def tensor_types(config: PriorConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype) of every tensor of a checkpoint."""
    types: dict[str, tuple[tuple[int, ...], str]] = {
        "codes": ((config.subcodes, config.codewords + 1, config.dims), "int16"),
        "row": ((WINDOW, config.dims), "int16"),
        "column": ((WINDOW, config.dims), "int16"),
    }
    if config.chain:
        types["chain"] = ((config.subcodes, config.codewords, config.dims), "int16")
    for b in range(len(config.local)):
        types[f"blocks.{b}.position"] = ((config.heads, SPAN, SPAN), "int32")
        types[f"blocks.{b}.exponents"] = ((3,), "uint8")
    for name, (outputs, inputs) in layer_shapes(config).items():
        types[f"{name}.weight"] = ((outputs, inputs), "int8")
        types[f"{name}.bias"] = ((outputs,), "int32")
        types[f"{name}.shift"] = ((outputs,), "uint8")
    return types


def prove(config: PriorConfig, arrays: Arrays) -> None:
    """Check that every sum stays exact for every input.

    Products of attention need no check: 64 * 127**2 + 2**22 and 256 * 128 * 127 are below 2**24,
    and so is the sum of at most 256 embeddings of 16 bits, or of a residual and a chain of them.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of the wrong type or shape.
        RangeError: a value out of range; the message names the tensor and the row.
    """
    types = tensor_types(config)
    if set(types) != set(arrays):
        raise CheckpointError(f"missing or unknown tensors: {sorted(set(types) ^ set(arrays))[:5]}")
    for name, (shape, dtype) in types.items():
        a = arrays[name]
        if a.shape != shape or a.dtype.name != dtype:
            raise CheckpointError(
                f"{name} must be {dtype} {list(shape)}, not {a.dtype.name} {list(a.shape)}"
            )
    if config.subcodes > 256:
        raise RangeError(f"{config.subcodes} sub-codes: the sum of their embeddings is not exact")
    for name in layer_shapes(config):
        prove_layer(name, *(arrays[f"{name}.{part}"] for part in ("weight", "bias", "shift")))
    for b in range(len(config.local)):
        if np.abs(arrays[f"blocks.{b}.position"].astype(np.int64)).max() >= POSITION_LIMIT:
            raise RangeError(f"blocks.{b}.position reaches {POSITION_LIMIT}")
        score, value, act = (int(v) for v in arrays[f"blocks.{b}.exponents"])
        if score > MAX_SHIFT or value > 8 or not 1 <= act <= MAX_SHIFT:
            raise RangeError(f"blocks.{b}.exponents {score}, {value}, {act} are out of range")


def prove_layer(name: str, weight: np.ndarray, bias: np.ndarray, shift: np.ndarray) -> None:
    """Check one linear layer.

    Raises:
        RangeError: with the first row that breaks the bound.
    """
    if weight.min() < -exact.ACTIVATION:
        raise RangeError(f"{name}.weight holds -128; weights are -127..127")
    if shift.max() > MAX_SHIFT:
        raise RangeError(f"{name}.shift is {shift.max()}, above {MAX_SHIFT}")
    bound = worst_sums(weight, bias)
    if bound.max() >= SUM_LIMIT:
        row = int(bound.argmax())
        raise RangeError(
            f"{name} row {row}: sums may reach {bound[row]}, the exact range ends at {SUM_LIMIT}"
        )


def worst_sums(weight: np.ndarray, bias: np.ndarray) -> NDArray[np.int64]:
    """Per row, the largest magnitude that any partial sum can reach for any input."""
    total = np.abs(weight.astype(np.int64)).sum(1)
    return exact.ACTIVATION * total + np.abs(bias.astype(np.int64))
