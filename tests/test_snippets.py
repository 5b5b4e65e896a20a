"""Every snippet of the README and of docs/ runs as it stands, beside photo.png and an archive.

Python and what ``pqmim`` does with pictures is run.  Commands of the jobs, which need buckets,
hours or a cluster, are parsed here; the demo and the tests of the jobs run them.  docs/codes.md has
a test of its own (``tests/test_codes_doc.py``), docs/log.md is a diary.
"""

from __future__ import annotations

import glob
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pqmim import cli
from tests.code_archives import make
from tests.photos import photograph

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").glob("*.md")) if p.stem != "log")]
PICTURES = ("compress", "decompress", "complete", "info")


def blocks(text: str) -> Iterator[str]:
    """Fenced blocks, and indented ones without their indent."""
    yield from re.findall(r"(?ms)^```\w*\n(.*?)^```", text)
    bare = re.sub(r"(?ms)^```.*?^```", "", text)
    for indented in re.findall(r"(?m)(?:^    .*\n(?:\n(?=    ))*)+", bare):
        yield re.sub(r"(?m)^    ", "", indented)


def is_python(block: str) -> bool:
    return re.search(r"(?m)^(import|from) \w", block) is not None


def commands(text: str) -> Iterator[list[str]]:
    """Command lines of blocks and of inline code that have arguments, as words."""
    found = [line for block in blocks(text) for line in block.splitlines()]
    found += re.findall(r"`([^`\n]+)`", text)
    for line in found:
        words = shlex.split(line, comments=True) if re.match(r"(pqmim|python -m) ", line) else []
        mentioned = {"...", "NAME", "jobs.NAME"} & {*words} or words[-2:] == ["train", "prior"]
        if len(words) > 2 and not mentioned:
            yield words[1:] if words[0] == "pqmim" else words[2:]


PYTHON = [(path, [b for b in blocks(path.read_text()) if is_python(b)]) for path in DOCS]
PYTHON = [(path, found) for path, found in PYTHON if found and path.stem != "codes"]
LINES = [(path.name, words) for path in DOCS for words in commands(path.read_text())]
RUN = [(name, words) for name, words in LINES if words[0] in PICTURES]
JOBS = [(name, words) for name, words in LINES if words[0].startswith("jobs.")]
OTHER = [(name, words) for name, words in LINES if words[0] in ("eval", "train", "jobs")]


def typed(value: str | list[str]) -> str:
    """The name of a case: a file, or what is typed."""
    return value if isinstance(value, str) else " ".join(value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader may stand: photo.png, photos/, files of them, and the demo's archive."""
    monkeypatch.chdir(tmp_path)
    photo = Image.fromarray(photograph()[0, :, :64, :96].permute(1, 2, 0).numpy())
    Path("photos").mkdir()
    for name in ("photo.png", "photos/a.png", "photos/b.png"):
        photo.save(name)
    make("demo/archive", [3])
    return tmp_path


@pytest.mark.parametrize(("path", "found"), PYTHON, ids=lambda value: getattr(value, "stem", ""))
def test_python_runs_as_it_stands(folder, path, found):
    names: dict[str, object] = {}
    for block in found:
        exec(compile(block, path.name, "exec"), names)
    if path.stem == "README":
        assert names["codes"].shape == (2, 2, 3) and names["pixels"].shape == (3, 64, 96)


def test_pictures_alone_in_the_order_of_the_readme(folder):
    (block,) = [b for b in blocks((ROOT / "README.md").read_text()) if b.startswith("pqmim ")]
    for line in block.splitlines():
        words = [w for word in shlex.split(line)[1:] for w in sorted(glob.glob(word)) or [word]]
        assert cli.main([*words, "--quiet"]) == 0, line
    assert sorted(p.name for p in Path("small").iterdir()) == ["a.pqm", "b.pqm"]
    assert Path("tiny.pqm").stat().st_size <= 200 and Image.open("back.png").size == (96, 64)


@pytest.mark.parametrize(
    ("name", "words"),
    [r for r in RUN if r[0] != "README.md"],
    ids=typed,
)
def test_a_line_of_the_docs_runs_as_it_stands(folder, name, words):
    if "cut.pqm" in words:
        assert cli.main(["compress", "photo.png", "whole.pqm"]) == 0
        Path("cut.pqm").write_bytes(Path("whole.pqm").read_bytes()[:-8])
    assert cli.main([*words, "--quiet"]) == 0


@pytest.mark.parametrize(("name", "words"), JOBS, ids=typed)
def test_a_job_is_typed_rightly(name, words):
    importlib.import_module(words[0]).parse(words[1:])


@pytest.mark.parametrize(("name", "words"), OTHER, ids=typed)
def test_another_verb_is_typed_rightly(name, words):
    if words[0] == "jobs":
        importlib.import_module(f"jobs.{words[1]}").parse(words[2:])
    else:
        cli.parse(words)


def test_the_snippets_are_found():
    assert {path.stem for path, _ in PYTHON} == {"README", "api", "completion"}
    assert len(RUN) >= 12 and len(JOBS) >= 15
    assert list(blocks("a\n\n    x = 1\n\n    y\n\nb\n```sh\nz\n```\n")) == ["z\n", "x = 1\n\ny\n"]
