"""``python -m jobs``: which jobs there are."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

SELF = {"__init__", "__main__"}


def main() -> int:
    """Name every job with the first line of its docstring; nothing is imported for it."""
    sys.stdout.write("pqmim jobs NAME --help, or python -m jobs.NAME --help\n\n")
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in SELF:
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            sys.stdout.write(f"  {path.stem:10} {text.splitlines()[0]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
