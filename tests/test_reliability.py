"""docs/reliability.md names tests: each of them exists, and every row of its tables has one."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "reliability.md").read_text()
FILES = {path.relative_to(TESTS).as_posix(): path.read_text() for path in TESTS.rglob("*.py")}
FUNCTIONS = {name for text in FILES.values() for name in re.findall(r"^def (test_\w+)", text, re.M)}
ELSEWHERE = ("the same", "chaos")  # the row above; the long form of the tests


def missing(named: str) -> list[str]:
    """What a name in backticks refers to that does not exist; ``...`` stands for any letters."""
    wrong = []
    for part in re.split(r"::|, ", named):
        if re.search(r"\w\.py$|/$", part):
            found = any(f"/{path}".endswith(f"/{part}") for path in FILES)
            found = found or (part.endswith("/") and (TESTS / part).is_dir())
        elif part.startswith(("test_", "...")):
            ends = part + "..." * part.startswith("...")
            pattern = re.compile(re.escape(ends).replace(r"\.\.\.", r"\w*"))
            found = any(pattern.fullmatch(name) for name in FUNCTIONS)
        else:
            continue
        wrong += [] if found else [part]
    return wrong


def rows() -> list[list[str]]:
    """Cells of the rows of every table that has a column ``test``, from that column on."""
    found, column = [], None
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not line.startswith("|"):
            column = None
        elif "test" in [cell.strip("| ") for cell in cells]:
            column = [cell.strip("| ") for cell in cells].index("test")
        elif column is not None and not set(line) <= set("|- "):
            found.append(cells[column:])
    return found


def test_every_test_that_is_named_exists():
    names = re.findall(r"`([^`]*(?:test_|\.\.\.)[^`]*)`", TEXT)
    assert len(names) > 100
    assert [name for name in names if missing(name)] == []


def test_every_row_has_a_test():
    assert len(rows()) > 90
    without = [row for row in rows() if "`" not in row[0] and row[0] not in ELSEWHERE]
    assert without == []


def test_a_test_that_does_not_exist_is_found():
    assert missing("test_that_nobody_wrote...") and missing("pqmim/test_nothing.py::test_x...")
    assert not missing("pqmim/pictures/test_silent.py::test_fax...")
