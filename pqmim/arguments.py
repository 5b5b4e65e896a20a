"""What is given to the doors of the codec besides pictures and codes: each of its kind, or refused.

    quality, stages, height, ...   whole numbers of any type: Python's, numpy's, a tensor of one
    price                          a number
    plan                           whole numbers, in any sequence
    data                           bytes, bytearray or memoryview; not a name, not an open file
    fill                           "absent", "mean" or a Rule
    device                         one that there is

A parameter is known by its name (and bytes by their annotation), so a new door is checked as the
others are.  Without this a price that is a text is Python's TypeError deep inside, True is a
quality of 1, and ``fill="sharp"`` is taken in silence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from pqmim.arrays import whole

Check = Callable[[str, Any], Any]
FILLS = ("absent", "mean")


def number(name: str, value: Any) -> float:
    """A number of any type.

    Raises:
        ValueError: it is none, or not a number.
    """
    try:
        if isinstance(value, str | bytes | bool):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be a number, not {value!r}") from None
    if found != found:
        raise ValueError(f"{name} {found}: not a number")
    return found


def plan(name: str, value: Any) -> tuple[int, ...]:
    """A stage schedule."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be whole numbers, one a group of sub-codes, not {value!r}")
    return tuple(whole(f"a stage of the {name}", part) for part in value)


def data(name: str, value: Any) -> bytes:
    """The bytes of a file."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    kind = type(value).__name__
    hint = {"str": ": Path(name).read_bytes()", "BytesIO": ": .getvalue()"}.get(kind, "")
    raise ValueError(f"{name} must be the bytes of a file, not a {kind}{hint}")


def several(name: str, value: Any) -> list[bytes]:
    """The bytes of files."""
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list of bytes, not a {type(value).__name__}")
    return [data(f"{name}[{i}]", one) for i, one in enumerate(value)]


def fill(name: str, value: Any) -> Any:
    """What stands where nothing was sent."""
    rule = hasattr(value, "steps") and hasattr(value, "temperature")
    if value is None or rule or (isinstance(value, str) and value in FILLS):
        return value
    raise ValueError(f"{name} must be 'absent', 'mean' or a pqmim.Rule, not {value!r}")


def device(name: str, value: Any) -> torch.device:
    """A device that there is.

    Raises:
        ValueError: there is none of that name, and why.
    """
    try:
        found = torch.device(value)
    except (TypeError, RuntimeError):
        raise ValueError(f"{name} {value!r}: it is 'cpu', 'cuda' or 'cuda:N'") from None
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type == "cuda" and (found.index or 0) >= gpus:
        built = f"PyTorch {torch.__version__} sees {gpus} GPUs on this machine"
        raise ValueError(f"{name} {value!r}: {built}")
    return found


BY_NAME: dict[str, Check] = {
    **dict.fromkeys(
        ("quality", "stages", "height", "width", "h", "w", "m", "max_bytes", "max_pixels"), whole
    ),
    "price": number, "temperature": number, "plan": plan, "fill": fill, "device": device,
}  # fmt: skip
BY_KIND: dict[str, Check] = {"bytes": data, "Sequence[bytes]": several}


def checked(function: Callable[..., Any]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """What a function is called with -> the same, each argument checked and of its plain type."""
    signature = inspect.signature(function)
    checks: dict[str, Check] = {}
    for name, parameter in signature.parameters.items():
        found = BY_NAME.get(name) or BY_KIND.get(str(parameter.annotation))
        if found is not None:
            checks[name] = found

    def check(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            left_out = value is None and signature.parameters[name].default is None
            if name in checks and not left_out:
                bound.arguments[name] = checks[name](name, value)
        return bound.args, bound.kwargs

    return check
