"""Brace and glob patterns, on plain strings.

Ours, because a shell expands braces for local and remote names alike but globs for local ones only,
and because Python's glob has no form that works on a listing before 3.13.  Braces follow bash:
``{000..123}``, ``{a,b}``, ``{0..9..3}``, nested; a brace without comma or range is literal.
"""

from __future__ import annotations

import re

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?|([A-Za-z])\.\.([A-Za-z])")
_MAGIC = re.compile(r"[*?[]")


def braces(text: str) -> list[str]:
    """All the names that a brace pattern stands for, in order."""
    start = text.find("{")
    while start >= 0:
        parts, end = _parts(text, start)
        options = _options(parts)
        if options:
            tails = braces(text[end:])
            return [text[:start] + option + tail for option in options for tail in tails]
        start = text.find("{", start + 1)
    return [text]


def _parts(text: str, start: int) -> tuple[list[str], int]:
    """The comma-separated parts of the brace that opens at ``start``, and where it has ended."""
    depth, begin, parts = 0, start + 1, []
    for at in range(start, len(text)):
        if text[at] == "{":
            depth += 1
        elif text[at] == "," and depth == 1:
            parts.append(text[begin:at])
            begin = at + 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return [*parts, text[begin:at]], at + 1
    return [], len(text)  # never closed: literal


def _options(parts: list[str]) -> list[str]:
    """What one brace may be replaced by; nothing when it is literal."""
    if len(parts) > 1:
        return [option for part in parts for option in braces(part)]
    match = _RANGE.fullmatch(parts[0]) if parts else None
    if match is None:
        return []
    first, last, step, first_letter, last_letter = match.groups()
    if first_letter:
        return [chr(c) for c in _steps(ord(first_letter), ord(last_letter), 1)]
    padded = any(re.match(r"-?0\d", end) for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{n:0{width}d}" for n in _steps(int(first), int(last), abs(int(step or 1)) or 1)]


def _steps(first: int, last: int, step: int) -> range:
    """From first to last inclusive, in either direction."""
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)


def has_magic(pattern: str) -> bool:
    """Whether the pattern is a glob."""
    return _MAGIC.search(pattern) is not None


def static_prefix(pattern: str) -> str:
    """The text before the first glob character: what a listing can be narrowed by."""
    return _MAGIC.split(pattern, maxsplit=1)[0]


def glob_regex(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression for full names; ``*`` stops at ``/``, ``**`` does not."""
    tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^]]*\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    out = []
    for i, token in enumerate(tokens):
        if i % 2 == 0:
            out.append(re.escape(token))
        elif token in known:
            out.append(known[token])
        else:
            inner = token[1:-1].replace("\\", "\\\\")
            out.append(f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]")
    return re.compile("".join(out), re.DOTALL)
