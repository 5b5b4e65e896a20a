"""Dry run: what an encode job would read, write and take.  Writes nothing.

    python -m jobs.plan --input 's3://bucket/shards/{000000..009999}.tar' --device cpu --replicas 2
    python -m jobs.plan --input 's3://bucket/shards/*' --replicas 8 --prices prices.yaml

Lists the shards, encodes up to 64 samples of the middle one in this process, and scales up by
bytes.  The figures are as good as that shard is typical; the time takes replicas to scale evenly
and to run on machines like this one, and storage to keep up.

With --prices (such a file: infra/prices.example.yaml) three shards are measured, the smallest, the
median and the largest, and the job is priced: machines, requests, storage before and after, and the
months until the storage saved has paid for it.  Run it on the machine that the file prices.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import common
from jobs.common import flags

if TYPE_CHECKING:
    from pipeline.plan import Plan, ShardSpec
    from pipeline.price.bill import Measured
    from pipeline.work.replica import Replica


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, list, calibrate, print."""
    args = parse(argv)
    import torch

    from jobs.common import shards, work
    from jobs.common.pools import local_device
    from pipeline.price import prices, text
    from pipeline.price.bill import Job
    from pipeline.work import forecast
    from pipeline.work.replica import Replica
    from pqmim import checkpoint
    from pqmim.codec import Codec

    try:
        priced = prices.read(Path(args.prices).read_text(), args.prices) if args.prices else None
    except (prices.BadPrices, OSError) as error:
        raise common.UsageError(str(error)) from error
    resources = flags.resources_of(args)
    resources = replace(resources, device=local_device(resources.device))
    specs = shards.list_shards(args.input)
    codec = Codec.from_bytes(checkpoint.read(args.weights), resources.device, name=args.weights)
    plan = work.plan_of(args, specs, codec)
    torch.set_num_threads(resources.threads)
    replica = Replica(codec, resources.decode_threads, resources.queue_bytes)
    try:
        found = forecast.calibrate(specs[len(specs) // 2], plan, replica)
        sys.stdout.write(forecast.text(specs, plan, resources, found) + "\n")
        if priced:
            measured = [measure(spec, plan, replica) for spec in forecast.small_median_large(specs)]
            job = Job.of(specs, resources.replicas, plan.store)
            sys.stdout.write("\n" + text.text(job, measured, priced) + "\n")
    except forecast.NoSamples as error:
        raise common.UsageError(str(error)) from error
    return common.OK


def measure(spec: ShardSpec, plan: Plan, replica: Replica) -> Measured:
    """One shard for the bill: what it takes there and back, and how large each kind of table is."""
    from pipeline.price.bill import Measured
    from pipeline.work import forecast

    found = forecast.calibrate(spec, plan, replica)
    rest = found.table_bytes - found.code_bytes - found.raw_bytes * (plan.store == "both")
    tables = {"codes": rest + found.raw_bytes}
    if plan.stores_bitstream:
        tables |= {"bitstream": rest + found.code_bytes}
        tables |= {"both": rest + found.code_bytes + found.raw_bytes}
    seconds = (found.seconds, found.picture_s, forecast.decode_s(found, plan, replica))
    return Measured(spec.url, found.source_bytes, *seconds, tables)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = flags.parser_of("plan", __doc__)
    flags.add_plan_flags(parser)
    flags.add_resource_flags(parser)
    group = parser.add_argument_group("cost")
    group.add_argument("--prices", metavar="FILE", help="price the job by this file (YAML)")
    return flags.parse(parser, argv)


if __name__ == "__main__":
    sys.exit(common.run(main))
