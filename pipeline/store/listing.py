"""What is found when inputs are listed: shards, and what is said of everything else.

    s.tar s.TAR s.tar.gz s.tgz s.tar.zst        shards, packed or not
    .cache/s.tar .s.tar ._s.tar                 hidden: left alone, said once
    s.tar.bz2 s.tar.part s.zip, a folder s.tar  alike: not read, named in a warning
    a dangling link, an unreadable folder       missing: the listing fails, and names them all
    notes.txt s.json                            nothing is said

A shard that is missing stops the job before it begins, as a name of a brace pattern does that is
not there: an archive that lacks it would look complete.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.store.errors import NotFound, StorageError
from pipeline.store.local import ObjectInfo

log = logging.getLogger(__name__)

KINDS = "*.tar, *.tar.gz, *.tgz or *.tar.zst"
SHOWN = 10  # names of a kind in one message
_SHARD = re.compile(r"\.(tar(\.gz|\.zst)?|tgz)$", re.IGNORECASE)
_ALIKE = re.compile(
    r"\.tar[.~_-][^/]*$|\.tar~$|\.(tbz2?|txz|tlz|tzst|tar[0-9]+|zip|7z|rar|wds)$", re.IGNORECASE
)


def is_shard(name: str) -> bool:
    """Whether a folder that holds this name holds a shard."""
    return _SHARD.search(name) is not None


def stem(name: str) -> str:
    """A shard's name without what makes it one."""
    return _SHARD.sub("", name)


@dataclass
class Found:
    """What a listing has shown so far."""

    shards: dict[str, ObjectInfo] = field(default_factory=dict)  # by URL
    hidden: set[str] = field(default_factory=set)  # folders and shards
    alike: set[str] = field(default_factory=set)
    missing: dict[str, str] = field(default_factory=dict)  # URL -> why

    def take(self, infos: Iterable[ObjectInfo]) -> None:
        """Objects that are shards because somebody named them."""
        for info in infos:
            self.shards[info.url] = info

    def see(self, info: ObjectInfo, root: str) -> None:
        """An object below the folder or prefix ``root``."""
        hidden = hidden_part(info.url, root)
        if hidden:
            if hidden != info.url or is_shard(hidden):
                self.hidden.add(hidden)
        elif is_shard(info.url):
            self.shards[info.url] = info
        else:
            self.see_other(info.url)

    def see_other(self, url: str) -> None:
        """Something that is not read."""
        if is_shard(url) or _ALIKE.search(url):
            self.alike.add(url)

    def add(self, other: Found) -> None:
        """Another listing's."""
        self.shards |= other.shards
        self.hidden |= other.hidden
        self.alike |= other.alike
        self.missing |= other.missing

    def say(self) -> None:
        """Tell, once, what is there and is not read.

        Raises:
            NotFound: shards that the inputs stand for are missing; names them.
        """
        if self.hidden:
            log.info("hidden, left alone: %s", some(sorted(self.hidden)))
        if self.alike:
            log.warning(
                "not read, though they look like shards: %s; shards are %s: to read the others, "
                "unpack or rename them", some(sorted(self.alike)), KINDS,
            )  # fmt: skip
        if self.missing:
            named = some([f"{printable(url)}: {self.missing[url]}" for url in sorted(self.missing)])
            raise NotFound(
                f"{len(self.missing)} of the inputs cannot be read: {named}. Put them right or "
                "remove them, or name the shards that you mean, also in a list: --input @list.txt"
            )


def hidden_part(url: str, root: str) -> str:
    """The hidden folder or file below ``root`` that an object is in, or is; else nothing."""
    at = url.find("/.", len(root.rstrip("/")))
    if at < 0:
        return ""
    end = url.find("/", at + 1)
    return url if end < 0 else url[:end]


def some(names: list[str]) -> str:
    """Names for a message, not all of very many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def printable(name: str) -> str:
    """A name for a message: bytes that are not UTF-8 as ``\\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def why_not_text(name: str) -> str:
    """What keeps a name out of tables and listings, or nothing."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it"
    return "its name holds a NUL: write one name a line" if "\0" in name else ""


_MARKS = {  # how other encodings than UTF-8 begin
    b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}  # fmt: skip


def lines_of(data: bytes, url: str) -> list[str]:
    """The names in a list: UTF-8 with or without a byte order mark, one a line however lines end;
    empty lines and those that begin with ``#`` are left out.

    Raises:
        StorageError: another encoding, or not a text; names the list and the line.
    """
    mark = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if mark is None and b"\0" in data:
        mark = "UTF-16 or no text at all"
    if mark is not None:
        raise StorageError(
            f"{url}: a list of names must be UTF-8, and this is {mark}: save it as UTF-8 "
            "(iconv -f UTF-16 -t UTF-8)"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise StorageError(
            f"{url}: a list of names must be UTF-8; line {line} has byte "
            f"{data[error.start]:#04x} at {error.start}, which is not: save it as UTF-8 (from "
            "Latin-1: iconv -f LATIN1 -t UTF-8), and rename files whose names are not"
        ) from error
    lines = (line.strip() for line in re.split(r"\r\n|\r|\n", text))
    return [line for line in lines if line and line[0] != "#"]
