"""Brace and glob patterns, on plain strings: by braceexpand and fsspec.

A shell expands braces for local and remote names alike, but globs for local ones only, and Python's
glob has no form that works on a listing before 3.13.
"""

from __future__ import annotations

import re

from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

_MAGIC = re.compile(r"[*?[]")


def braces(text: str) -> list[str]:
    """All the names that a brace pattern stands for, in order; as bash has them, so that a brace
    without comma or range is literal, and one that is never closed too."""
    try:
        return list(braceexpand(text, escape=False))
    except UnbalancedBracesError:
        return [text]


def has_magic(pattern: str) -> bool:
    """Whether the pattern is a glob."""
    return _MAGIC.search(pattern) is not None


def static_prefix(pattern: str) -> str:
    """The text before the first glob character: what a listing can be narrowed by."""
    return _MAGIC.split(pattern, maxsplit=1)[0]


def glob_regex(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression for full names; ``*`` stops at ``/``, ``**`` does not.

    Raises:
        ValueError: ``**`` beside other letters.
    """
    from fsspec.utils import glob_translate  # here: a tenth of a second

    return re.compile(glob_translate(pattern), re.DOTALL)
