"""Code tables back to image files, or to tars of them."""

from __future__ import annotations

import io
import json
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import webdataset
from PIL import Image

from pipeline.archive import layout, table
from pipeline.archive.table import BadTable, Row
from pipeline.out.names import file_name, member_key
from pipeline.plan import Plan, PlanMismatch, Status
from pipeline.store.storage import NotFound, Store
from pipeline.work import decoder
from pipeline.work.readahead import ByteBudget, read_ahead
from pipeline.work.replica import Replica
from pqmim.meter import Meter

MARK = "decoded.json"  # which plan the pictures of an output are of
JPEG_QUALITY = 95  # of --format jpeg, without chroma subsampling
AHEAD_BYTES = 256 << 20  # decoded pictures that wait for their files
SHOWN = 50  # lines of each list in the final text


@dataclass
class Totals:
    """What became of the images."""

    written: int = 0
    there: int = 0
    bad: list[str] = field(default_factory=list)  # rows without a picture
    statuses: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)  # met so far, of those asked for

    @property
    def progress(self) -> str:
        """In a few words."""
        return f"{self.written} images, {self.there} were there, {len(self.bad)} bad"


@dataclass
class Task:
    """What is decoded, and where to."""

    archive: Store
    output: Store
    plan: Plan
    replica: Replica
    form: str
    keys: frozenset[str]  # empty: all
    pool: ThreadPoolExecutor
    meter: Meter
    number: int = 0  # of the shard at hand


def begin(output: Store, plan: Plan) -> None:
    """Mark the output as being of this plan, so that pictures of two archives never mix.

    Raises:
        pipeline.plan.PlanMismatch: it holds the pictures of another archive.
    """
    mark = (json.dumps({"plan_digest": plan.digest}) + "\n").encode()
    if not output.put_if_absent(MARK, mark) and output.get(MARK) != mark:
        raise PlanMismatch(
            f"{output.url(MARK)}: the pictures there are of another archive: choose another output"
        )


def decode_shard(task: Task, shard_id: str, totals: Totals) -> None:
    """Write the pictures of one table; what is wrong with it is noted, not raised."""
    name = layout.table_name(shard_id)
    try:
        data = task.archive.get(name)
        count_rows(data, shard_id, task.keys, totals)
        write = write_tar if task.form == "webdataset" else write_files
        write(task, shard_id, data, totals)
    except NotFound:
        totals.problems.append(f"{task.archive.url(name)}: no such table")
    except BadTable as error:
        totals.problems.append(f"{task.archive.url(name)}: {' '.join(str(error).split())}")


def count_rows(data: bytes, shard_id: str, keys: frozenset[str], totals: Totals) -> None:
    """Note the rows that have no picture, and which of the keys are here."""
    for row in table.read_rows(data, ["key", "status", "error"]):
        if keys and row.key not in keys:
            continue
        totals.keys |= {row.key} & keys
        if row.status is not Status.OK:
            totals.statuses[row.status.value] = totals.statuses.get(row.status.value, 0) + 1
            totals.bad.append(f"{shard_id}: key {row.key!r}: {row.status.value}: {row.error}")


def write_files(task: Task, shard_id: str, data: bytes, totals: Totals) -> None:
    """One file an image; those that are there are not decoded again."""
    extension = {"png": "png", "jpeg": "jpg"}[task.form]
    there = set(task.output.names(f"{shard_id}/"))

    def name_of(row: Row) -> str:
        return f"{shard_id}/{file_name(row.key)}.{extension}"

    def wanted(row: Row) -> bool:
        if task.keys and row.key not in task.keys:
            return False
        totals.there += name_of(row) in there
        return name_of(row) not in there

    # Closed at once when a write fails, so that no thread goes on decoding.
    with closing(pictures(task, data, wanted)) as rows:
        for row, picture in rows:
            totals.written += task.output.put_if_absent(name_of(row), picture)
            task.meter.show(task.number, totals.progress)


def write_tar(task: Task, shard_id: str, data: bytes, totals: Totals) -> None:
    """One tar a shard, whole or not at all, always the same bytes."""
    name, sink, count = f"{shard_id}.tar", io.BytesIO(), 0
    if task.output.info(name) is not None:
        totals.there += sum(r.status is Status.OK for r in table.read_rows(data, ["status"]))
        return
    texts = [k for k in task.plan.kept if not k.path and k.type == "string"]
    with (
        webdataset.TarWriter(sink, encoder=False, mtime=0) as tar,
        closing(pictures(task, data, lambda row: True)) as rows,
    ):
        for row, picture in rows:
            kept = {k.extension: row.kept[k.name] for k in texts}
            members = {e: str(v).encode() for e, v in kept.items() if v is not None}
            tar.write({**members, "__key__": member_key(row.key), "png": picture})
            count += 1
            task.meter.show(task.number, f"{totals.written + count} images")
    totals.written += count if task.output.put_if_absent(name, sink.getvalue()) else 0


def pictures(
    task: Task, data: bytes, wanted: decoder.Wanted
) -> Generator[tuple[Row, bytes], None, None]:
    """The image files of a table's ok rows, in order, made by the threads of the pool."""
    rows = decoder.decode_table(data, task.plan, task.replica, wanted)
    yield from read_ahead(
        rows, lambda item: (item[0], image_file(item[1], task.form)), task.pool,
        ByteBudget(AHEAD_BYTES),
        size_before=lambda item: item[1].nbytes,
        size_after=lambda item: len(item[1]),
    )  # fmt: skip


def image_file(pixels: np.ndarray, form: str) -> bytes:
    """uint8 [3, H, W] as a PNG or JPEG file."""
    sink, image = io.BytesIO(), Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if form == "jpeg":
        image.save(sink, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(sink, "PNG")
    return sink.getvalue()


def text(totals: Totals) -> str:
    """The final text."""
    bad = ", ".join(f"{n} {s}" for s, n in sorted(totals.statuses.items())) or "none"
    lines = [f"{totals.written} images written, {totals.there} were there; rows without: {bad}"]
    for title, entries in (("no picture", totals.bad), ("problem", totals.problems)):
        lines += [f"{title}: {entry}" for entry in entries[:SHOWN]]
        if len(entries) > SHOWN:
            lines.append(f"{title}: and {len(entries) - SHOWN} more")
    return "\n".join(lines)
