"""The tables of docs/guests.md: every row names a test, and every test that is named exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
ROWS = [
    line
    for line in (ROOT.parent / "docs" / "guests.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| case |")
]


@pytest.mark.parametrize("row", ROWS)
def test_the_test_of_a_row_exists(row: str) -> None:
    ((path, name),) = re.findall(r"`([\w/]+\.py)::(\w+)` \|$", row)
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), name


def test_the_rows_are_found() -> None:
    assert len(ROWS) > 30
