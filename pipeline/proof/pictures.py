"""Every image of a shard proved against its source, or a share of them decoded.

    tar --ShardReader--> Sample --prepare, as for encoding--> picture --.
    table --read_rows--> Row --codes, crc32--> decode --> picture ------- PSNR --> Verdict

``compare_shard`` reads the source to its last byte: each sample must have the next row, with its
key, status, size and columns, and each image is decoded from the archive and compared with its
source.  The codes are not computed a second time to be compared: the encoder works in float, and
another machine may flip a code between two codewords.  The PSNR shows whether the picture is this
source's.  ``decode_share`` needs no source.  Memory: the table, and about what encoding takes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import BinaryIO

import numpy as np
import torch

from pipeline.archive import table
from pipeline.archive.table import BadTable, Row
from pipeline.plan import Plan, ShardSpec, Status
from pipeline.proof.sampled import judge
from pipeline.proof.tables import Sayer
from pipeline.proof.verdict import Verdict
from pipeline.store import storage
from pipeline.tars.samples import Sample, ShardReader
from pipeline.work.decoder import batch_codes, stream_codes
from pipeline.work.encoder import Batcher, Ready, prepare
from pipeline.work.readahead import ByteBudget, read_ahead
from pipeline.work.replica import Clock, Replica, batch_size
from pqmim.metrics import psnr

PIXELS_OF = 16  # of so many images of a share, one is decoded to pixels as well


class Hashed(io.RawIOBase, BinaryIO):  # type: ignore[misc]  # as typeshed has it for io.FileIO
    """A source read from its first byte to its last, with its sha256; nothing is stepped over."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream, self._hash, self.count = stream, hashlib.sha256(), 0

    def read(self, size: int | None = -1) -> bytes:
        data = self._stream.read(-1 if size is None else size)
        self._hash.update(data)
        self.count += len(data)
        return data

    def seekable(self) -> bool:
        return False

    @property
    def sha256(self) -> str:
        """Of what was read."""
        return self._hash.hexdigest()


@dataclass(frozen=True)
class _Source:
    """A sample as encoding would see it, and its members that no row has."""

    ready: Ready
    offset: int
    lost: tuple[str, ...]  # extensions


def compare_shard(
    data: bytes, plan: Plan, spec: ShardSpec, replica: Replica, min_psnr: float, found: Verdict,
    clock: Clock,
) -> None:  # fmt: skip
    """Read the source to its end, hold every sample against its row, compare every image.

    Raises:
        pipeline.store.storage.StorageError: the source cannot be read, or was replaced meanwhile.
        BadTable: the table cannot be read.
    """
    say = Sayer(found, spec.shard_id)
    wanted = {*plan.image_keys, *(column.extension for column in plan.kept)}
    batcher, waiting = Batcher(plan), dict[int, Row]()
    with storage.open_read(spec.url, storage.ObjectInfo(spec.url, spec.size, spec.etag)) as stream:
        hashed = Hashed(stream)
        reader = ShardReader(hashed, spec.size, wanted=wanted.__contains__, skip_apple=plan.exact)
        with closing(_sources(reader, plan, replica, clock)) as sources:
            for index, (row, source) in enumerate(zip_longest(table.read_rows(data), sources)):
                if not _same_place(index, row, source, say):
                    return
                assert row is not None and source is not None
                if not _match(row, source, plan, say):
                    clock.advance(source.ready.at, bad=1)
                    continue
                waiting[index] = row
                for batch in batcher.add(index, source.ready):
                    _compare_batch(batch, waiting, plan, replica, min_psnr, say)
                    clock.advance(source.ready.at, images=len(batch))
    for batch in batcher.rest():
        _compare_batch(batch, waiting, plan, replica, min_psnr, say)
    _note_source(reader, hashed, spec, say)
    if not plan.hash:
        found.not_proved.append(
            "the rows have no sha256 of their source images (--hash was not given): that they are "
            "of these files is shown by keys, sizes and pictures"
        )


def _note_source(reader: ShardReader, hashed: Hashed, spec: ShardSpec, say: Sayer) -> None:
    """What is to be said of a source that was read to its end."""
    found = say.verdict
    if reader.apple_double:
        found.members["_* (AppleDouble)"] = reader.apple_double
    for what in reader.damage:
        say(f"source: {what}")
    if hashed.count != spec.size:
        say(f"source: {hashed.count} bytes were read of {spec.size}")
    elif reader.complete:
        found.proved["whole"], found.source_sha256 = 1, hashed.sha256


def _sources(
    reader: ShardReader, plan: Plan, replica: Replica, clock: Clock
) -> Generator[_Source, None, None]:
    """The samples of a tar in order, prepared by the threads of the replica as for encoding."""
    stride = replica.codec.config.stride

    def work(sample: Sample) -> _Source:
        ready = prepare(sample, plan, stride, clock)
        return _Source(ready, sample.offset, tuple(_lost(sample, plan, ready.row)))

    yield from read_ahead(
        reader, work, replica.pool, ByteBudget(replica.queue_bytes),
        size_before=lambda sample: sum(map(len, sample.members.values())),
        size_after=lambda s: 0 if s.ready.pixels is None else s.ready.pixels.nbytes,
    )  # fmt: skip


def _lost(sample: Sample, plan: Plan, row: Row) -> Iterator[str]:
    """Extensions of the members that the archive does not hold as a whole; the image is the row."""
    image = next((e for e in plan.image_keys if e in sample.members), None)
    columns = [k for k in plan.kept if k.is_text]
    held = {image, *(k.extension for k in columns if row.kept.get(k.name) is not None)}
    return (e for e in [*sample.members, *sample.unread, *sample.others] if e not in held)


def _same_place(index: int, row: Row | None, source: _Source | None, say: Sayer) -> bool:
    """Whether row and sample are of one key; the first that are not end the comparison."""
    if row is None and source is not None:
        say(f"sample {index}, key {source.ready.row.key!r}, has no row: the table ends before it")
    elif source is None and row is not None:
        say(f"row {index}, key {row.key!r}: the source ends before it")
    elif row is not None and source is not None and row.key != source.ready.row.key:
        say(f"row {index} has key {row.key!r}, the source has {source.ready.row.key!r} there, at "
            f"byte {source.offset}; nothing was compared from here on")  # fmt: skip
    else:
        return True
    return False


def _match(row: Row, source: _Source, plan: Plan, say: Sayer) -> bool:
    """Count the sample if its row is the one that encoding it gives; whether to compare it."""
    found, fresh = say.verdict, source.ready.row
    for extension in source.lost:
        found.members[extension] = found.members.get(extension, 0) + 1
    if row.status is Status.DUPLICATE_KEY:  # held against the other keys by check_shard
        fresh = replace(fresh, status=row.status)
    names = ["status", "width", "height", "grid_w", "grid_h", "source_sha256"]
    names += ["dropped"] if plan.has_dropped else []
    pairs = [(name, getattr(row, name), getattr(fresh, name)) for name in names]
    for column in plan.kept:
        pairs.append((column.name, row.kept.get(column.name),
                      _as_stored(fresh.kept[column.name], column.type)))  # fmt: skip
    wrong = [
        f"{name} {_short(a)}, the source gives {_short(b)}" for name, a, b in pairs if _differ(a, b)
    ]
    if wrong:
        say(f"key {row.key!r}: the row has {'; '.join(wrong)}")
        return False
    found.proved["samples"] += 1
    return row.status is Status.OK


def _as_stored(value: object, kind: str) -> object:
    """A kept value as its column gives it back."""
    if kind != "float32" or value is None:
        return value
    with np.errstate(over="ignore"):
        return float(np.float32(value))  # type: ignore[arg-type]  # a float, by its column


def _differ(a: object, b: object) -> bool:
    """Two NaNs are the same here."""
    return a != b and not (a != a and b != b)


def _short(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _compare_batch(
    batch: list[tuple[int, Ready]], waiting: dict[int, Row], plan: Plan, replica: Replica,
    min_psnr: float, say: Sayer,
) -> None:  # fmt: skip
    """Decode the rows of a batch and compare them with its pictures."""
    rows = [waiting.pop(index) for index, _ in batch]
    decoded = _decode_codes(rows, plan, replica, say)
    if not decoded:
        return
    pictures = _pixels([codes for _, codes in decoded], plan, replica, say.verdict)
    for (place, _), picture in zip(decoded, pictures, strict=True):
        ready = batch[place][1]
        assert ready.pixels is not None
        part = (slice(None), slice(ready.height), slice(ready.width))
        judge(rows[place].key, psnr(picture[part], ready.pixels[part].numpy()), min_psnr, say)


def _decode_codes(
    rows: Sequence[Row], plan: Plan, replica: Replica, say: Sayer
) -> list[tuple[int, np.ndarray]]:
    """Codes of the rows of one grid, crc32 checked, by place; those that have none are named."""
    read: Callable[[Sequence[Row], Plan, Replica], np.ndarray]
    read = stream_codes if plan.stores_bitstream else batch_codes
    try:
        codes = list(enumerate(read(rows, plan, replica)))
    except BadTable as error:
        if len(rows) == 1:
            say(str(error))
            return []
        alone = [_decode_codes([row], plan, replica, say) for row in rows]
        return [(place, one[0][1]) for place, one in enumerate(alone) if one]
    say.verdict.proved["bitstreams"] += len(codes) if plan.stores_bitstream else 0
    return codes


def _pixels(
    codes: Sequence[np.ndarray], plan: Plan, replica: Replica, found: Verdict
) -> np.ndarray:
    """Codes of one grid -> uint8 [B, 3, H, W], padding included."""
    height, width = (n * plan.stride for n in codes[0].shape[:2])
    pictures = replica.decode(torch.from_numpy(np.stack(codes)), height, width).numpy()
    found.proved["pictures"] += len(pictures)
    return pictures


# A share of the images, without sources -----------------------------------------------------------


def share(shard_id: str, count: int, fraction: float) -> list[int]:
    """Places of a share of ``count`` images, one at least, as the shard's id says."""

    def draw(place: int) -> bytes:
        return hashlib.sha256(f"{shard_id} {place}".encode()).digest()

    return sorted(range(count), key=draw)[: max(1, round(fraction * count))]


def decode_share(
    data: bytes, plan: Plan, spec: ShardSpec, replica: Replica, fraction: float, found: Verdict,
    clock: Clock,
) -> None:  # fmt: skip
    """Decode a share of the images to codes, and one in sixteen of these to pixels: all, if the
    share is everything.

    Raises:
        BadTable: the table cannot be read.
    """
    say = Sayer(found, spec.shard_id)
    chosen = share(spec.shard_id, found.proved["images"], fraction)
    shown = set(chosen if fraction == 1 else chosen[: -(-len(chosen) // PIXELS_OF)])
    buckets: dict[tuple[int, int, bool], list[Row]] = {}
    places, wanted = iter(range(found.proved["images"])), set(chosen)
    for row in table.read_rows(data):
        if row.status is not Status.OK or (place := next(places)) not in wanted:
            continue
        shape = (row.grid_h, row.grid_w, place in shown)
        bucket = buckets.setdefault(shape, [])
        bucket.append(row)
        height, width = shape[0] * plan.stride, shape[1] * plan.stride
        if len(bucket) == batch_size(plan.batch_pixels, height, width):
            clock.advance(images=len(bucket))
            _decode_batch(buckets.pop(shape), shape[2], plan, replica, say)
    for shape, rows in buckets.items():
        _decode_batch(rows, shape[2], plan, replica, say)


def _decode_batch(rows: list[Row], pixels: bool, plan: Plan, replica: Replica, say: Sayer) -> None:
    decoded = _decode_codes(rows, plan, replica, say)
    if pixels and decoded:
        _pixels([codes for _, codes in decoded], plan, replica, say.verdict)
