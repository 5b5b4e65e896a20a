"""One shard through one replica: tar in, code table out.

    open_read -> ShardReader -> Sample --decode threads--> Ready --Batcher--> codec.encode
        -> codes -> codec.entropy_encode -> Row -> write_table -> commit -> ShardResult

Threads and queues live inside the replica; nothing goes through Ray but a ShardSpec in and a
ShardResult out.  Rows are in tar order and batches are a function of the shard and the plan alone,
so any number of replicas, threads and attempts gives the same bytes.

The entropy model takes its turns on the device between the batches of the autoencoder; its time is
stage ``code``.  The range coder holds the GIL, 0.1 us a code: 0.3 ms for 256 x 256 pixels at
quality 8, where the model takes 100 to 150 ms of a core and lets the decode threads run.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.archive import losses, table
from pipeline.archive.table import IMAGE_NOTE, MAX_GRID, Row
from pipeline.plan import Facts, Pictures, Plan, ShardResult, ShardSpec, Status
from pipeline.store import storage
from pipeline.tars.samples import Sample, ShardReader
from pipeline.work import images
from pipeline.work.readahead import ByteBudget, read_ahead
from pipeline.work.replica import PENDING_BATCHES, Clock, Replica, batch_size
from pipeline.work.shard import payload_bytes, run_shard
from pqmim.autoencoder.padding import reflect_pad
from pqmim.metrics import psnr


@dataclass(frozen=True)
class Ready:
    """A sample whose image is decoded, or is known to be bad."""

    row: Row
    pixels: Tensor | None  # uint8 [3, H, W], padded to multiples of the stride
    at: int  # bytes of the shard that were read before the sample
    height: int = 0  # as encoded, without padding
    width: int = 0


class Batcher:
    """Groups pictures of one padded shape; what is full, or too much to keep, comes out."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.pending = plan, 0
        self.buckets: dict[tuple[int, int], list[tuple[int, Ready]]] = {}

    def add(self, index: int, ready: Ready) -> Iterator[list[tuple[int, Ready]]]:
        """Add a picture; yields full batches, and the largest bucket when too many pixels wait."""
        assert ready.pixels is not None
        shape = (ready.pixels.shape[1], ready.pixels.shape[2])
        bucket = self.buckets.setdefault(shape, [])
        bucket.append((index, ready))
        self.pending += shape[0] * shape[1]
        if len(bucket) == batch_size(self.plan.batch_pixels, *shape):
            yield self._take(shape)
        while self.pending > PENDING_BATCHES * self.plan.batch_pixels:
            yield self._take(max(self.buckets, key=lambda s: s[0] * s[1] * len(self.buckets[s])))

    def rest(self) -> Iterator[list[tuple[int, Ready]]]:
        """What is left, in the order in which the shapes first came."""
        for shape in list(self.buckets):
            yield self._take(shape)

    def _take(self, shape: tuple[int, int]) -> list[tuple[int, Ready]]:
        batch = self.buckets.pop(shape)
        self.pending -= shape[0] * shape[1] * len(batch)
        return batch


def prepare(sample: Sample, plan: Plan, stride: int, clock: Clock) -> Ready:
    """Sample -> decoded picture or a row that says why there is none."""
    kept, problems = {}, []
    for column in plan.kept:
        kept[column.name], problem = column.value(sample.members)
        problems += [problem] if problem else []
    row = Row(table.text(sample.key), Status.OK, "; ".join(problems)[:200] or None, kept=kept)
    extension = next((e for e in plan.image_keys if e in sample.members), None)
    if extension is None:
        return Ready(_missing(row, sample, plan.image_keys), None, sample.at)
    data = sample.members[extension]
    if plan.hash:
        row = replace(row, source_sha256=hashlib.sha256(data).digest())
    with clock.stage("decode"):
        try:
            picture = images.decode(data, plan.pictures)
        except images.BadImage as bad:
            failed = replace(row, status=bad.status, error=str(bad)[:200])
            return Ready(failed, None, sample.at)
        pixels = torch.from_numpy(picture.pixels)
        padded = reflect_pad(pixels[None], stride)[0]
    if picture.note is not None:
        noted = f"{IMAGE_NOTE}{picture.note}; {row.error or ''}".removesuffix("; ")
        row = replace(row, error=noted[:200])
    grid_w, grid_h = padded.shape[2] // stride, padded.shape[1] // stride
    if max(grid_w, grid_h) > MAX_GRID:
        error = f"a grid of {grid_w} x {grid_h}: a table takes {MAX_GRID} at most along a side"
        return Ready(replace(row, status=Status.TOO_LARGE, error=error), None, sample.at)
    row = replace(
        row, dropped=picture.dropped or None, width=picture.width, height=picture.height,
        grid_h=grid_h, grid_w=grid_w,
    )  # fmt: skip
    return Ready(row, padded, sample.at, pixels.shape[1], pixels.shape[2])


def _missing(row: Row, sample: Sample, image_keys: tuple[str, ...]) -> Row:
    """The row of a sample without a readable image."""
    unread = next((e for e in image_keys if e in sample.unread), None)
    if unread is not None:
        error = f".{unread}: {sample.unread[unread]}"
        status = Status.TOO_LARGE if unread in sample.too_large else Status.MISSING_IMAGE
        return replace(row, status=status, error=error[:200])
    found = ", ".join(f".{e}" for e in [*sample.members, *sample.others])
    error = f"no member .{'/.'.join(image_keys)}; the sample has {found}"
    return replace(row, status=Status.MISSING_IMAGE, error=error[:200])


def encode_rows(
    reader: ShardReader, plan: Plan, replica: Replica, clock: Clock
) -> tuple[list[Row], int]:
    """Every sample of the shard as a row, in order, and the pixels encoded."""
    rows: list[Row] = []
    batcher, keys = Batcher(plan), set[str]()
    stride = replica.codec.config.stride
    stream = read_ahead(
        _timed(reader, clock), lambda sample: prepare(sample, plan, stride, clock), replica.pool,
        ByteBudget(replica.queue_bytes),
        size_before=lambda sample: needed_bytes(sample, plan.pictures),
        size_after=lambda ready: 0 if ready.pixels is None else ready.pixels.nbytes,
    )  # fmt: skip
    for ready in stream:
        ready = _once(ready, keys)
        rows.append(ready.row)
        if ready.pixels is None:
            clock.advance(ready.at, bad=1)
        else:
            for batch in batcher.add(len(rows) - 1, ready):
                encode_batch(batch, rows, plan, replica, clock)
        del ready  # not to be held while the next one is decoded
    for batch in batcher.rest():
        encode_batch(batch, rows, plan, replica, clock)
    return rows, clock.counts.pixels


def needed_bytes(sample: Sample, pictures: Pictures) -> int:
    """Memory for a sample from its file to its picture: what is admitted before it is decoded."""
    extension = next((e for e in pictures.image_keys if e in sample.members), None)
    picture = 0 if extension is None else images.working_bytes(sample.members[extension], pictures)
    return picture + sum(map(len, sample.members.values()))


def _once(ready: Ready, keys: set[str]) -> Ready:
    """The sample, or its row alone if the key has occurred."""
    if ready.row.key not in keys:
        keys.add(ready.row.key)
        return ready
    error = "the key occurs earlier in this shard; this one is not encoded"
    row = replace(ready.row, status=Status.DUPLICATE_KEY, error=error)
    return Ready(row, None, ready.at)


def encode_batch(
    batch: list[tuple[int, Ready]], rows: list[Row], plan: Plan, replica: Replica, clock: Clock
) -> None:
    """Fill in the payload of one batch; a part-full one is padded to a power of two."""
    pictures = [ready.pixels for _, ready in batch if ready.pixels is not None]
    full = batch_size(plan.batch_pixels, *pictures[0].shape[1:])
    size = min(full, 1 << (len(pictures) - 1).bit_length())
    pixels = torch.stack(pictures + [pictures[-1]] * (size - len(pictures)))
    streams: list[bytes] = []
    if plan.price > 0:
        codes, streams = replica.search(pixels, len(pictures), plan.coding, clock)
    else:
        codes = replica.encode(pixels, plan.quality, clock)
        if plan.stores_bitstream:
            streams = replica.entropy_encode(codes[: len(pictures)], plan.coding, clock)
    decoded = None
    if plan.measure == "psnr":
        with clock.stage("measure"):
            decoded = replica.decode(torch.from_numpy(codes), *pixels.shape[2:])
    with clock.stage("code"):
        for place, (index, ready) in enumerate(batch):
            raw = codes[place].astype(codes.dtype.newbyteorder("<"), copy=False).tobytes()
            quality = None if decoded is None else _psnr(decoded[place], pixels[place], ready)
            rows[index] = replace(
                rows[index], codes=raw if plan.stores_codes else None, crc32=zlib.crc32(raw),
                bitstream=streams[place] if plan.stores_bitstream else None, psnr=quality,
            )  # fmt: skip
    clock.advance(
        max(ready.at for _, ready in batch), images=len(batch),
        pixels=sum(ready.height * ready.width for _, ready in batch),
        code_bytes=payload_bytes([rows[index] for index, _ in batch]),
    )  # fmt: skip


def _psnr(decoded: Tensor, source: Tensor, ready: Ready) -> float:
    """PSNR in dB over the picture without its padding."""
    part = (slice(None), slice(ready.height), slice(ready.width))
    return psnr(decoded[part].numpy(), source[part].numpy())


def _timed(reader: ShardReader, clock: Clock) -> Iterator[Sample]:
    """The reader's samples, with its time."""
    samples = iter(reader)
    while True:
        with clock.stage("read"):
            sample = next(samples, None)
        if sample is None:
            return
        yield sample
        del sample


def encode_shard(
    spec: ShardSpec, plan: Plan, store: storage.Store, replica: Replica, attempt: int = 1
) -> ShardResult:
    """Encode one shard and commit its table; see :func:`pipeline.work.shard.run_shard`."""
    wanted = {*plan.image_keys, *(column.extension for column in plan.kept)}

    def make(clock: Clock) -> tuple[list[Row], Facts]:
        info = storage.ObjectInfo(spec.url, spec.size, spec.etag)
        with storage.open_read(spec.url, info) as stream:
            reader = ShardReader(
                stream, spec.size, wanted=wanted.__contains__, skip_apple=plan.exact
            )
            rows, pixels = encode_rows(reader, plan, replica, clock)
        rows, pixels = fitting(rows, pixels, plan)
        whole = reader.complete and not reader.damage
        return rows, Facts(
            by_status(rows), pixels, payload_bytes(rows), reader.damage,
            losses.count(rows) if plan.has_dropped else {}, reader.apple_double,
            filled(rows, plan), "done" if whole else "damaged",
        )  # fmt: skip

    return run_shard(spec, plan, store, replica, attempt, make)


def by_status(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows have each status, in the order in which they first come."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.status.value] = counts.get(row.status.value, 0) + 1
    return counts


def fitting(rows: Sequence[Row], pixels: int, plan: Plan) -> tuple[list[Row], int]:
    """The rows as the table can hold them, and the pixels of those that still have an image."""
    fit = table.fit(rows, plan)
    lost = [a for a, b in zip(rows, fit, strict=True) if a.status is Status.OK is not b.status]
    for row in lost:
        width, height = images.encoded_size(row.width, row.height, plan.pictures)
        pixels -= width * height
    return fit, pixels


def filled(rows: Sequence[Row], plan: Plan) -> dict[str, int]:
    """How many rows have a value in each kept column; not counted before format 3."""
    names = [column.name for column in plan.kept] if plan.exact else []
    return {name: sum(row.kept.get(name) is not None for row in rows) for name in names}
