"""Passthrough columns: ``--keep txt caption.txt json.label:int32``.

``txt`` copies the member of that extension as text, and ``caption.txt`` the one of that longer
extension; ``json.a.b:type`` reads one field of the JSON member, ``meta.json.a`` one of .meta.json.
A value that is missing is null; one that its column cannot hold exactly (an integer that is none, a
number over the range, half a surrogate pair, JSON too deep to read) is null as well and named in
the row's ``error``, because one odd label must not cost an image.  A float rounds, as floats do.

Archives before format 3 go on as they began: ``meta.a`` is a field of .meta there, an integer over
2**53 is null, a float32 may be infinite.
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

TYPES = {"string": str, "int32": int, "int64": int, "float32": float, "float64": float}
BITS = {"int32": 31, "int64": 63}
RESERVED = {"key", "status", "error", "width", "height", "grid_w", "grid_h", "codes", "bitstream",
            "crc32", "psnr", "source_sha256"}  # fmt: skip


class _Literal(str):
    """A number of a JSON text as it stands there: a float would have lost digits."""


@dataclass(frozen=True)
class Kept:
    """One passthrough column."""

    name: str  # of the column
    extension: str  # of the member
    path: tuple[str, ...]  # into its JSON; empty: the whole member as text
    type: str
    exact: bool = True  # False: by the rules of before format 3

    @property
    def is_text(self) -> bool:
        """Whether the column holds its member whole."""
        return not self.path and self.type == "string"

    def value(self, members: dict[str, bytes]) -> tuple[object, str | None]:
        """The value (None: missing) and, where it does not fit, what is wrong."""
        data = members.get(self.extension)
        if data is None:
            return None, None
        try:
            found: object = data.decode("utf-8")
            if self.path:
                found = _lookup(self._json(str(found)), self.path)
            return (None if found is None else self._cast(found)), None
        except RecursionError:
            return None, f"{self.name}: not {self.type}: JSON nested too deeply to be read"
        except (ValueError, TypeError, ArithmeticError) as error:
            return None, f"{self.name}: not {self.type}: {error}"

    def _json(self, text: str) -> object:
        if self.type == "string" or not self.exact:
            return json.loads(text)
        return json.loads(text, parse_float=_Literal)

    def _cast(self, value: object) -> object:
        if self.type == "string":
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            text.encode()  # half a surrogate pair is an error here, and none in Python's JSON
            return text
        if isinstance(value, bool):
            raise ValueError(f"{value!r}")
        if not self.exact:
            return _cast_before(value, self.type)
        return _integer(value, BITS[self.type]) if self.type in BITS else _real(value, self.type)


@functools.cache
def parse(spec: str, exact: bool = True) -> Kept:
    """Read one ``--keep`` argument; ``exact``: for an archive of format 3 or later.

    Raises:
        ValueError: an unknown type, or a name that the table already uses.
    """
    match = re.fullmatch(r"([A-Za-z0-9_.-]+?)(?::(\w+))?", spec)
    name, kind = (match[1], match[2] or "string") if match else (spec, "")
    if kind not in TYPES:
        raise ValueError(f"--keep {spec}: write EXT, json.FIELD or either with :{'|'.join(TYPES)}")
    if name in RESERVED:
        raise ValueError(f"--keep {spec}: the code table has a column {name!r} of its own")
    parts = name.split(".")
    lower = [part.lower() for part in parts]
    end = 1 if not exact else lower.index("json") + 1 if "json" in lower else len(parts)
    return Kept(name, ".".join(lower[:end]), tuple(parts[end:]), kind, exact)


def check_names(specs: Sequence[str], exact: bool) -> None:
    """Refuse columns of one name; also of names that SQL takes for one, in new archives.

    Raises:
        ValueError: so.
    """
    seen: dict[str, str] = {}
    for spec in specs:
        name = parse(spec, exact).name
        name = name.lower() if exact else name
        if name in seen:
            raise ValueError(
                f"--keep {seen[name]} {spec}: two columns of the name {name}: leave one out"
            )
        seen[name] = spec


def _lookup(node: object, path: tuple[str, ...]) -> object:
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _integer(value: object, bits: int) -> int:
    """A whole number, exactly; a JSON number or its digits as text."""
    if isinstance(value, str):
        if not re.fullmatch(r"\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*", value, re.ASCII):
            raise ValueError(f"{_short(value)}")
        value = Decimal(value)
    if not isinstance(value, int | Decimal):
        raise ValueError(f"{_short(value)}")
    if not -(2**bits) <= value < 2**bits:  # before any number of so many digits is made
        raise ValueError(f"{_short(value)} is out of range")
    if int(value) != value:
        raise ValueError(f"{_short(value)} is not whole")
    return int(value)


def _real(value: object, kind: str) -> float:
    """A float; a finite number that it would make infinite is an error."""
    if not isinstance(value, int | float | str) or (isinstance(value, str) and "_" in value):
        raise ValueError(f"{_short(value)}")
    number = float(value)
    named = isinstance(value, float) or (isinstance(value, str) and "n" in value.lower())
    if math.isinf(number) and not named:
        raise OverflowError(f"{_short(value)} is over its range")
    if kind == "float32" and math.isfinite(number):
        struct.pack("<f", number)  # an OverflowError says that it is over the range
    return number


def _short(value: object) -> str:
    text = str(value) if isinstance(value, _Literal | Decimal) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _cast_before(value: object, kind: str) -> object:
    """Numbers as archives before format 3 have them."""
    number = TYPES[kind](value)  # type: ignore[call-overload]
    bits = BITS.get(kind)
    if bits is not None and (number != float(str(value)) or not -(2**bits) <= number < 2**bits):
        raise ValueError(f"{value!r}")
    return number
