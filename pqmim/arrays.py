"""What callers give the codec, made what it works on: each kind checked, refusals name the kind.

    PIL.Image                    upright, in sRGB, over white, as its file is read
    numpy  uint8 [H,W,3]         one image; [B,H,W,3] a batch
    torch  uint8 [3,H,W]         one image; [B,3,H,W] a batch
    list of those                a batch, or images of several sizes where a method takes them

The layouts are those of each library, and never guessed from the numbers: a tensor [H,W,3] is
refused.  Values are 0..255: floats are refused, for nobody knows whether they end at 1 or 255.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pqmim.pictures.read import opened

Picture = Tensor | NDArray[np.uint8] | Image.Image
Pictures = Tensor | NDArray[np.uint8] | Sequence[Picture]
TENSOR, ARRAY = "tensor", "numpy array"
LAYOUTS = {(TENSOR, 3): "[3,H,W]", (TENSOR, 4): "[B,3,H,W]",
           (ARRAY, 3): "[H,W,3]", (ARRAY, 4): "[B,H,W,3]"}  # fmt: skip


def one(picture: Picture) -> Tensor:
    """One image -> uint8 [3,H,W].

    Raises:
        ValueError: of another kind, type, layout or number; or empty.
    """
    if isinstance(picture, Image.Image):
        return opened(picture).tensor()
    if isinstance(picture, list | tuple) or getattr(picture, "ndim", 3) == 4:
        raise ValueError(f"{_name(picture)}: a batch, where one image is meant; the methods named "
                         "..._batch take those, and [0] is its first image")  # fmt: skip
    return _checked(picture, 3)


def batch(pictures: Pictures) -> Tensor:
    """Images of one size -> uint8 [B,3,H,W].

    Raises:
        ValueError: of another kind, type or layout; of several sizes; or none.
    """
    if isinstance(pictures, Image.Image) or getattr(pictures, "ndim", 4) == 3:
        raise ValueError(f"{_name(pictures)}: one image, where a batch is meant: [image]")
    if not isinstance(pictures, list | tuple):
        return _checked(pictures, 4)
    images = [one(picture) for picture in pictures]
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) != 1:
        raise ValueError(f"a batch of {len(images)} images of the sizes {sizes}: it has one size")
    return torch.stack(images)


def by_size(pictures: Pictures) -> list[tuple[list[int], Tensor]]:
    """Images of any sizes -> batches of one size each, with the places of their images."""
    if not isinstance(pictures, list | tuple):
        whole = batch(pictures)
        return [(list(range(len(whole))), whole)]
    images = [one(picture) for picture in pictures]
    places: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        places.setdefault(tuple(image.shape), []).append(i)
    return [(at, torch.stack([images[i] for i in at])) for at in places.values()]


def codes(values: Tensor | NDArray[Any]) -> Tensor:
    """Codes of any integer type, a tensor or a numpy array -> a tensor, uint8 if all are below 256.

    Raises:
        ValueError: of another kind, or no integers.
    """
    tensor = _tensor(values, "codes")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"codes must be integers, not {_name(values)}")
    if tensor.dtype != torch.uint8 and tensor.numel():
        wide = tensor.to(torch.int64)  # uint16 has no minimum
        if 0 <= int(wide.min()) <= int(wide.max()) < 256:
            return wide.to(torch.uint8)
    return tensor


def mask(values: Tensor | NDArray[np.bool_]) -> Tensor:
    """Which codes are known, a tensor or a numpy array of bool -> a tensor.

    Raises:
        ValueError: of another kind or type.
    """
    tensor = _tensor(values, "a mask")
    if tensor.dtype != torch.bool:
        raise ValueError(f"a mask must be bool, not {_name(values)}")
    return tensor


def whole(name: str, value: Any) -> int:
    """A whole number of any type: of Python, numpy, or a tensor of one.

    Raises:
        ValueError: it is none; names the argument.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None


def _checked(values: Any, dims: int) -> Tensor:
    """Pixels uint8 of so many dimensions, colours first."""
    kind = TENSOR if isinstance(values, Tensor) else ARRAY
    wanted = f"uint8 {LAYOUTS[kind, dims]}"
    tensor = _tensor(values, "pixels")
    axis = -3 if kind == TENSOR else -1
    if tensor.dtype != torch.uint8:
        hint = "; of 0..1: (x * 255).round(), then uint8" * tensor.is_floating_point()
        raise ValueError(f"pixels must be {wanted}, not {_name(values)}{hint}")
    if tensor.ndim != dims or tensor.shape[axis] != 3:
        other = tensor.ndim == dims and tensor.shape[-1 if axis == -3 else -3] == 3
        turn = "permute" if kind == TENSOR else "transpose"
        order = {(-3, 3): "2, 0, 1", (-3, 4): "0, 3, 1, 2",
                 (-1, 3): "1, 2, 0", (-1, 4): "0, 2, 3, 1"}[axis, dims]  # fmt: skip
        hint = f"; .{turn}({order}) makes it so" * other
        raise ValueError(f"pixels must be {wanted}, not {_name(values)}{hint}")
    if min(tensor.shape) < 1:
        raise ValueError(f"an empty batch or image: {_name(values)}")
    return tensor if kind == TENSOR else tensor.movedim(-1, -3).contiguous()


def _tensor(values: Any, what: str) -> Tensor:
    """The same as a tensor, without a copy where that may be."""
    if isinstance(values, Tensor):
        if values.layout != torch.strided or values.is_meta:
            kind = "without values (meta)" if values.is_meta else "sparse: .to_dense()"
            raise ValueError(f"{what} must be plain numbers, not {_name(values)} {kind}")
        return values
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{what} must be a tensor or a numpy array, not {_name(values)}")
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{what}: {_name(values)} with a mask: .filled(VALUE) says what it hides")
    try:
        plain = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
        return torch.from_numpy(plain if plain.flags.writeable else plain.copy())
    except TypeError as error:  # texts, objects
        raise ValueError(f"{what} must be numbers, not {_name(values)}") from error


def _name(values: Any) -> str:
    """What something is, for a message."""
    if isinstance(values, Image.Image):
        return f"a PIL image {values.mode} {values.width} x {values.height}"
    shape = getattr(values, "shape", None)
    if shape is None:
        count = f" of {len(values)}" if isinstance(values, list | tuple) else ""
        return f"a {type(values).__name__}{count}"
    kind = TENSOR if isinstance(values, Tensor) else ARRAY
    return f"a {kind} {str(values.dtype).removeprefix('torch.')} {[*shape]}"
