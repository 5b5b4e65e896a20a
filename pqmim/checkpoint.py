"""One safetensors file per model: tensors, configuration, fingerprint.

The file is complete by itself (no pickle, no code) and is what an archive carries as its decoder.
Layers are stored as float16 and run as float32; codebooks stay float32, integers integers.  The
entropy model, if there is one, is in the same file: integers under ``prior.*``, its description
under ``prior`` in the metadata.  The fingerprint is the sha256 of the descriptions and of every
tensor's name, dtype, shape and bytes; it is checked at every load, so a damaged or edited file is
an error and never a slightly different picture.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pqmim.autoencoder.config import AutoencoderConfig, ConfigError
from pqmim.autoencoder.network import PQVAE
from pqmim.prior import integers as prior_checkpoint
from pqmim.prior.integers import CheckpointError

FORMAT = "pqmim-1"
WEIGHTS = Path(__file__).with_name("weights")
DEFAULT = "default"  # the name of the weights that ship
OWN = "PQMIM_WEIGHTS"  # in the environment: the folder of weights that do not ship
MAX_HEADER = 1 << 24  # bytes of a header that are read in search of a fingerprint
PRIOR = "prior."  # prefix of the entropy model's tensors


@dataclass(frozen=True)
class Weights:
    """What one file holds."""

    model: PQVAE  # in evaluation mode, on the CPU
    prior: prior_checkpoint.Checkpoint | None
    fingerprint: str


def fingerprint(
    config: AutoencoderConfig, tensors: dict[str, Tensor], prior: str | None = None
) -> str:
    """sha256 hex digest of a model, and of its entropy model's description; same everywhere."""
    digest = hashlib.sha256(config.to_json().encode())
    if prior is not None:
        digest.update(f"\0prior\0{prior}".encode())
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous().numpy()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"\0{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(little).tobytes())
    return digest.hexdigest()


def to_bytes(model: PQVAE, prior: prior_checkpoint.Checkpoint | None = None) -> bytes:
    """The file of a model, with its entropy model if there is one.

    Raises:
        CheckpointError: the entropy model is for other codes.
    """
    tensors = {
        name: tensor.detach().cpu().to(_stored(name, tensor)).contiguous()
        for name, tensor in model.state_dict().items()
    }
    metadata = {"format": FORMAT, "autoencoder": model.config.to_json()}
    if prior is not None:
        check_pair(model.config, prior)
        integers, metadata["prior"] = prior.to_tensors()
        tensors.update({PRIOR + name: tensor for name, tensor in integers.items()})
    metadata["fingerprint"] = fingerprint(model.config, tensors, metadata.get("prior"))
    return save(tensors, metadata)


def parse(data: bytes, name: str) -> Weights:
    """Read :func:`to_bytes` output; ``name`` is for messages.

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
        model.load_state_dict(
            {
                k: v.float() if v.is_floating_point() else v
                for k, v in tensors.items()
                if _is_layer(k)
            }
        )
        model.quantizer.check()
        actual = fingerprint(config, tensors, metadata.get("prior"))
    except (SafetensorError, ConfigError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{name}: damaged weights file: {error}") from error
    if actual != metadata.get("fingerprint"):
        raise CheckpointError(
            f"{name}: the tensors hash to {actual[:16]}, the file says "
            f"{str(metadata.get('fingerprint'))[:16]}: damaged; fetch it again"
        )
    try:
        prior = _parse_prior(config, tensors, metadata.get("prior"))
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    return Weights(model.eval().requires_grad_(False), prior, actual)


def from_bytes(data: bytes, name: str) -> tuple[PQVAE, str]:
    """The autoencoder of a file and the file's fingerprint; see :func:`parse`."""
    weights = parse(data, name)
    return weights.model, weights.fingerprint


def _stored(name: str, tensor: Tensor) -> torch.dtype:
    """What a tensor of the autoencoder is in a file."""
    if not tensor.is_floating_point():
        return tensor.dtype
    return torch.float32 if name == "quantizer.codebook" else torch.float16


def _is_layer(name: str) -> bool:
    return not name.startswith(PRIOR)


def _parse_prior(
    config: AutoencoderConfig, tensors: dict[str, Tensor], description: str | None
) -> prior_checkpoint.Checkpoint | None:
    """The entropy model, proven exact."""
    integers = {k.removeprefix(PRIOR): v for k, v in tensors.items() if not _is_layer(k)}
    if description is None:
        if integers:
            raise CheckpointError("an entropy model without its description")
        return None
    prior = prior_checkpoint.Checkpoint.from_tensors(integers, description)
    check_pair(config, prior)
    return prior


def check_pair(config: AutoencoderConfig, prior: prior_checkpoint.Checkpoint) -> None:
    """Both halves must speak of the same codes.

    Raises:
        CheckpointError: they do not.
    """
    mine = (config.subcodes, config.codewords)
    its = (prior.config.subcodes, prior.config.codewords)
    if mine != its:
        raise CheckpointError(
            f"the autoencoder has {mine[0]} sub-codes of {mine[1]} codewords, the entropy model "
            f"is for {its[0]} of {its[1]}"
        )
    group = prior.config.group
    if any(span.start % group for span in config.spans):
        raise CheckpointError(
            f"the layers {config.layers} of the autoencoder begin within groups of {group} "
            "sub-codes of the entropy model"
        )


def own_folder() -> Path:
    """Where a person puts weights that do not ship: $PQMIM_WEIGHTS, or a folder of the user's."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(os.environ.get(OWN) or f"{data}/pqmim/weights")


def find(fingerprint: str) -> Path | None:
    """The file of the weights whose fingerprint begins so, shipped or in :func:`own_folder`.

    Raises:
        CheckpointError: several fingerprints begin so.
    """
    found: dict[str, Path] = {}
    for folder in (WEIGHTS, own_folder()):
        for path in sorted(folder.glob("*.safetensors")):
            full = _fingerprint_of(path)
            if fingerprint and full.startswith(fingerprint.lower()):
                found.setdefault(full, path)
    if len(found) > 1:
        names = " and ".join(str(path) for path in found.values())
        raise CheckpointError(f"weights {fingerprint!r} may be {names}: name one")
    return next(iter(found.values()), None)


def missing(fingerprint: str) -> str:
    """What to do about weights that :func:`find` does not find."""
    return (
        f"the weights {fingerprint} are not here: put their file, which an archive has in model/, "
        f"into {own_folder()}, or name it with --weights"
    )


def _fingerprint_of(path: Path) -> str:
    """What a weights file says of itself; nothing if it is none.  Reads its header alone."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            head += file.read(min(struct.unpack("<Q", head)[0], MAX_HEADER))
        return _metadata(head, str(path)).get("fingerprint", "")
    except (OSError, struct.error, CheckpointError):
        return ""


def read(name_or_path: str | Path) -> bytes:
    """The bytes of a weights file: a path, the name 'default', or a (shortened) fingerprint.

    A path may be that of a folder with one weights file, or of an archive.

    Raises:
        CheckpointError: nothing of that name, or a folder of none or several.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise CheckpointError(f"weights {name_or_path!r}: a path or a name is meant")
    if str(name_or_path) == DEFAULT:
        name_or_path = WEIGHTS / (WEIGHTS / "DEFAULT").read_text().strip()
    path = Path(name_or_path)
    if not path.exists():
        found = find(str(name_or_path).removesuffix(".safetensors"))
        if found is None:
            names = ", ".join(p.stem for p in sorted(WEIGHTS.glob("*.safetensors")))
            raise CheckpointError(
                f"no weights {str(name_or_path)!r}; shipped: default, {names}; others are a path, "
                f"or in {own_folder()}"
            )
        path = found
    if path.is_dir():
        inside = sorted({*path.glob("*.safetensors"), *path.glob("model/*.safetensors")})
        if len(inside) != 1:
            names = ", ".join(p.name for p in inside) or "none"
            raise CheckpointError(f"{path}: a folder of one weights file is meant; it has {names}")
        path = inside[0]
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the weights: {error}") from error


def write(model: PQVAE, folder: Path, prior: prior_checkpoint.Checkpoint | None = None) -> Path:
    """Write the file into ``folder`` under its fingerprint's first 16 digits."""
    data = to_bytes(model, prior)
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
        begins = f"it begins with {data[:16]!r}" if data else "it is empty"
        raise CheckpointError(f"{name}: not a safetensors file: {begins}") from error
