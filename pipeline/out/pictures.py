"""Code tables back to image files, or to tars of them: one table by one replica."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.archive import layout, table
from pipeline.archive.table import BadTable, Row
from pipeline.out import tars
from pipeline.out.decoded import Totals
from pipeline.out.names import file_name, kept_members, member_key
from pipeline.plan import Plan, Status
from pipeline.store.storage import NotFound, Store
from pipeline.work import decoder
from pipeline.work.readahead import ByteBudget, read_ahead
from pipeline.work.replica import Replica

MARK = "decoded.json"  # which plan the pictures of an output are of
JPEG_QUALITY = 95  # of --format jpeg, without chroma subsampling
EXTENSIONS = {"png": "png", "jpeg": "jpg"}


@dataclass(frozen=True)
class Task:
    """What is decoded, and where to."""

    archive: Store
    output: Store
    plan: Plan
    replica: Replica
    form: str
    keys: frozenset[str]  # empty: all
    tar_bytes: int
    show: Callable[[int], None]  # told how many images of the shard are out

    @property
    def ahead_bytes(self) -> int:
        """Of pictures that wait for their files; a tar takes the other half of the queue."""
        return max(1, self.replica.queue_bytes // 2)


class Unwritable(Exception):
    """A picture that its format cannot hold."""


def begin(output: Store, plan: Plan, tar_bytes: int) -> int:
    """Mark the output; see :func:`pipeline.out.tars.begin`."""
    return tars.begin(output, MARK, plan, tar_bytes)


def decode_shard(task: Task, shard_id: str) -> Totals:
    """Write the pictures of one table; what is wrong with it is noted, not raised."""
    name, totals = layout.table_name(shard_id), Totals()
    try:
        data = task.archive.get(name)
        count_rows(data, shard_id, task.keys, totals)
        write = write_tars if task.form == "webdataset" else write_files
        write(task, shard_id, data, totals)
    except NotFound:
        totals.problems.add(f"{task.archive.url(name)}: no such table")
    except BadTable as error:
        totals.problems.add(f"{task.archive.url(name)}: {' '.join(str(error).split())}")
    return totals


def count_rows(data: bytes, shard_id: str, keys: frozenset[str], totals: Totals) -> None:
    """Note the rows that have no picture, and which of the keys are here."""
    for row in table.read_rows(data, ["key", "status", "error"]):
        if keys and row.key not in keys:
            continue
        totals.keys |= {row.key} & keys
        if row.status is not Status.OK:
            totals.statuses[row.status.value] = totals.statuses.get(row.status.value, 0) + 1
            totals.bad.add(f"{shard_id}: key {row.key!r}: {row.status.value}: {row.error}")


def write_files(task: Task, shard_id: str, data: bytes, totals: Totals) -> None:
    """One file an image; those that are there are not decoded again."""
    extension = EXTENSIONS[task.form]
    there = set(task.output.names(f"{shard_id}/"))

    def name_of(row: Row) -> str:
        return f"{shard_id}/{file_name(row.key)}.{extension}"

    def wanted(row: Row) -> bool:
        if task.keys and row.key not in task.keys:
            return False
        totals.there += name_of(row) in there
        return name_of(row) not in there

    # Closed at once when a write fails, so that no thread goes on decoding.
    with closing(pictures(task, shard_id, data, wanted, totals)) as rows:
        for row, picture in rows:
            totals.written += task.output.put_if_absent(name_of(row), picture)
            task.show(totals.written)


def write_tars(task: Task, shard_id: str, data: bytes, totals: Totals) -> None:
    """The shard's tars, always the same bytes."""
    out = tars.Tars(task.output, shard_id, task.tar_bytes)
    if out.there:
        totals.there += sum(r.status is Status.OK for r in table.read_rows(data, ["status"]))
        return
    count = 0
    with closing(pictures(task, shard_id, data, lambda row: True, totals)) as rows:
        for row, picture in rows:
            members = kept_members(row, task.plan)
            out.write({**members, "__key__": member_key(row.key), "png": picture})
            count += 1
            task.show(count)
    out.close()
    totals.written += count


def pictures(
    task: Task, shard_id: str, data: bytes, wanted: decoder.Wanted, totals: Totals
) -> Generator[tuple[Row, bytes], None, None]:
    """The image files of a table's ok rows, in order, made by the threads of the replica; those
    that the format cannot hold are noted."""

    def make(item: tuple[Row, np.ndarray]) -> tuple[Row, bytes | str]:
        row, pixels = item
        try:
            return row, image_file(pixels, task.form)
        except Unwritable as error:
            return row, str(error)

    rows = read_ahead(
        decoder.decode_table(data, task.plan, task.replica, wanted), make, task.replica.pool,
        ByteBudget(task.ahead_bytes),
        size_before=lambda item: 2 * item[1].nbytes,  # its file may be as large
        size_after=lambda item: len(item[1]),
    )  # fmt: skip
    with closing(rows) as made:  # type: ignore[type-var]  # a generator
        for row, file in made:
            if isinstance(file, bytes):
                yield row, file
            else:
                totals.problems.add(f"{shard_id}: key {row.key!r}: {file}")


def image_file(pixels: np.ndarray, form: str) -> bytes:
    """uint8 [3, H, W] as a PNG or JPEG file.

    Raises:
        Unwritable: the format has no room for it.
    """
    sink, image = io.BytesIO(), Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    try:
        if form == "jpeg":
            image.save(sink, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        else:
            image.save(sink, "PNG")
    except (OSError, ValueError, OverflowError) as error:
        way_out = "; --format png holds it" if form == "jpeg" else ""
        size = f"{pixels.shape[2]} x {pixels.shape[1]}"
        raise Unwritable(f"{size} pixels cannot be written as {form}: {error}{way_out}") from error
    return sink.getvalue()
