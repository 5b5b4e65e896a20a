"""The batch job: shards of images in, code tables out, each shard committed exactly once.

    from pipeline import CodeStream, CodeTable

read the tables for training.  What is named here is imported at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.codes.by_number import CodeTable as CodeTable
    from pipeline.codes.stream import CodeStream as CodeStream

__all__ = ["CodeStream", "CodeTable"]
_PLACES = {"CodeStream": "codes.stream", "CodeTable": "codes.by_number"}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"pipeline.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
