"""Inputs and outputs of the commands: an output is written whole or not at all, and never by
mistake over something else.

The bytes go to a hidden file beside the output, which takes its name in one step: by a link that
fails where the name is taken, or with ``--force`` by a rename.  So a full disk, a signal or another
process leaves what was there, or nothing.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STDIO = "-"


class FileError(ValueError):
    """A file that cannot be read or written; the message begins with its name."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors of the operating system, with the name of the file first, in a few words."""
    try:
        yield
    except OSError as error:
        raise FileError(f"{shown(name)}: {error.strerror or error}") from error


@contextmanager
def about(name: str) -> Iterator[None]:
    """What is wrong with the content of a file, with its name first."""
    try:
        yield
    except FileError:
        raise
    except (ValueError, OSError) as error:
        raise FileError(f"{shown(name)}: {error}") from error


def shown(name: str) -> str:
    """The name of a file for a message."""
    return "standard input or output" if name == STDIO else name


def read(name: str) -> bytes:
    """A file, or stdin.

    Raises:
        FileError: it cannot be read.
    """
    with naming(name):
        if name == STDIO:
            return sys.stdin.buffer.read()
        if not name:
            raise FileError("an empty name, which is no file's")
        return Path(name).read_bytes()


@dataclass(frozen=True)
class Output:
    """Where the result of a command goes."""

    name: str  # of a file, or - for stdout
    force: bool = False  # replace what is there

    def check(self, inputs: Iterable[str] = ()) -> None:
        """Refuse, before any work is done, what :meth:`write` would refuse after it.

        Raises:
            FileError: it is there already, is an input or a folder, or its folder is missing.
        """
        if self.name == STDIO:
            if sys.stdout.isatty() and not self.force:
                raise FileError("the output is no text for a terminal: redirect it, or --force")
            return
        if not self.name:
            raise FileError("an empty name, which is no file's")
        path = Path(self.name)
        with naming(self.name):
            with contextlib.suppress(FileNotFoundError):
                path.stat()  # a loop of links, a name that is too long, a folder that is a file
            if path.is_dir():
                raise FileError(f"{self.name}: a folder; for files in it, --output-dir {self.name}")
            if any(name != STDIO and _same(path, Path(name)) for name in inputs):
                raise FileError(f"{self.name}: input and output are the same file")
            if path.exists() and not self.force and not _is_special(path):
                raise FileError(f"{self.name}: it is there already; --force replaces it")
            if path.exists() and not os.access(path, os.W_OK):
                raise FileError(f"{self.name}: write-protected")
            folder = path.resolve().parent if path.is_symlink() else path.parent
            if not folder.is_dir():
                raise FileError(f"{self.name}: there is no folder {folder}")
            if not _is_special(path) and not os.access(folder, os.W_OK | os.X_OK):
                raise FileError(f"{self.name}: no right to write in the folder {folder}")

    def write(self, data: bytes) -> None:
        """All of the bytes, or nothing and what was there before.

        Raises:
            FileError: see :meth:`check`; or no room, no right to write, a reader that went away.
        """
        self.check()
        path = Path(self.name)
        with naming(self.name):
            if self.name == STDIO:
                _to_stdout(data)
            elif _is_special(path):
                path.write_bytes(data)
            else:
                _put(path.resolve(), data, self.force)  # through a link, to what it names


def _same(path: Path, other: Path) -> bool:
    """Whether both names are of one regular file."""
    return path.exists() and other.exists() and path.samefile(other) and not _is_special(path)


def _is_special(path: Path) -> bool:
    """A device or a pipe: written to as it is, never replaced."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def say(text: str) -> None:
    """Text on standard output.

    Raises:
        FileError: its reader went away, it is closed, or there is no room.
    """
    with naming(STDIO), failing_once():
        sys.stdout.write(text)
        sys.stdout.flush()


def _to_stdout(data: bytes) -> None:
    with failing_once():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@contextmanager
def failing_once() -> Iterator[None]:
    """A reader that went away, or a full disk behind standard output, is an error once, here, and
    not again when the process ends."""
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def open_closed_streams() -> None:
    """Standard streams that the caller has closed: an error where they are used.  Their numbers
    are taken, or the next file that is opened would get one, and what is printed go into it."""
    wrong_ways = (("stdin", os.O_WRONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY))
    for name, way in wrong_ways:
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(os.open(os.devnull, way), mode, closefd=False))


def _put(path: Path, data: bytes, force: bool) -> None:
    """One file of these bytes, which appears at once, with the rights that open() would give."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), _mode(path))
            os.fsync(file.fileno())
        if force:
            part.replace(path)
        else:
            _link(part, path)
    finally:
        part.unlink(missing_ok=True)


def _mode(path: Path) -> int:
    """Of the file that is there, or of a new one."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _link(part: Path, path: Path) -> None:
    """Give a file its name, unless that is taken."""
    try:
        os.link(part, path)
    except FileExistsError as error:
        raise FileError(f"{path}: it is there by now; --force replaces it") from error
    except OSError:  # a file system without links
        if path.exists():
            raise FileError(f"{path}: it is there by now; --force replaces it") from None
        part.rename(path)
