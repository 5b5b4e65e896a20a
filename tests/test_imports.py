"""The import rule of ARCHITECTURE.md, read from the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {  # library -> the only files that may import it
    "ray": {"pipeline/actors.py", "pipeline/workers.py", "jobs/common.py"},
    "fsspec": {"pipeline/s3.py"},
    "s3fs": {"pipeline/s3.py"},
    "pyarrow": {
        f"pipeline/{name}.py"
        for name in ("table", "manifest", "rowgroups", "window", "dataset", "compaction")
    },
    "matplotlib": {"pqmim/evaluation/page.py"},  # an extra, imported when a page is asked for
    "numba": {"pqmim/fused_kernels.py"},  # an extra, imported when a CPU runs the entropy model
    "isal": {"pipeline/pages.py"},
}
CODEC_MAY_IMPORT = {
    "torch", "numpy", "constriction", "safetensors", "PIL", "pqmim", "matplotlib", "numba", "tqdm",
}  # fmt: skip
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("pqmim", "pipeline", "jobs")
    for path in (ROOT / package).rglob("*.py")
)


def imports(file: str) -> set[str]:
    """First names of all imported modules, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("file", FILES)
def test_imports_respect_the_layers(file):
    import sys

    found = imports(file)
    for library, files in ALLOWED.items():
        assert library not in found or file in files, f"{file} imports {library}"
    if file.startswith("pqmim/"):
        foreign = found - CODEC_MAY_IMPORT - set(sys.stdlib_module_names)
        assert not foreign, f"{file} imports {foreign}"
    if file.startswith("pipeline/"):
        assert "jobs" not in found, f"{file} imports jobs"


def test_the_rule_sees_imports_wherever_they_are():
    assert "ray" in imports("jobs/common.py") and "pyarrow" in imports("pipeline/table.py")
    assert len(FILES) > 30
