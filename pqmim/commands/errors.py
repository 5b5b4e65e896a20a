"""What a person is told of an error: one line, and what to do about it."""

from __future__ import annotations

import torch
from PIL import Image


def device_of(name: str) -> str:
    """A device that there is: ``auto`` is a GPU if PyTorch sees one.

    Raises:
        ValueError: there is none of that name, and why.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if gpus else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number or "0").isdigit():
        raise ValueError(f"--device {name}: it is cpu, cuda, cuda:N or auto")
    if kind == "cuda" and int(number or 0) >= gpus:
        built = f"PyTorch {torch.__version__} sees {gpus} GPUs on this machine"
        raise ValueError(f"--device {name}: {built}; --device cpu, or auto")
    return name


def sentence(error: Exception) -> str | None:
    """An error that a person can act on in one line; None of any other, which is ours."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return f"out of memory: {text[:200]}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | OSError | Image.DecompressionBombError):
        return text
    return None
