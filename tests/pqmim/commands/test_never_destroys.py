"""An output is whole or not there, and nothing that was there is lost by mistake."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pqmim.cli import main
from pqmim.commands import many
from pqmim.commands.files import FileError, Output
from pqmim.commands.many import Job
from pqmim.meter import Meter
from tests.models import tiny_bytes


@pytest.fixture
def weights(tmp_path: Path) -> list[str]:
    path = tmp_path / "w" / "tiny.safetensors"
    path.parent.mkdir()
    path.write_bytes(tiny_bytes(prior=True))
    return ["--weights", str(path)]


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of a.png, b.png and c.png in the working folder."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("abc"):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(f"{name}.png")
    return ["a.png", "b.png", "c.png"]


@contextlib.contextmanager
def little_room(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("pqmim: ") and error.count("\n") == 1, error
    return error


def test_the_second_of_two_pictures_is_not_an_output(pictures, weights, capsys):
    before = Path("b.png").read_bytes()
    assert main(["compress", "a.png", "b.png", *weights]) == 2
    assert "b.png: compress writes .pqm files" in one_line(capsys)
    assert main(["compress", "a.png", "new.jpg", "--force", *weights]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["compress", *pictures, *weights])
    assert "--output-dir" in capsys.readouterr().err
    assert Path("b.png").read_bytes() == before and not Path("new.jpg").exists()


@pytest.mark.parametrize("verb", ["compress", "decompress", "complete"])
def test_what_is_there_stays_unless_forced(pictures, weights, capsys, verb):
    main(["compress", "a.png", "a.pqm", *weights])
    names = {"compress": ["a.png", "there.pqm"], "decompress": ["a.pqm", "there.png"],
             "complete": ["a.png", "there.png", "--keep-subcodes", "1"]}  # fmt: skip
    command = [verb, *names[verb]]
    there = Path(command[2])
    there.write_bytes(b"mine")
    assert main([*command, *weights]) == 2
    assert f"{there}: it is there already; --force replaces it" in one_line(capsys)
    assert there.read_bytes() == b"mine"
    assert main([*command, "--force", *weights]) == 0 and there.read_bytes() != b"mine"


def test_names_may_stand_behind_options(pictures, weights):
    assert main(["compress", "a.png", "--fast", "a.pqm", *weights]) == 0
    assert main(["decompress", *weights, "a.pqm", "--partial", "x.png"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["compress", "a.png", "z.pqm", "--fats", *weights])


def test_an_input_is_no_output(pictures, weights, capsys):
    before = Path("a.png").read_bytes()
    Path("link.png").symlink_to("a.png")
    for output in ("a.png", "./a.png", "link.png"):
        command = ["complete", "a.png", output, "--keep-subcodes", "1", "--force", *weights]
        assert main(command) == 2
        assert "input and output are the same file" in one_line(capsys)
    assert Path("a.png").read_bytes() == before


@pytest.mark.parametrize("force", [False, True])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, force):
    path = tmp_path / "x.pqm"
    if force:
        path.write_bytes(b"good")
    with little_room(1000), pytest.raises(FileError, match=r"x\.pqm: File too large"):
        Output(str(path), force).write(bytes(5000))
    assert [p.name for p in tmp_path.iterdir()] == (["x.pqm"] if force else [])
    assert not force or path.read_bytes() == b"good"


def test_a_file_that_comes_while_another_is_made_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "x.pqm"
    monkeypatch.setattr(Output, "check", lambda self: path.write_bytes(b"theirs"))
    with pytest.raises(FileError, match="it is there by now"):
        Output(str(path)).write(b"ours")
    assert path.read_bytes() == b"theirs" and list(tmp_path.iterdir()) == [path]


def test_the_same_on_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "x.pqm"
    Output(str(path)).write(b"ours")
    assert path.read_bytes() == b"ours" and list(tmp_path.iterdir()) == [path]


def test_rights_links_devices_and_pipes_stay_what_they_are(tmp_path):
    path, link, pipe = tmp_path / "x.pqm", tmp_path / "link.pqm", tmp_path / "pipe"
    Output(str(path)).write(b"1")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    path.chmod(0o640)
    link.symlink_to(path)
    Output(str(link), force=True).write(b"2")
    assert link.is_symlink() and path.read_bytes() == b"2"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    Output(os.devnull).write(b"3")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    Output(str(pipe)).write(b"4")
    reader.join(60)
    assert got == [b"4"] and stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize(
    ("output", "says"),
    [("none/x.pqm", "none/x.pqm: there is no folder none"), ("w", "w: a folder"),
     ("a.png/x.pqm", "a.png/x.pqm: ")],
)  # fmt: skip
def test_an_output_that_cannot_be_is_refused_before_the_work(
    pictures, weights, capsys, monkeypatch, output, says
):
    monkeypatch.setattr("pqmim.codec.Codec.load", lambda *_: pytest.fail("loaded"))
    assert main(["compress", "a.png", output, *weights]) == 2
    assert says in one_line(capsys)


def test_bytes_are_not_written_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(FileError, match="no text for a terminal"):
        Output("-").check()
    Output("-", force=True).check()


def test_many_pictures_go_to_a_folder_and_a_bad_one_is_said(pictures, weights, capsys):
    Path("b.png").write_bytes(Path("b.png").read_bytes()[:200])
    command = ["compress", *pictures, "--output-dir", "out/put", *weights]
    assert main(command) == 3
    said = capsys.readouterr().err
    assert "pqmim: b.png: cannot be read as an image" in said
    assert "pqmim: 1 of 3 files were not made" in said
    assert sorted(p.name for p in Path("out/put").iterdir()) == ["a.pqm", "c.pqm"]
    main(["compress", "a.png", "one.pqm", *weights])
    assert Path("out/put/a.pqm").read_bytes() == Path("one.pqm").read_bytes()
    small = ["out/put/a.pqm", "out/put/c.pqm"]
    assert main(["decompress", *small, "--output-dir", "back", "--threads", "2", *weights]) == 0
    assert sorted(p.name for p in Path("back").iterdir()) == ["a.png", "c.png"]
    assert Image.open("back/a.png").size == (30, 20)


def test_again_makes_what_is_missing_alone(pictures, weights, capsys):
    command = ["compress", *pictures, "--output-dir", "out", "--quiet", *weights]
    assert main(command) == 0
    Path("out/b.pqm").unlink()
    Path("out/a.pqm").write_bytes(b"mine")
    assert main(command) == 3
    said = capsys.readouterr().err
    assert "out/a.pqm: it is there already" in said and "2 of 3 files were not made" in said
    assert Path("out/b.pqm").exists() and Path("out/a.pqm").read_bytes() == b"mine"
    assert main([*command, "--force"]) == 0 and Path("out/a.pqm").read_bytes() != b"mine"


def test_two_inputs_of_one_name_are_refused_before_anything_is_written(pictures, weights, capsys):
    Path("sub").mkdir()
    Path("sub/a.jpg").write_bytes(b"")
    assert main(["compress", "a.png", "sub/a.jpg", "--output-dir", "out", *weights]) == 2
    assert "out/a.pqm: the output of a.png and of sub/a.jpg" in one_line(capsys)
    assert not Path("out").exists()
    assert main(["compress", "-", "--output-dir", "out", *weights]) == 2
    assert "standard input has no name" in one_line(capsys)


def test_several_are_made_at_a_time() -> None:
    gate = threading.Barrier(3)
    jobs = [Job(str(i), Output(os.devnull)) for i in range(6)]
    meter = Meter("compress", 6, quiet=True)
    assert many.each(jobs, lambda _: None if gate.wait(60) >= 0 else None, 3, meter) == 0


def test_an_error_of_our_own_is_no_bad_file() -> None:
    def fail(_: Job) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        many.each([Job("a", Output(os.devnull))], fail, 1, Meter("compress", 1, quiet=True))
