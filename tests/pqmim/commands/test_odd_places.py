"""Streams that are closed or full, odd names and folders, numbers at the ends: one line each."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pqmim.cli import main
from pqmim.commands.files import FileError, Output
from tests.models import tiny_bytes
from tests.properties import long

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with weights w and a picture a.png."""
    monkeypatch.chdir(tmp_path)
    Path("w").write_bytes(tiny_bytes(prior=True))
    Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)).save("a.png")
    return tmp_path


def compress(*names: str) -> int:
    return main(["compress", "--weights", "w", *names])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("pqmim: ") and error.count("\n") == 1, error
    return error


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line of sh in which ``pqmim`` is ours."""
    ours = f'pqmim() {{ "{sys.executable}" -W error -m pqmim "$@"; }}\n'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(["bash", "-c", ours + line], capture_output=True, text=True,
                          env=environment, timeout=600)  # fmt: skip


@pytest.mark.parametrize(
    ("line", "says"),
    [long("pqmim compress - x.pqm --weights w <&-", "Bad file descriptor"),
     long("pqmim compress a.png - --weights w >&-", "Bad file descriptor"),
     ("pqmim info w >&-", "Bad file descriptor"),
     ("pqmim compress a.png - --weights w >/dev/full", "No space left on device"),
     long("pqmim info w >/dev/full", "No space left on device")],
)  # fmt: skip
@pytest.mark.parametrize("buffered", ["", long("1")])
def test_a_stream_that_is_closed_or_full_is_one_line(folder, line, says, buffered):
    done = shell(line, PYTHONUNBUFFERED=buffered)
    assert done.returncode == 2 and not Path("x.pqm").exists()
    assert done.stderr == f"pqmim: standard input or output: {says}\n"


def test_with_all_streams_closed_the_output_is_what_it_is_with_them(folder):
    assert compress("a.png", "open.pqm") == 0
    done = shell("pqmim compress a.png closed.pqm --weights w <&- >&- 2>&-")
    assert done.returncode == 0
    assert Path("closed.pqm").read_bytes() == Path("open.pqm").read_bytes()
    assert shell("pqmim compress none.png x.pqm --weights w 2>&-").returncode == 2


@pytest.mark.parametrize(
    "name", [long("torch.py"), long("numpy.py"), long("PIL.py"), "pipeline.py", long("logging.py")]
)
def test_modules_of_the_working_folder_are_not_ours(folder, name):
    Path(name).write_text("raise ZeroDivisionError")
    done = shell("pqmim compress a.png x.pqm --weights w")
    assert done.returncode == 0, done.stderr
    assert Path("x.pqm").exists()


@pytest.mark.parametrize(
    "name", ["ü" * 125 + ".pqm", "漢" * 83 + ".pqm", "n" * 251 + ".pqm", " s p .pqm", "\udcff.pqm",
             "a\nb.pqm"],
)  # fmt: skip
def test_names_as_long_and_odd_as_the_system_takes_them(folder, name):
    assert compress("a.png", name) == 0 and compress("a.png", name, "--force") == 0
    assert main(["decompress", name, "b.png", "--weights", "w"]) == 0
    assert sorted(os.listdir()) == sorted(["a.png", "b.png", "w", name])


def test_names_that_begin_like_options(folder):
    Path("a.png").rename("-a.png")
    assert compress("--", "-a.png", "-b.pqm") == 0 and Path("-b.pqm").exists()
    assert compress("--output-dir", "out", "--", "-a.png") == 0 and Path("out/-a.pqm").exists()
    assert compress("./-a.png", "./-c.pqm") == 0 and Path("-c.pqm").exists()


@pytest.mark.parametrize(
    ("output", "says"),
    [("loop", "loop: Too many levels of symbolic links"), ("", "an empty name"),
     ("dangling", "dangling: there is no folder {}/nowhere"), ("n" * 300, "File name too long"),
     ("a.png/x.pqm", "a.png/x.pqm: Not a directory")],
)  # fmt: skip
def test_outputs_that_cannot_be_are_one_line_before_the_work(
    folder, capsys, monkeypatch, output, says
):
    monkeypatch.setattr("pqmim.codec.Codec.load", lambda *_: pytest.fail("loaded"))
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere/x.pqm")
    for more in ([], ["--force"]):
        assert compress("a.png", output, *more) == 2
        assert says.format(folder) in one_line(capsys)


def test_a_folder_without_the_right_to_write_is_said_before_the_work(folder, capsys, monkeypatch):
    closed = folder / "closed"
    closed.mkdir()
    right = os.access

    def access(path: object, mode: int) -> bool:
        return not (mode & os.W_OK and Path(str(path)).resolve() == closed) and right(path, mode)

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr("pqmim.codec.Codec.load", lambda *_: pytest.fail("loaded"))
    assert compress("a.png", "closed/x.pqm") == 2
    assert "closed/x.pqm: no right to write in the folder closed" in one_line(capsys)
    with pytest.raises(FileError, match="no right to write"):
        Output(str(closed / "y.png")).check()


@pytest.mark.parametrize("where", ["", "a.png"])
def test_an_output_folder_that_is_none_is_said(folder, capsys, where):
    assert compress("a.png", "--output-dir", where) == 2
    assert "not the name of a folder" in one_line(capsys)
    assert sorted(os.listdir()) == ["a.png", "w"]


def test_an_input_without_a_name(folder, capsys):
    assert compress("", "x.pqm") == 2 and "an empty name" in one_line(capsys)


@pytest.mark.parametrize("limit", ["0", "-5", "10"])
def test_a_budget_that_nothing_fits_names_the_smallest_file(folder, capsys, limit):
    assert compress("a.png", "x.pqm", "--max-bytes", limit) == 2
    said = one_line(capsys)
    assert f"a.png: {limit} bytes are too few" in said and not Path("x.pqm").exists()
    least = said.split()[-1]
    assert compress("a.png", "x.pqm", "--max-bytes", least) == 0
    assert Path("x.pqm").stat().st_size <= int(least)


@pytest.mark.parametrize("threads", ["0", "-1", "1025", "99999999999999"])
def test_threads_that_cannot_be_are_refused(folder, capsys, threads):
    with pytest.raises(SystemExit, match="2"):
        compress("a.png", "x.pqm", "--threads", threads)
    assert f"--threads {threads}: 1 to 1024" in capsys.readouterr().err


def test_operating_points_that_are_none_are_named(folder, capsys):
    assert main(["eval", ".", "--quality", "8:cheap"]) == 2
    assert "--quality 8:cheap: Q or Q:PRICE" in one_line(capsys)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_of_another_encoding_are_told_to_a_strict_stream(folder, monkeypatch, encoding):
    """As programs have that put a stream of their own in place of standard error."""
    for line in (["info", "\udcff.pqm"], ["compress", "\udcff.png", "ü.png", "--output-dir", "."]):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(line) in (2, 3)
        stream.flush()
        assert b"\\udcff.p" in stream.buffer.getvalue()


def test_what_is_no_weights_file_says_what_it_begins_with(folder, capsys):
    assert compress("a.png", "x.pqm", "--weights", "a.png") == 2
    assert r"a.png: not a safetensors file: it begins with b'\x89PNG\r\n" in one_line(capsys)


def test_numbers_that_only_look_like_some_are_refused(folder, capsys):
    assert main(["complete", "a.png", "b.png", "--weights", "w", "--replace", "²,0,1,1"]) == 2
    assert "four numbers, TOP,LEFT,HEIGHT,WIDTH" in one_line(capsys)
