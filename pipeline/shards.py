"""A WebDataset tar as a stream of samples, with proof that it was read to its end.

Python's tarfile, and webdataset on top of it, end a shard silently at the first bad header: of 500
samples with one damaged header 150 came out, without an exception.  And a tar cut at a member
boundary reads as a clean, shorter one.  So this module walks the blocks itself: header checksums,
search for the next good header, and an account of every byte up to the end-of-archive blocks and
the object's size.  Keys, extensions and grouping are webdataset 1.0.2's.  Memory: one sample, a
read buffer, and a second copy of a member over 256 KiB while it is read.

What webdataset drops or raises on stays visible: a regular file without an extension is a sample of
its own, with extension ``""``; a second member of one name begins a second sample of that key; a
link, a sparse or an oversized member is named in ``Sample.unread``.  Directories and ``__x__`` meta
files are skipped, as there.  Names that are not UTF-8 carry surrogate escapes, as in tarfile.

A header block: name 0:100, size 124:136, checksum 148:156, type 156, magic 257:263, prefix 345:500.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

MAX_MEMBER_BYTES = 1 << 30
MAX_DAMAGE = 32  # messages kept of one shard; they go into its ledger entry

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_CHUNK = 1 << 18  # bytes asked of the stream at once; 16 times more for large members
_SEEK_BYTES = 4 << 20  # from here on a new range request costs less than reading on
_MAX_EXTENDED = 1 << 20  # bytes of a PAX record or a long name; the kernel's limit on paths is 4096

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's base_plus_ext
_META = re.compile(r"__[^/]*__($|/)|__[^/]*(?<=__)$")  # both of webdataset's tests
_PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=\n]+)=")
_REGULAR = (b"0", b"\0", b"7")
_NOT_REGULAR = {b"1": "a hard link", b"2": "a symbolic link"}
_DATALESS = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, directory, fifo
_EXTENDED = (b"x", b"X", b"g", b"L", b"K")


@dataclass(frozen=True)
class Sample:
    """Consecutive members of one key."""

    key: str
    members: dict[str, bytes]  # by extension, lower case
    offset: int  # of its first header
    unread: dict[str, str] = field(default_factory=dict)  # wanted extension -> why it is not here


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
    ) -> None:
        self._tar = _Tar(stream, size)
        self._wanted = wanted
        self._max_member_bytes = max_member_bytes
        self._sample: Sample | None = None  # in progress
        self._seen: set[str] = set()  # its extensions, unwanted ones too
        self._newest: tuple[Sample, str] | None = None  # last member read
        self.members = 0
        self.samples = 0
        self.complete = False

    @property
    def damage(self) -> tuple[str, ...]:
        """What is wrong with the tar: byte offset and cause of each."""
        messages = self._tar.damage
        more = len(messages) - MAX_DAMAGE
        return (*messages[:MAX_DAMAGE], *([f"and {more} more"] if more > 0 else []))

    @property
    def bytes_read(self) -> int:
        """Position in the object."""
        return self._tar.position

    def __iter__(self) -> Iterator[Sample]:
        for member in self._tar.members():
            if member is None:
                self._drop_overrun()
                yield from self._close()
                continue
            self.members += 1
            match = _NAME.match(member.name)
            regular = member.kind in _REGULAR or member.sparse
            if _META.match(member.name) or (match is None and not regular):
                self._tar.skip(member.size)
            elif match is None:
                yield from self._lone(member)
            else:
                key, extension = match[1], match[2].lower()
                if self._sample is None or key != self._sample.key or extension in self._seen:
                    yield from self._close()
                    self._sample = Sample(key, {}, member.offset)
                self._load(self._sample, extension, member)
        yield from self._close()
        self.complete = not self._tar.damage

    def _close(self) -> Iterator[Sample]:
        """Emit the sample in progress, unless not one of its members is complete."""
        sample, self._sample = self._sample, None
        if sample is not None and self._seen:
            self.samples += 1
            yield sample
        self._seen = set()

    def _lone(self, member: _Member) -> Iterator[Sample]:
        """A file without an extension is outside the grouping, as in webdataset, but not lost."""
        sample = Sample(member.name, {}, member.offset)
        around, self._seen = self._seen, set()
        self._load(sample, "", member)
        complete, self._seen = bool(self._seen), around
        if complete:
            self.samples += 1
            yield sample

    def _load(self, sample: Sample, extension: str, member: _Member) -> None:
        wanted = self._wanted is None or self._wanted(extension)
        reason = self._refusal(member)
        if wanted and not reason:
            data = self._tar.read(member.size)
            if complete := data is not None:
                sample.members[extension] = data
                self._newest = sample, extension
        else:
            complete = self._tar.skip(member.size)
            if complete and wanted:
                sample.unread[extension] = reason
        if complete:
            self._seen.add(extension)
        else:
            sample.unread[extension] = "the shard ends inside it"

    def _refusal(self, member: _Member) -> str:
        """Why this member is not read, or nothing."""
        if member.sparse:
            self._tar.damage.append(f"byte {member.offset}: sparse member {member.name!r} refused")
            return "a sparse member"
        if member.kind not in _REGULAR:
            return _NOT_REGULAR.get(member.kind, f"a member of type {member.kind!r}")
        if member.size > self._max_member_bytes:
            return f"{member.size} bytes, over the limit of {self._max_member_bytes}"
        return ""

    def _drop_overrun(self) -> None:
        if self._tar.overrun and self._newest is not None:
            sample, extension = self._newest
            sample.members.pop(extension, None)
            sample.unread[extension] = "bytes are missing inside it"
        self._newest = None


class _Header(NamedTuple):
    name: str
    size: int
    kind: bytes
    sparse_list: bool  # old GNU sparse: more of its block list follows


class _Member(NamedTuple):
    name: str
    size: int  # of the data that follow
    kind: bytes
    offset: int  # of the header block
    sparse: bool


class _Tar:
    """The blocks: members one by one, and recovery where they are not what they should be."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self._buffer = b""
        self._at = 0  # next byte in the buffer
        self._base = 0  # of the buffer in the object
        self._last: tuple[int, bytes, bytes] | None = None  # offset, data and padding just read
        self._cut = False  # the object ended inside what was read or skipped last
        self._global: dict[bytes, bytes] = {}
        self._local: dict[bytes, bytes] = {}
        self.damage: list[str] = []
        self.overrun = False  # the member read last reaches over a good header

    @property
    def position(self) -> int:
        return self._base + self._at

    def members(self) -> Iterator[_Member | None]:
        """Every member; the caller reads or skips each.  None: damage, the sample ends here."""
        going_on = True
        while going_on:
            self.overrun = False
            offset = self.position
            block = self._take(_BLOCK)
            header = _parse_header(block)
            if block == _ZEROS:
                going_on = self._pass_zeros(offset)
            elif header is None:
                cause = self._bad_header(offset, block)
                self._at -= len(block)
                going_on = self._recover(cause, offset)
            elif header.kind in _EXTENDED:
                if self._extend(header):
                    continue
                cause = f"byte {offset}: unreadable extended header"
                going_on = self._after_failure(cause, header.size)
            else:
                member = self._member(header, offset)
                yield member
                if not self._cut:
                    continue
                going_on = self._after_failure(f"member {member.name!r}", member.size)
            yield None

    def read(self, size: int) -> bytes | None:
        """The data of the member just yielded; None if the object ends before they do."""
        offset = self.position
        data = self._take(size)
        self._last = offset, data, self._take(-size % _BLOCK)
        self._cut = len(data) < size
        return None if self._cut else data

    def skip(self, size: int) -> bool:
        """Step over the data of the member just yielded; False if the object ends before."""
        self._last = None
        left = size + -size % _BLOCK - (len(self._buffer) - self._at)
        if left <= 0:
            self._at = len(self._buffer) + left
            return True
        self._base += len(self._buffer)
        self._buffer, self._at = b"", 0
        if left > _SEEK_BYTES and self._stream.seekable():
            # All but the last byte: a seek goes past the end without a word, a read does not.
            step = min(left, self._size - self._base) - 1
            if step > 0:
                self._stream.seek(step, 1)
                self._base += step
                left -= step
        while left and (chunk := self._stream.read(min(left, _CHUNK))):
            self._base += len(chunk)
            left -= len(chunk)
        self._cut = left > 0
        return not self._cut

    def _take(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer at the end of the object."""
        if len(self._buffer) - self._at < count:
            self._fill(count)
        piece = self._buffer[self._at : self._at + count]
        self._at += len(piece)
        return piece

    def _fill(self, count: int) -> None:
        parts = [self._buffer[self._at :]]
        have = len(parts[0])
        self._base += self._at
        self._at = 0
        while have < count:
            chunk = self._stream.read(min(max(count - have, _CHUNK), 16 * _CHUNK))
            if not chunk:
                break
            parts.append(chunk)
            have += len(chunk)
        self._buffer = b"".join(parts)

    def _member(self, header: _Header, offset: int) -> _Member:
        """Apply the extended headers; walk over the block list of an old GNU sparse member."""
        extended = {**self._global, **self._local}
        self._local = {}
        path = extended.get(b"GNU.sparse.name", extended.get(b"path"))
        name = header.name if path is None else _text(path).rstrip("/")
        size = int(extended.get(b"size", header.size))
        sparse = header.kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in extended)
        if header.kind == b"S":
            more = header.sparse_list
            while more:
                more = self._take(_BLOCK)[504:505] not in (b"", b"\0")
        size = 0 if header.kind in _DATALESS else size
        return _Member(name, size, header.kind, offset, sparse)

    def _extend(self, header: _Header) -> bool:
        """Remember a PAX or GNU long-name header for the member after it; the first one wins."""
        if header.size > _MAX_EXTENDED:
            self.skip(header.size)
            return False
        data = self.read(header.size)
        self._last = None
        if data is None:
            return False
        if header.kind == b"L":
            self._local = {b"path": data.split(b"\0")[0], **self._local}
        elif header.kind != b"K":
            records = _pax_records(data)
            if records is None:
                return False
            if header.kind == b"g":
                self._global.update(records)
            else:
                self._local = {**records, **self._local}
        return True

    def _pass_zeros(self, offset: int) -> bool:
        """After one block of zeros: True if anything but zeros follows, which is damage."""
        self._last = None
        zeros = _BLOCK
        while chunk := self._take(_CHUNK):
            rest = chunk.lstrip(b"\0")
            if rest:
                blocks = (len(chunk) - len(rest)) // _BLOCK
                zeros += blocks * _BLOCK
                self._at -= len(chunk) - blocks * _BLOCK
                what = "end-of-archive blocks" if zeros > _BLOCK else "a lone block of zeros"
                self.damage.append(f"byte {offset}: {what}, but data follow at {self.position}")
                return True
            zeros += len(chunk)
        if zeros < 2 * _BLOCK:
            self.damage.append(self._truncated("one end-of-archive block of two"))
        elif self.position < self._size:
            self.damage.append(self._truncated("after the end-of-archive blocks"))
        elif self.position > self._size:
            message = f"byte {self._size}: the object goes on to byte {self.position}"
            self.damage.append(f"{message}, past the size it was listed with")
        return False

    def _bad_header(self, offset: int, block: bytes) -> str:
        if len(block) == _BLOCK:
            packed = " of a gzip file" if offset == 0 and block[:2] == b"\x1f\x8b" else ""
            return f"byte {offset}: bad header{packed}"
        return self._truncated("inside a header" if block else "no end-of-archive blocks")

    def _truncated(self, where: str) -> str:
        end = self.position
        missing = f" ({self._size - end} before the object's end)" if end < self._size else ""
        return f"truncated at byte {end}{missing}: {where}"

    def _after_failure(self, what: str, size: int) -> bool:
        """Note an unreadable extended header, or go on where the object ended inside ``what``."""
        self._local = {}
        if not self._cut:
            self.damage.append(what)
            return True
        self._cut = False
        return self._recover(self._truncated(f"{what} has {size} bytes"), self.position)

    def _recover(self, cause: str, offset: int) -> bool:
        """Go to the next good header and note the damage; False if there is none.

        The search begins with the data read last: when bytes are missing, that member has swallowed
        the header after it.
        """
        self._local = {}
        if self._last is not None:
            start, data, padding = self._last
            self._buffer = data + padding + self._buffer[self._at :]
            self._base, self._at, self._last = start, 0, None
        found = self._find_header()
        place = self.position
        self.overrun = found and place < offset
        if self.overrun:
            cause += f"; bytes are missing before it, read on at byte {place}"
        elif found:
            cause += f"; {place - offset} bytes skipped"
        elif place > offset:
            cause += f"; no good header in the {place - offset} bytes from there"
        if offset == 0 and not found and place >= self._size:
            cause = f"not a tar: {cause}" if place else "not a tar: the object is empty (0 bytes)"
        self.damage.append(cause)
        return found

    def _find_header(self) -> bool:
        """Move to the next good header at any alignment, or to the end of the object."""
        while True:
            magic = self._buffer.find(b"ustar", self._at + 257)
            if magic >= 0:
                self._at = magic - 257
                block = self._take(_BLOCK)
                self._at -= len(block)
                if _parse_header(block) is not None:
                    return True
                self._at += 1
                continue
            self._at = max(self._at, len(self._buffer) - 261)  # the magic may straddle two reads
            have = len(self._buffer) - self._at
            self._fill(have + 1)
            if len(self._buffer) == have:
                self._at = have
                return False


def _parse_header(block: bytes) -> _Header | None:
    """The fields of a header block; None if the checksum says that it is not one."""
    if len(block) < _BLOCK:
        return None
    try:
        stored = _number(block[148:156])
        if not _checksum_is(stored, block[:148] + b" " * 8 + block[156:]):
            return None
        size = _number(block[124:136])
    except ValueError:
        return None
    if size < 0:
        return None
    kind = block[156:157]
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    if kind == b"\0" and name.endswith("/"):
        kind = b"5"  # a directory in the tar of Unix V7
    return _Header(name, size, kind, sparse_list=block[482] != 0)


def _checksum_is(stored: int, block: bytes) -> bool:
    """Sum of the bytes, or of signed bytes as some old tars have it.

    The low half of adler32 is 1 + the sum, modulo 65521: ten times faster than ``sum``.
    """
    if zlib.adler32(block) & 0xFFFF == (stored + 1) % 65521:
        return True
    return stored == sum(byte - 256 if byte > 127 else byte for byte in block)


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256 where the first byte is 0x80 or 0xff.

    Raises:
        ValueError: neither.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] == 0xFF:
        return int.from_bytes(field, "big", signed=True)
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax_records(data: bytes) -> dict[bytes, bytes] | None:
    """``length keyword=value\\n`` records; None if malformed."""
    records = {}
    at = 0
    while at < len(data) and data[at]:
        match = _PAX_RECORD.match(data, at)
        if match is None:
            return None
        end = at + int(match[1])
        if end <= match.end() or data[end - 1 : end] != b"\n":
            return None
        records[match[2]] = data[match.end() : end - 1]
        at = end
    if not records.get(b"size", b"0").isdigit():
        return None
    return records
