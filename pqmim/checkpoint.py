"""One safetensors file per model: tensors, configuration, fingerprint.

The file is complete by itself (no pickle, no code) and is what an archive carries as its decoder.
Layers are stored as float16 and run as float32; codebooks stay float32.  The fingerprint is the
sha256 of the configuration and of every tensor's name, dtype, shape and bytes; it is checked at
every load, so a damaged or edited file is an error and never a slightly different picture.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pqmim.autoencoder import PQVAE
from pqmim.config import AutoencoderConfig, ConfigError

FORMAT = "pqmim-1"
WEIGHTS = Path(__file__).with_name("weights")
DEFAULT = "default"  # the name of the weights that ship


class CheckpointError(ValueError):
    """A weights file that is missing, damaged or of another format."""


def fingerprint(config: AutoencoderConfig, tensors: dict[str, Tensor]) -> str:
    """sha256 hex digest of a model; the same on every platform."""
    digest = hashlib.sha256(config.to_json().encode())
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous().numpy()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"\0{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(little).tobytes())
    return digest.hexdigest()


def to_bytes(model: PQVAE) -> bytes:
    """The file of a model."""
    tensors = {
        name: tensor.detach().cpu().to(
            torch.float32 if name == "quantizer.codebook" else torch.float16
        ).contiguous()
        for name, tensor in model.state_dict().items()
    }  # fmt: skip
    metadata = {
        "format": FORMAT,
        "autoencoder": model.config.to_json(),
        "fingerprint": fingerprint(model.config, tensors),
    }
    return save(tensors, metadata)


def from_bytes(data: bytes, name: str) -> tuple[PQVAE, str]:
    """Model in evaluation mode on the CPU, and its fingerprint; ``name`` is for messages.

    Raises:
        CheckpointError: not this format, damaged, or its tensors do not fit its description.
    """
    metadata = _metadata(data, name)
    if metadata.get("format") != FORMAT:
        found = metadata.get("format")
        raise CheckpointError(f"{name}: format {found!r}, this version reads {FORMAT!r}")
    try:
        config = AutoencoderConfig.from_json(metadata["autoencoder"])
        tensors = load(data)
        model = PQVAE(config)
        model.load_state_dict({k: v.float() for k, v in tensors.items()})
    except (SafetensorError, ConfigError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{name}: damaged weights file: {error}") from error
    actual = fingerprint(config, tensors)
    if actual != metadata.get("fingerprint"):
        raise CheckpointError(
            f"{name}: the tensors hash to {actual[:16]}, the file says "
            f"{str(metadata.get('fingerprint'))[:16]}: damaged; fetch it again"
        )
    return model.eval().requires_grad_(False), actual


def read(name_or_path: str | Path) -> bytes:
    """The bytes of a weights file: a path, the name 'default', or a (shortened) fingerprint.

    Raises:
        CheckpointError: nothing of that name.
    """
    shipped = sorted(WEIGHTS.glob("*.safetensors"))
    if str(name_or_path) == DEFAULT:
        name_or_path = WEIGHTS / (WEIGHTS / "DEFAULT").read_text().strip()
    path = Path(name_or_path)
    if not path.exists():
        matches = [p for p in shipped if p.name.startswith(str(name_or_path))]
        if len(matches) != 1:
            names = ", ".join(p.stem for p in shipped)
            raise CheckpointError(f"no weights {str(name_or_path)!r}; shipped: default, {names}")
        path = matches[0]
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the weights: {error}") from error


def write(model: PQVAE, folder: Path) -> Path:
    """Write the file into ``folder`` under its fingerprint's first 16 digits."""
    data = to_bytes(model)
    path = folder / f"{_metadata(data, 'new')['fingerprint'][:16]}.safetensors"
    path.write_bytes(data)
    return path


def _metadata(data: bytes, name: str) -> dict[str, str]:
    """The ``__metadata__`` of a safetensors file: 8 bytes of length, then JSON."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        return dict(header.get("__metadata__", {}))
    except (struct.error, ValueError, AttributeError) as error:
        raise CheckpointError(f"{name}: not a safetensors file: {error}") from error
