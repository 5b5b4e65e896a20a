"""Dry run: what an encode job would read, write and take.  Writes nothing.

    python -m jobs.plan --input 's3://bucket/shards/{000000..009999}.tar' --device cpu --replicas 2

Lists the shards, encodes up to 64 samples of the middle one in this process, and scales up by
bytes.  The figures are as good as that shard is typical; the time takes replicas to scale evenly
and to run on machines like this one, and storage to keep up.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jobs import common
from pipeline.archive import table
from pipeline.plan import Facts, Plan, Resources, ShardResult, ShardSpec, Status
from pipeline.store import storage
from pipeline.tars.samples import Sample, ShardReader
from pipeline.work import decoder
from pipeline.work.encoder import by_status, encode_rows
from pipeline.work.replica import Clock, Replica
from pipeline.work.shard import payload_bytes
from pqmim import checkpoint
from pqmim.codec import Codec

SAMPLES = 64


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
    bare_mpx_s: float

    @property
    def count(self) -> int:
        """Samples."""
        return sum(self.rows.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, list, calibrate, print."""
    args = parse(argv)
    resources = common.resources_of(args)
    if problem := decoder.missing_device(resources.device):
        raise common.UsageError(problem)
    specs = common.list_shards(args.input)
    codec = Codec.from_bytes(checkpoint.read(args.model), resources.device, name=args.model)
    plan = common.plan_of(args, specs, codec)
    torch.set_num_threads(resources.threads)
    replica = Replica(codec, resources.decode_threads, resources.queue_bytes)
    found = calibrate(specs[len(specs) // 2], plan, replica)
    sys.stdout.write(text(specs, plan, resources, found) + "\n")
    return common.OK


def calibrate(spec: ShardSpec, plan: Plan, replica: Replica) -> Calibration:
    """Encode the first samples of a shard, as a replica would."""
    samples, source_bytes = first_samples(spec, plan)
    bare = replica.calibrate(plan)
    begin = time.perf_counter()
    rows, pixels = encode_rows(samples, plan, replica, Clock())  # type: ignore[arg-type]  # iterated only
    seconds = time.perf_counter() - begin
    facts = Facts(by_status(rows), pixels, payload_bytes(rows))
    data = table.write_table(rows, plan, spec, ShardResult.of(spec, facts))
    return Calibration(
        spec, facts.rows, source_bytes, len(data), facts.code_bytes, pixels, seconds, bare
    )


def first_samples(spec: ShardSpec, plan: Plan) -> tuple[list[Sample], int]:
    """The first samples of a shard, and how many bytes of it they are.

    Raises:
        jobs.common.UsageError: it has none.
    """
    with storage.open_read(spec.url, storage.ObjectInfo(spec.url, spec.size, spec.etag)) as stream:
        reader = ShardReader(stream, spec.size)
        found = list(itertools.islice(reader, SAMPLES + 1))
    if not found:
        cause = "; ".join(reader.damage) or "an empty tar"
        raise common.UsageError(f"{spec.url}: no samples to calibrate on: {cause}")
    if len(found) <= SAMPLES:
        return found, spec.size
    return found[:SAMPLES], found[SAMPLES].offset


def text(specs: Sequence[ShardSpec], plan: Plan, resources: Resources, found: Calibration) -> str:
    """The forecast as a table, and what it takes for granted."""
    total = sum(spec.size for spec in specs)
    scale = total / found.source_bytes
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
        ("model", f"{plan.model[:16]}, quality {plan.quality}, {found.bare_mpx_s:.2f} Mpx/s bare"),
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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("jobs.plan", description=__doc__.split("\n")[0])
    common.add_plan_flags(parser)
    common.add_resource_flags(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(common.run(main))
