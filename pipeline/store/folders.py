"""Local inputs: the files below a folder or of a glob, each once, and what keeps one from being so.

Python's ``os.walk`` and ``glob`` swallow what cannot be listed, follow a link to its own folder
until the path is too long (two such links: for ever), and pass over a dangling link.  Here
links are followed, no folder is entered twice, and what is not there is named.  Cost: an ``lstat``
a file more than they take.
"""

from __future__ import annotations

import functools
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipeline.store import patterns
from pipeline.store.errors import NotFound, StorageError, TransientStorage, retry
from pipeline.store.listing import Found, is_shard, printable, why_not_text
from pipeline.store.local import ObjectInfo, file_info

_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip
Wanted = Callable[[str], bool]  # of a path relative to the folder that is walked


def named(path: str) -> ObjectInfo | None:
    """The file of that name; None if there is nothing, or a folder.

    Raises:
        NotFound: a link that leads nowhere.
        StorageError: not a file.
    """
    try:
        found = retry(lambda: os.stat(path), path)
    except NotFound:
        if os.path.islink(path):
            raise NotFound(f"{path}: {_dangling(path)}: mend the link") from None
        return None
    if stat.S_ISDIR(found.st_mode):
        return None
    if why := _no_file(found):
        raise StorageError(f"{path}: {why}")
    return file_info(path, found)


def below(folder: str) -> Found:
    """Everything below a folder."""
    walk = _Walk(folder, is_shard, lambda _: True)
    walk.run()
    return walk.found


def matching(pattern: str) -> Found:
    """The files of a glob; folders that match are named, not entered."""
    folder = os.path.dirname(patterns.static_prefix(pattern))
    rest = pattern[len(folder) :].lstrip("/")
    regex, parts = patterns.glob_regex(rest), rest.split("/")
    deep = parts.index("**") if "**" in parts else len(parts) - 1
    dotted = "/." in f"/{rest}"
    levels = [patterns.glob_regex(part) for part in parts[:deep]]

    def fits(path: str) -> bool:
        return regex.fullmatch(path) is not None and (dotted or "/." not in f"/{path}")

    def enter(path: str) -> bool:
        names = path.split("/")
        if not dotted and names[-1].startswith("."):
            return False
        if len(names) > len(levels) and "**" not in parts:
            return False
        return all(level.fullmatch(name) for level, name in zip(levels, names, strict=False))

    walk = _Walk(folder or "/", fits, enter)
    walk.hides = not dotted
    walk.takes_all = True
    walk.run()
    return walk.found


def each_file_once(shards: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    """Without the second and later names of one file, by way of links; the file's own name stays,
    or else the first one."""
    chosen: dict[str, ObjectInfo] = {}
    real_folder = functools.cache(os.path.realpath)
    for info in sorted(shards, key=lambda info: info.url):
        real = info.url
        if not real.startswith("s3://"):
            folder, name = os.path.split(info.url)
            real = os.path.join(real_folder(folder), name)
            if os.path.islink(real):
                real = os.path.realpath(real)
        if real not in chosen or info.url == real:
            chosen[real] = info
    return sorted(chosen.values(), key=lambda info: info.url)


class _Folder(NamedTuple):
    """A folder to enter, and the real paths of those that it was reached through."""

    path: str
    above: tuple[str, ...] = ()


class _Walk:
    """One walk through a folder; entered first are folders, and after them links to folders, so
    that a folder is entered by its own name where it has one below the first."""

    def __init__(self, root: str, wanted: Wanted, enter: Wanted) -> None:
        self.root, self.wanted, self.enter = root, wanted, enter
        self.takes_all = False  # what is wanted is a shard, whatever its name
        self.hides = True  # leave hidden names alone
        self.found = Found()
        self._entered = set[str]()  # real paths

    def run(self) -> None:
        """All of it."""
        folders, links = deque([_Folder(self.root)]), deque[_Folder]()
        while folders or links:
            folder = folders.popleft() if folders else links.popleft()
            real = os.path.realpath(folder.path)
            # A glob may fit a folder by one of its names alone: there only circles are left out.
            if real in (folder.above if self.takes_all else self._entered):
                continue
            self._entered.add(real)
            for entry in self._entries(folder.path):
                if self._passes(entry):
                    inner = _Folder(entry.path, (*folder.above, real))
                    (links if entry.is_symlink() else folders).append(inner)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            return sorted(retry(lambda: [*os.scandir(folder)], folder), key=lambda e: e.name)
        except TransientStorage:
            raise
        except StorageError as error:
            cause = error.__cause__
            why = (cause.strerror if isinstance(cause, OSError) else None) or str(error)
            self.found.missing[folder] = f"cannot be listed: {why}"
            return []

    def _passes(self, entry: os.DirEntry[str]) -> bool:
        """Whether to enter it; a file is noted."""
        path, name = entry.path, os.path.relpath(entry.path, self.root)
        found = _stat(path)
        if self.hides and entry.name.startswith("."):
            if found is not None and (stat.S_ISDIR(found.st_mode) or is_shard(entry.name)):
                self.found.hidden.add(printable(path))
            return False
        if found is None:
            if self.wanted(name) or (not self.takes_all and entry.is_symlink()):
                self.found.missing[path] = _dangling(path)
        elif stat.S_ISDIR(found.st_mode):
            if self.takes_all and self.wanted(name) or is_shard(entry.name):
                self.found.alike.add(f"{printable(path)}, a folder")
            return self.enter(name)
        elif not self.wanted(name):
            if not self.takes_all:
                self.found.see_other(printable(path))
        elif why := _no_file(found) or why_not_text(path):
            self.found.missing[path] = why
        else:
            self.found.take([file_info(path, found)])
        return False


def _stat(path: str) -> os.stat_result | None:
    """None: a link that leads nowhere, or in a circle."""
    try:
        return retry(lambda: os.stat(path), path)
    except TransientStorage:
        raise
    except StorageError:
        return None


def _dangling(path: str) -> str:
    try:
        return f"a link to {printable(os.readlink(path))}, which is not there or cannot be reached"
    except OSError:
        return "is gone, or cannot be reached"


def _no_file(found: os.stat_result) -> str:
    """What a path is that is neither a folder nor a file."""
    if stat.S_ISREG(found.st_mode):
        return ""
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "not a file")
    return f"is {kind}; a shard is read more than once, and from any place: make it a file"
