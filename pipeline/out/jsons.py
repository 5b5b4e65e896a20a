"""JSON as the standard has it, for whoever reads what leaves an archive: no NaN, no Infinity."""

from __future__ import annotations

import json
import math


def dumps(value: object) -> bytes:
    """A value as JSON; what is no number becomes null."""
    return json.dumps(_finite(value), sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def member(text: str) -> bytes:
    """A kept JSON member as it was, unless it holds NaN or Infinity, which become null; what is no
    JSON at all is left as it was."""

    class NoNumberError(Exception):
        pass

    def refuse(_: str) -> None:
        raise NoNumberError

    try:
        json.loads(text, parse_constant=refuse)
    except NoNumberError:
        value = json.loads(text, parse_constant=lambda _: None)
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        pass
    return text.encode()


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value
