"""Passthrough columns: ``--keep txt json.label:int32``.

``txt`` copies the member of that extension as text; ``json.a.b:type`` reads one field of the JSON
member.  A value that is missing is null; one that does not fit its type is null as well and named
in the row's ``error``, because one odd label must not cost an image.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass

TYPES = {"string": str, "int32": int, "int64": int, "float32": float, "float64": float}
RESERVED = {"key", "status", "error", "width", "height", "grid_w", "grid_h", "codes", "bitstream",
            "crc32", "psnr", "source_sha256"}  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """One passthrough column."""

    name: str  # of the column
    extension: str  # of the member
    path: tuple[str, ...]  # into its JSON; empty: the whole member as text
    type: str

    def value(self, members: dict[str, bytes]) -> tuple[object, str | None]:
        """The value (None: missing) and, where it does not fit, what is wrong."""
        data = members.get(self.extension)
        if data is None:
            return None, None
        try:
            text = data.decode("utf-8")
            found: object = _lookup(json.loads(text), self.path) if self.path else text
            return (None if found is None else _cast(found, self.type)), None
        except (ValueError, TypeError, OverflowError) as error:
            return None, f"{self.name}: not {self.type}: {error}"


@functools.cache
def parse(spec: str) -> Kept:
    """Read one ``--keep`` argument.

    Raises:
        ValueError: an unknown type, or a name that the table already uses.
    """
    match = re.fullmatch(r"([A-Za-z0-9_.-]+?)(?::(\w+))?", spec)
    name, kind = (match[1], match[2] or "string") if match else (spec, "")
    if kind not in TYPES:
        raise ValueError(f"--keep {spec}: write EXT, json.FIELD or either with :{'|'.join(TYPES)}")
    if name in RESERVED:
        raise ValueError(f"--keep {spec}: the code table has a column {name!r} of its own")
    extension, *path = name.split(".")
    return Kept(name, extension.lower(), tuple(path), kind)


def _lookup(node: object, path: tuple[str, ...]) -> object:
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _cast(value: object, kind: str) -> object:
    if kind == "string":
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if isinstance(value, bool):
        raise ValueError(f"{value!r}")
    number = TYPES[kind](value)  # type: ignore[call-overload]
    bits = {"int32": 31, "int64": 63}.get(kind)
    if bits is not None and (number != float(str(value)) or not -(2**bits) <= number < 2**bits):
        raise ValueError(f"{value!r}")
    return number
