"""What ``make test`` leaves to ``make test-long``: examples of a property above 100, and cases."""

from __future__ import annotations

import pytest
from _pytest.mark import ParameterSet
from hypothesis import settings

SHORT, LONG = 100, 1000  # of the properties that do not say how many

settings.register_profile("short", deadline=None, max_examples=SHORT)
settings.register_profile("long", deadline=None, max_examples=LONG)
settings.load_profile("short")


def examples(count: int) -> int:
    """That many in the long form (``--hypothesis-profile=long``), 100 at most in the short one."""
    return min(count, SHORT) if is_short() else count


def is_short() -> bool:
    """Whether this is ``make test``, not the long form (``--hypothesis-profile=long``)."""
    return settings.default.max_examples == SHORT


def long(*values: object) -> ParameterSet:
    """Values of a ``parametrize`` that ``make test`` leaves to ``make test-long``."""
    return pytest.param(*values, marks=pytest.mark.long)
