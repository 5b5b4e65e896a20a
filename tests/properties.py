"""How many examples hypothesis tries: ``make test`` 100 a property at most, ``test-long`` all."""

from __future__ import annotations

from hypothesis import settings

SHORT, LONG = 100, 1000  # of the properties that do not say how many

settings.register_profile("short", deadline=None, max_examples=SHORT)
settings.register_profile("long", deadline=None, max_examples=LONG)
settings.load_profile("short")


def examples(count: int) -> int:
    """That many in the long form (``--hypothesis-profile=long``), 100 at most in the short one."""
    short = settings.default.max_examples == SHORT
    return min(count, SHORT) if short else count
