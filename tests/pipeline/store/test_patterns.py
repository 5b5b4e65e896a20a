"""Brace expansion against bash, globs against Python's own on a real directory."""

from __future__ import annotations

import glob
import subprocess
from pathlib import Path

import pytest

from pipeline.store.patterns import braces, glob_regex, static_prefix


@pytest.mark.parametrize(
    "pattern",
    [
        "plain",
        "s-{000..012}.tar",
        "s-{8..11}.tar",
        "s-{08..11}.tar",
        "s-{10..8}",
        "s-{0..10..3}",
        "s-{10..0..4}",
        "s-{-2..2}",
        "s-{-02..1}",
        "{a,b}/{x,y}-{1..2}.tar",
        "{a,b{1..3},c{x,y}}.tar",
        "{train,}x",
        "{a..e}",
        "{one}",
        "{{a,b}}",
        "open{a,b",
        "{}",
    ],
)
def test_braces_expand_as_in_bash(pattern: str) -> None:
    shell = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True
    )
    assert braces(pattern) == shell.stdout.splitlines()


@pytest.mark.parametrize(
    "pattern", ["*.tar", "*/*.tar", "**/*.tar", "a/?.tar", "a/[12].tar", "a/[!1].tar", "*/[a-b]*"]
)
def test_globs_match_what_python_finds(pattern: str, tmp_path: Path) -> None:
    for name in ("x.tar", "a/1.tar", "a/2.tar", "a/3.tar", "a/b/4.tar", "a/b.tar", "c/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    regex = glob_regex(pattern)
    files = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()]
    expected = glob.glob(pattern, root_dir=tmp_path, recursive=True)
    matched = {name for name in files if regex.fullmatch(name)}
    assert matched == {name for name in expected if (tmp_path / name).is_file()}
    assert matched
    assert all(name.startswith(static_prefix(pattern)) for name in matched)
