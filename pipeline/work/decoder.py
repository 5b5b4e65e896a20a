"""One code table through one replica: rows of codes in, pictures out; the mirror of encoder.py.

    table bytes -> read_rows -> Row --Window--> batch_codes -> codes
        --codec.decode -> crop -> pixels

Codes are raw in the row, or its bitstream is decoded to them; raw ones are taken where a row has
both.  Either way they are checked against their crc32 before they reach the autoencoder: a wrong
one is an error that names shard and key, never a picture of something else.  The size of a grid is
checked before anything of that size is made.  Pictures of one grid are decoded together
and come out in row order; what waits is bounded in pixels, so a table of many sizes decodes in
smaller batches.  Unlike the encoder's, a part-full batch is not padded: nothing is kept that its
shape could change.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.archive import layout, table
from pipeline.archive.table import BadTable, Row
from pipeline.plan import Plan, Status
from pipeline.store.storage import Store
from pipeline.work import images
from pipeline.work.replica import PENDING_BATCHES, Replica, batch_size
from pqmim.checkpoint import CheckpointError
from pqmim.codec import Codec
from pqmim.coding.range_coder import PayloadError

Wanted = Callable[[Row], bool]


@dataclass
class _Slot:
    """A row whose picture is on its way."""

    row: Row  # with its payload until decoded
    pixels: np.ndarray | None = None  # uint8 [3, H, W]


class Window:
    """Rows in order whose pictures are decoded by grid; the oldest one decides what comes next."""

    def __init__(self, plan: Plan, replica: Replica) -> None:
        self.plan, self.replica = plan, replica
        self.slots, self.pixels = deque[_Slot](), 0
        self.buckets: dict[tuple[int, int], list[_Slot]] = {}

    def add(self, row: Row) -> Iterator[tuple[Row, np.ndarray]]:
        """Add an ok row; yields what is ready, and decodes a part-full batch when too much waits.

        Raises:
            BadTable: this row, or one that waited, is not what was encoded.
        """
        check_grid(row, self.plan)
        slot, grid = _Slot(row), (row.grid_h, row.grid_w)
        self.slots.append(slot)
        self.buckets.setdefault(grid, []).append(slot)
        self.pixels += self._area(row)
        stride = self.plan.stride
        full = batch_size(self.plan.batch_pixels, grid[0] * stride, grid[1] * stride)
        if len(self.buckets[grid]) == full:
            self._decode(grid)
        yield from self._ready()
        while self.pixels > PENDING_BATCHES * self.plan.batch_pixels:
            yield from self._force()

    def rest(self) -> Iterator[tuple[Row, np.ndarray]]:
        """What is left."""
        while self.slots:
            yield from self._force()

    def _area(self, row: Row) -> int:
        return row.grid_h * row.grid_w * self.plan.stride**2

    def _force(self) -> Iterator[tuple[Row, np.ndarray]]:
        """Decode what the oldest row waits for."""
        oldest = self.slots[0].row
        self._decode((oldest.grid_h, oldest.grid_w))
        yield from self._ready()

    def _decode(self, grid: tuple[int, int]) -> None:
        slots = self.buckets.pop(grid)
        codes = torch.from_numpy(batch_codes([s.row for s in slots], self.plan, self.replica))
        height, width = (n * self.plan.stride for n in grid)
        padded = self.replica.decode(codes, height, width).numpy()
        for slot, picture in zip(slots, padded, strict=True):
            w, h = images.encoded_size(slot.row.width, slot.row.height, self.plan.pictures)
            slot.row = replace(slot.row, codes=None, bitstream=None)
            slot.pixels = np.ascontiguousarray(picture[:, :h, :w])

    def _ready(self) -> Iterator[tuple[Row, np.ndarray]]:
        while self.slots and (pixels := self.slots[0].pixels) is not None:
            row = self.slots.popleft().row
            self.pixels -= self._area(row)
            yield row, pixels


def row_codes(row: Row, plan: Plan) -> np.ndarray:
    """The raw codes [h, w, m] of an ok row, uint8 or, with more than 256 codewords, uint16.

    Raises:
        BadTable: not the bytes that were encoded, or not of this plan.
    """
    if row.codes is None or row.crc32 is None:
        raise BadTable(f"key {row.key!r}: status {row.status.value}, but it has no codes")
    if zlib.crc32(row.codes) != row.crc32:
        raise BadTable(f"key {row.key!r}: the codes do not have their crc32 {row.crc32:#010x}")
    kind = np.dtype("u1" if plan.codewords <= 256 else "<u2")
    shape = (row.grid_h, row.grid_w, plan.quality)
    expected = row.grid_h * row.grid_w * plan.quality * kind.itemsize
    if len(row.codes) != expected:
        raise BadTable(
            f"key {row.key!r}: {len(row.codes)} bytes of codes, a grid of {row.grid_w} x "
            f"{row.grid_h} with {plan.quality} sub-codes has {expected}"
        )
    check_grid(row, plan)
    codes = np.frombuffer(row.codes, kind).reshape(shape)
    if codes.size and int(codes.max()) >= plan.codewords:
        raise BadTable(f"key {row.key!r}: a code is {codes.max()} of {plan.codewords} codewords")
    return codes.astype(kind.newbyteorder("="), copy=False)


def check_grid(row: Row, plan: Plan) -> None:
    """Refuse an ok row whose grid is not that of its picture, or of one that the plan excludes.

    Raises:
        BadTable: so; nothing of the grid's size was made.
    """
    size = (0, 0)
    if row.width and row.height:
        size = images.encoded_size(row.width, row.height, plan.pictures)
    if (-(-size[0] // plan.stride), -(-size[1] // plan.stride)) != (row.grid_w, row.grid_h):
        raise BadTable(
            f"key {row.key!r}: a grid of {row.grid_w} x {row.grid_h} is not of a source of "
            f"{row.width} x {row.height} pixels, encoded as {size[0]} x {size[1]}"
        )
    if size[0] < 1 or row.width * row.height > plan.max_pixels:
        raise BadTable(
            f"key {row.key!r}: a source of {row.width} x {row.height} pixels is empty, or over "
            f"the plan's limit of {plan.max_pixels}"
        )


def batch_codes(rows: Sequence[Row], plan: Plan, replica: Replica) -> np.ndarray:
    """The codes [B, h, w, m] of ok rows of one grid, from whatever payload they have.

    Raises:
        BadTable: not the codes that were encoded; names the key.
    """
    coded = [row for row in rows if row.codes is None and row.bitstream is not None]
    decoded = iter(stream_codes(coded, plan, replica) if coded else [])
    return np.stack([
        next(decoded) if row.codes is None and row.bitstream is not None else row_codes(row, plan)
        for row in rows
    ])  # fmt: skip


def stream_codes(rows: Sequence[Row], plan: Plan, replica: Replica) -> np.ndarray:
    """The codes [B, h, w, m] that the bitstreams of ok rows of one grid decode to.

    Raises:
        BadTable: they do not have their crc32, or no encoder wrote the bitstream; names the key.
    """
    for row in rows:
        check_grid(row, plan)
    try:
        codes = _entropy_decode(rows, plan, replica)
    except PayloadError:
        for row in rows:  # each alone, to find the one
            try:
                _entropy_decode([row], plan, replica)
            except PayloadError as error:
                raise BadTable(f"key {row.key!r}: the bitstream is damaged: {error}") from error
        raise
    for row, one in zip(rows, codes, strict=True):
        if zlib.crc32(one.tobytes()) != row.crc32:
            raise BadTable(
                f"key {row.key!r}: the bitstream decodes to codes that do not have their crc32"
            )
    return codes


def _entropy_decode(rows: Sequence[Row], plan: Plan, replica: Replica) -> np.ndarray:
    payloads = [row.bitstream or b"" for row in rows]
    return replica.entropy_decode(payloads, rows[0].grid_h, rows[0].grid_w, plan.coding)


def check_table(footer: dict[str, str], plan: Plan) -> None:
    """Refuse a table that is of another plan: its codes or stages may mean something else.

    Raises:
        BadTable: so.
    """
    if footer["plan_digest"] != plan.digest:
        raise BadTable(f"made by plan {footer['plan_digest'][:12]}, not by this one")


def decode_table(
    data: bytes, plan: Plan, replica: Replica, wanted: Wanted | None = None
) -> Iterator[tuple[Row, np.ndarray]]:
    """The ok rows of a table (those that are wanted), in order, with uint8 pixels [3, H, W].

    H and W are those of the picture as it was encoded, without padding.  The rows come without
    their codes and bitstreams.

    Raises:
        BadTable: damaged, or of another plan; names the shard and, where it is one row, its key.
    """
    footer = table.read_footer(data)
    shard = footer.get("shard_id", "?")
    window = Window(plan, replica)
    try:
        check_table(footer, plan)
        for row in table.read_rows(data):
            if row.status is Status.OK and (wanted is None or wanted(row)):
                yield from window.add(row)
        yield from window.rest()
    except BadTable as error:
        raise BadTable(f"shard {shard}: {error}") from error


def load_replica(store: Store, plan: Plan, device: str) -> Replica:
    """The archive's own model on a device of this machine; raises as :func:`load_codec`."""
    return Replica(load_codec(store, plan, device))


def load_codec(store: Store, plan: Plan, device: str) -> Codec:
    """The archive's own model, held against the plan.

    Raises:
        CheckpointError: the model object is damaged, or is another model.
        pipeline.store.storage.NotFound: it is gone.
    """
    name = layout.model_name(plan.model)
    codec = Codec.from_bytes(store.get(name), device, name=store.url(name))
    if codec.fingerprint != plan.model:
        raise CheckpointError(
            f"{store.url(name)}: holds model {codec.fingerprint[:16]}, the plan says "
            f"{plan.model[:16]}: put the right weights there"
        )
    if plan.stores_bitstream and not codec.has_prior:
        raise CheckpointError(
            f"{store.url(name)}: has no entropy model, the plan says store {plan.store!r}: "
            "plan.json was edited"
        )
    return codec
