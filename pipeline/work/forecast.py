"""What an encode job would take: a few samples of one shard, encoded here, scaled up by bytes.

For what it would cost (pipeline.price) three shards are measured, the smallest, the median and the
largest, and their tables are decoded again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.archive import table
from pipeline.plan import Facts, Plan, Resources, ShardResult, ShardSpec, Status
from pipeline.signals import Alone
from pipeline.store import storage
from pipeline.tars.samples import Sample, ShardReader
from pipeline.work.decoder import decode_table
from pipeline.work.encoder import by_status, encode_rows
from pipeline.work.replica import Clock, Replica
from pipeline.work.shard import payload_bytes

SAMPLES = 64


class NoSamples(Exception):
    """There is nothing to measure on."""


@dataclass(frozen=True)
class Calibration:
    """What a few samples of one shard took."""

    spec: ShardSpec
    rows: dict[str, int]  # by status
    source_bytes: int
    table_bytes: int
    code_bytes: int
    pixels: int
    seconds: float
    alone: Alone
    raw_bytes: int = 0  # of the codes of ok rows without entropy coding
    picture_s: float = 0.0  # of the seconds: decoding the pictures
    table: bytes = b""

    @property
    def count(self) -> int:
        """Samples."""
        return sum(self.rows.values())


def calibrate(spec: ShardSpec, plan: Plan, replica: Replica) -> Calibration:
    """Encode the first samples of a shard, as a replica would."""
    samples, source_bytes = first_samples(spec, plan)
    alone = replica.calibrate(plan)
    begin, clock = time.perf_counter(), Clock()
    rows, pixels = encode_rows(samples, plan, replica, clock)  # type: ignore[arg-type]  # iterated only
    seconds = time.perf_counter() - begin
    facts = Facts(by_status(rows), pixels, payload_bytes(rows))
    data = table.write_table(rows, plan, spec, ShardResult.of(spec, facts))
    raw_bytes = sum(row.grid_w * row.grid_h for row in rows if row.status is Status.OK)
    return Calibration(
        spec, facts.rows, source_bytes, len(data), facts.code_bytes, pixels, seconds, alone,
        raw_bytes * plan.quality, clock.cpu["decode"] / replica.decode_threads, data,
    )  # fmt: skip


def decode_s(found: Calibration, plan: Plan, replica: Replica) -> float:
    """Seconds from the table of a calibration to its pixels."""
    begin = time.perf_counter()
    for _ in decode_table(found.table, plan, replica):
        pass
    return time.perf_counter() - begin


def small_median_large(specs: Sequence[ShardSpec]) -> list[ShardSpec]:
    """Three shards by size, or one of a listing of fewer."""
    by_size = sorted(specs, key=lambda spec: spec.size)
    if len(by_size) < 3:
        return [by_size[len(by_size) // 2]]
    return [by_size[0], by_size[len(by_size) // 2], by_size[-1]]


def first_samples(spec: ShardSpec, plan: Plan) -> tuple[list[Sample], int]:
    """The first samples of a shard, and how many bytes of it they are.

    Raises:
        NoSamples: it has none.
    """
    with storage.open_read(spec.url, storage.ObjectInfo(spec.url, spec.size, spec.etag)) as stream:
        reader = ShardReader(stream, spec.size, skip_apple=plan.exact)
        found = list(itertools.islice(reader, SAMPLES + 1))
    if not found:
        cause = "; ".join(reader.damage) or "an empty tar"
        raise NoSamples(f"{spec.url}: no samples to calibrate on: {cause}")
    if len(found) <= SAMPLES:
        return found, spec.size
    return found[:SAMPLES], found[SAMPLES].at


def text(specs: Sequence[ShardSpec], plan: Plan, resources: Resources, found: Calibration) -> str:
    """The forecast as a table, and what it takes for granted."""
    total = sum(spec.size for spec in specs)
    scale = total / found.source_bytes
    alone = 1 / (found.alone.encode + found.alone.code)
    speed = found.count / found.seconds * resources.replicas
    ok = found.rows.get(Status.OK.value, 0)
    bpp = f"{8 * found.code_bytes / found.pixels:.4f} bpp" if found.pixels else "-"
    mean = f"{found.pixels / ok / 1e6:.3f} Mpx" if ok else "-"
    lines = [
        ("shards", f"{len(specs):,}"),
        ("input", f"{_size(total)}"),
        ("rows", f"about {scale * found.count:,.0f}"),
        ("mean image, as encoded", mean),
        ("output", f"about {_size(scale * found.table_bytes)}, {bpp} of payload"),
        ("time", f"about {_duration(scale * found.count / speed)} at {speed:,.1f} images/s"),
        ("model", f"{plan.model[:16]}, quality {plan.quality}, {alone:.2f} Mpx/s alone"),
    ]
    bad = ", ".join(f"{n} {s}" for s, n in sorted(found.rows.items()) if s != Status.OK) or "none"
    return "\n".join([
        *(f"{name:24}{value}" for name, value in lines),
        f"Measured on the first {found.count} samples of {found.spec.url} (bad: {bad}), on one "
        f"replica in this process.",
        f"Assumed: all shards are like it; --replicas {resources.replicas} on {resources.device} "
        f"is {resources.replicas} times this speed; storage keeps up; start-up is not counted.",
    ])  # fmt: skip


def _size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError("the last unit takes any size")


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
