"""A WebDataset tar as a stream of samples, with proof that it was read to its end.

Python's tarfile, and webdataset on top of it, end a shard silently at the first bad header: of 500
samples with one damaged header 150 came out, without an exception.  And a tar cut at a member
boundary reads as a clean, shorter one.  So tarblocks.py walks the blocks itself: header checksums,
search for the next good header, and an account of every byte up to the end-of-archive blocks and
the object's size.  Keys, extensions and grouping are webdataset 1.0.2's.  Memory: one sample, a
read buffer, and a second copy of a member over 256 KiB while it is read.

What webdataset drops or raises on stays visible: a regular file without an extension is a sample of
its own, with extension ``""``; a second member of one name begins a second sample of that key; a
link, a sparse or an oversized member is named in ``Sample.unread``.  Directories and ``__x__`` meta
files are skipped, as there.  What macOS packs beside every file (``._x``, by name and first bytes)
is skipped where the reader is told to: it would stand between the members of every sample.  Packed
tars are unpacked on the way; offsets are then of the tar inside.  Names that are not UTF-8 carry
surrogate escapes, as in tarfile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from pipeline.tars import packed
from pipeline.tars.blocks import TarBlocks, TarMember

MAX_MEMBER_BYTES = 1 << 30
MAX_DAMAGE = 32  # messages kept of one shard; they go into its ledger entry

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's base_plus_ext
_META = re.compile(r"__[^/]*__($|/)|__[^/]*(?<=__)$")  # both of webdataset's tests
_APPLE_DOUBLE = b"\0\5\x16\7"
_REGULAR = (b"0", b"\0", b"7")
_NOT_REGULAR = {b"1": "a hard link", b"2": "a symbolic link"}


@dataclass(frozen=True)
class Sample:
    """Consecutive members of one key."""

    key: str
    members: dict[str, bytes]  # by extension, lower case
    offset: int  # of its first header
    unread: dict[str, str] = field(default_factory=dict)  # wanted extension -> why it is not here
    too_large: set[str] = field(default_factory=set)  # those of them that are over the limit
    others: list[str] = field(default_factory=list)  # extensions that nobody asked for
    at: int = 0  # bytes of the object that were read when it began


class ShardReader:
    """Iterate once for the samples in tar order; the account of the tar is whole after that.

    A complete shard has no ``damage``, which also says that ``bytes_read`` (read or stepped over)
    equals the object's size and that the end-of-archive blocks were there.  Bad data never raises;
    what the stream raises goes through.
    """

    def __init__(
        self,
        stream: BinaryIO,
        size: int,
        wanted: Callable[[str], bool] | None = None,
        max_member_bytes: int = MAX_MEMBER_BYTES,
        skip_apple: bool = True,
    ) -> None:
        """``wanted``: extensions to read; ``skip_apple``: without AppleDouble members."""
        start = packed.peek(stream)
        kind = packed.kind_of(start)
        self._unpacked = packed.Unpacked(stream, start, kind) if kind else None
        if self._unpacked is None:
            self._tar = TarBlocks(stream, size, start)
        else:
            self._tar = TarBlocks(self._unpacked, None)
        self._size, self._skip_apple, self.apple_double = size, skip_apple, 0
        self._wanted = wanted
        self._max_member_bytes = max_member_bytes
        self._sample: Sample | None = None  # in progress
        self._seen: set[str] = set()  # its extensions, unwanted ones too
        self._newest: tuple[Sample, str] | None = None  # member before the damage
        self.members = 0
        self.samples = 0
        self.complete = self._over = False

    @property
    def damage(self) -> tuple[str, ...]:
        """What is wrong with the tar: byte offset and cause of each."""
        messages = self._broken() + self._tar.damage
        more = len(messages) - MAX_DAMAGE
        return (*messages[:MAX_DAMAGE], *([f"and {more} more"] if more > 0 else []))

    def _broken(self) -> list[str]:
        """What is wrong with the packing."""
        if self._unpacked is None:
            return []
        if self._unpacked.failure:
            return [self._unpacked.failure]
        if self._over and self.bytes_read != self._size:
            return [f"{self.bytes_read} bytes were read of an object of {self._size}"]
        return []

    @property
    def bytes_read(self) -> int:
        """Position in the object."""
        return self._unpacked.packed_position if self._unpacked else self._tar.position

    def __iter__(self) -> Iterator[Sample]:
        for member in self._tar.members():
            if member is None:
                if not self._drop_overrun():
                    yield from self._close()
                continue
            self.members += 1
            self._newest = None
            match = _NAME.match(member.name)
            regular = member.kind in _REGULAR or member.sparse
            if self._is_apple_double(member):
                self.apple_double += 1
                self._tar.skip(member.size)
            elif _META.match(member.name) or (match is None and not regular):
                self._tar.skip(member.size)
            elif match is None:
                yield from self._lone(member)
            else:
                key, extension = match[1], match[2].lower()
                if self._sample is None or key != self._sample.key or extension in self._seen:
                    yield from self._close()
                    self._sample = Sample(key, {}, member.offset, at=self._at(member))
                self._load(self._sample, extension, member)
        yield from self._close()
        self._over = True
        self.complete = not self.damage

    def _at(self, member: TarMember) -> int:
        return member.offset if self._unpacked is None else self.bytes_read

    def _is_apple_double(self, member: TarMember) -> bool:
        """Whether this is what macOS keeps of a file beside it: resource fork and attributes."""
        name = member.name.rsplit("/", 1)[-1]
        if not (self._skip_apple and name.startswith("._") and member.kind in _REGULAR):
            return False
        return member.size >= 4 and self._tar.peek(4) == _APPLE_DOUBLE

    def _close(self) -> Iterator[Sample]:
        """Emit the sample in progress, unless not one of its members is complete."""
        sample, self._sample = self._sample, None
        if sample is not None and self._seen:
            self.samples += 1
            yield sample
        self._seen = set()

    def _lone(self, member: TarMember) -> Iterator[Sample]:
        """A file without an extension is outside the grouping, as in webdataset, but not lost."""
        sample = Sample(member.name, {}, member.offset, at=self._at(member))
        around, self._seen = self._seen, set()
        self._load(sample, "", member)
        complete, self._seen, self._newest = bool(self._seen), around, None
        if complete:
            self.samples += 1
            yield sample

    def _load(self, sample: Sample, extension: str, member: TarMember) -> None:
        self._newest = sample, extension
        wanted = self._wanted is None or self._wanted(extension)
        reason = self._refusal(member)
        if wanted and not reason:
            data = self._tar.read(member.size)
            if complete := data is not None:
                sample.members[extension] = data
        else:
            complete = self._tar.skip(member.size)
            if complete and wanted:
                sample.unread[extension] = reason
                if member.size > self._max_member_bytes:
                    sample.too_large.add(extension)
            elif complete:
                sample.others.append(extension)
        if complete:
            self._seen.add(extension)
        else:
            sample.unread[extension] = "the shard ends inside it"

    def _refusal(self, member: TarMember) -> str:
        """Why this member is not read, or nothing."""
        if member.sparse:
            self._tar.damage.append(f"byte {member.offset}: sparse member {member.name!r} refused")
            return "a sparse member"
        if member.kind not in _REGULAR:
            return _NOT_REGULAR.get(member.kind, f"a member of type {member.kind!r}")
        if member.size > self._max_member_bytes:
            return f"{member.size} bytes, over the limit of {self._max_member_bytes}"
        return ""

    def _drop_overrun(self) -> bool:
        """Take back a member that had swallowed the header after it; its sample goes on."""
        newest, self._newest = self._newest, None
        if not self._tar.overrun or newest is None:
            return False
        sample, extension = newest
        sample.members.pop(extension, None)
        if extension not in sample.others:
            sample.unread[extension] = "bytes are missing inside it"
        return True
