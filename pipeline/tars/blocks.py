"""The 512-byte blocks of a tar: headers, data, damage, and an account of every byte.

Walks the blocks itself because Python's tarfile ends silently at the first bad header.  Here a bad
header is named in ``damage`` and the search for the next good one goes on: from the start of the
data before it, read or skipped, because bytes that are missing there, or a size that lies, make a
member swallow the headers after it.  Sparse members are told apart, not expanded.

What no reader can tell from a nested tar: a wrong size, under a right checksum, that ends exactly
before a later header.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pipeline.tars.headers import BLOCK, Header, packed_format, parse_header, pax_records, text

_ZEROS = bytes(BLOCK)
_CHUNK = 1 << 18  # bytes asked of the stream at once; 16 times more for large members
_SEEK_BYTES = 4 << 20  # from here on a new range request costs less than reading on
_MAX_EXTENDED = 64 << 20  # bytes of PAX records: a resource fork among them may have megabytes
_DATALESS = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, directory, fifo
_EXTENDED = (b"x", b"X", b"g", b"L", b"K")


class TarMember(NamedTuple):
    name: str
    size: int  # of the data that follow
    kind: bytes
    offset: int  # of the header block
    sparse: bool


class TarBlocks:
    """The blocks: members one by one, and recovery where they are not what they should be."""

    def __init__(self, stream: BinaryIO, size: int | None, start: bytes = b"") -> None:
        """``size``: of the tar, None if it is not known; ``start``: what was read of it already."""
        self._stream = stream
        self._size = size
        self._buffer = start
        self._at = 0  # next byte in the buffer
        self._base = 0  # of the buffer in the object
        self._last: tuple[int, bytes, bytes] | None = None  # offset, data and padding just read
        self._skipped: int | None = None  # where the data just skipped begin
        self._cut = False  # the object ended inside what was read or skipped last
        self._global: dict[bytes, bytes] = {}
        self._local: dict[bytes, bytes] = {}
        self.damage: list[str] = []
        self.overrun = False  # the member read last reaches over a good header

    @property
    def position(self) -> int:
        return self._base + self._at

    def members(self) -> Iterator[TarMember | None]:
        """Every member; the caller reads or skips each.  None: damage, see ``overrun``."""
        going_on = True
        while going_on:
            self.overrun = False
            offset = self.position
            block = self._take(BLOCK)
            header = parse_header(block)
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
        left = self._left(offset)
        if size > max(_SEEK_BYTES, left) and self._stream.seekable():
            self.skip(size)  # more than there is: no reason to hold it all
            return None
        self._last = self._skipped = None
        data = self._take(size)
        self._last = offset, data, self._take(-size % BLOCK)
        self._cut = len(data) < size
        return None if self._cut else data

    def skip(self, size: int) -> bool:
        """Step over the data of the member just yielded; False if the object ends before."""
        self._last, self._skipped = None, self.position
        left = size + -size % BLOCK - (len(self._buffer) - self._at)
        if left <= 0:
            self._at = len(self._buffer) + left
            return True
        self._base += len(self._buffer)
        self._buffer, self._at = b"", 0
        if left > _SEEK_BYTES and self._stream.seekable():
            # All but the last byte: a seek goes past the end without a word, a read does not.
            step = min(left, self._left(self._base)) - 1
            if step > 0:
                self._stream.seek(step, 1)
                self._base += step
                left -= step
        while left and (chunk := self._stream.read(min(left, _CHUNK))):
            self._base += len(chunk)
            left -= len(chunk)
        self._cut = left > 0
        return not self._cut

    def peek(self, count: int) -> bytes:
        """The next bytes, which stay there."""
        if len(self._buffer) - self._at < count:
            self._fill(count)
        return self._buffer[self._at : self._at + count]

    def _left(self, offset: int) -> int:
        """Bytes from there to the end of the tar; many, if its size is not known."""
        return sys.maxsize if self._size is None else self._size - offset

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

    def _member(self, header: Header, offset: int) -> TarMember:
        """Apply the extended headers; walk over the block list of an old GNU sparse member."""
        extended = {**self._global, **self._local}
        self._local = {}
        path = extended.get(b"GNU.sparse.name", extended.get(b"path"))
        name = header.name if path is None else text(path).rstrip("/")
        size = int(extended.get(b"size", header.size))
        sparse = header.kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in extended)
        if header.kind == b"S":
            more = header.sparse_list
            while more:
                more = self._take(BLOCK)[504:505] not in (b"", b"\0")
        size = 0 if header.kind in _DATALESS else size
        return TarMember(name, size, header.kind, offset, sparse)

    def _extend(self, header: Header) -> bool:
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
            records = pax_records(data)
            if records is None:
                return False
            if header.kind == b"g":
                self._global.update(records)
            else:
                self._local = {**records, **self._local}
        return True

    def _pass_zeros(self, offset: int) -> bool:
        """After one block of zeros: True if anything but zeros follows, which is damage."""
        self._last = self._skipped = None
        zeros = BLOCK
        while chunk := self._take(_CHUNK):
            rest = chunk.lstrip(b"\0")
            if rest:
                blocks = (len(chunk) - len(rest)) // BLOCK
                zeros += blocks * BLOCK
                self._at -= len(chunk) - blocks * BLOCK
                what = "end-of-archive blocks" if zeros > BLOCK else "a lone block of zeros"
                self.damage.append(f"byte {offset}: {what}, but data follow at {self.position}")
                return True
            zeros += len(chunk)
        if zeros < 2 * BLOCK:
            self.damage.append(self._truncated("one end-of-archive block of two"))
        elif self._left(self.position) > 0 and self._size is not None:
            self.damage.append(self._truncated("after the end-of-archive blocks"))
        elif self._left(self.position) < 0:
            message = f"byte {self._size}: the object goes on to byte {self.position}"
            self.damage.append(f"{message}, past the size it was listed with")
        return False

    def _bad_header(self, offset: int, block: bytes) -> str:
        if len(block) == BLOCK:
            packed = packed_format(block) if offset == 0 else None
            return f"byte {offset}: bad header" + (f" of a {packed} file" if packed else "")
        return self._truncated("inside a header" if block else "no end-of-archive blocks")

    def _truncated(self, where: str) -> str:
        end = self.position
        known = self._size is not None and end < self._size
        missing = f" ({self._left(end)} before the object's end)" if known else ""
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

        The search begins with the data read or skipped last: when bytes are missing, that member
        has swallowed the header after it.
        """
        self._local = {}
        if self._last is not None:
            start, data, padding = self._last
            self._buffer = data + padding + self._buffer[self._at :]
            self._base, self._at = start, 0
        elif self._skipped is not None:
            self._go_back(self._skipped)
        self._last = self._skipped = None
        found = self._find_header()
        place = self.position
        self.overrun = found and place < offset
        if self.overrun:
            cause += f"; bytes are missing before it or a size is wrong, read on at byte {place}"
        elif found:
            cause += f"; {place - offset} bytes skipped"
        elif place > offset:
            cause += f"; no good header in the {place - offset} bytes from there"
        if offset == 0 and not found and (self._size is None or place >= self._size):
            cause = f"not a tar: {cause}" if place else "not a tar: the object is empty (0 bytes)"
        self.damage.append(cause)
        return found

    def _go_back(self, offset: int) -> None:
        """Read on at ``offset``, if that is still in the buffer or the stream can seek."""
        if offset >= self._base:
            self._at = offset - self._base
        elif self._stream.seekable():
            self._stream.seek(offset)
            self._buffer, self._base, self._at = b"", offset, 0

    def _find_header(self) -> bool:
        """Move to the next good header at any alignment, or to the end of the object."""
        while True:
            magic = self._buffer.find(b"ustar", self._at + 257)
            if magic >= 0:
                self._at = magic - 257
                block = self._take(BLOCK)
                self._at -= len(block)
                if parse_header(block) is not None:
                    return True
                self._at += 1
                continue
            self._at = max(self._at, len(self._buffer) - 261)  # the magic may straddle two reads
            have = len(self._buffer) - self._at
            self._fill(have + 1)
            if len(self._buffer) == have:
                self._at = have
                return False
