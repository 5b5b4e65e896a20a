"""Dry run: what an encode job would read, write and take.  Writes nothing.

    python -m jobs.plan --input 's3://bucket/shards/{000000..009999}.tar' --device cpu --replicas 2

Lists the shards, encodes up to 64 samples of the middle one in this process, and scales up by
bytes.  The figures are as good as that shard is typical; the time takes replicas to scale evenly
and to run on machines like this one, and storage to keep up.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from jobs import common
from jobs.common import flags


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, list, calibrate, print."""
    args = parse(argv)
    import torch

    from jobs.common import shards, work
    from jobs.common.pools import local_device
    from pipeline.work import forecast
    from pipeline.work.replica import Replica
    from pqmim import checkpoint
    from pqmim.codec import Codec

    resources = flags.resources_of(args)
    resources = replace(resources, device=local_device(resources.device))
    specs = shards.list_shards(args.input)
    codec = Codec.from_bytes(checkpoint.read(args.weights), resources.device, name=args.weights)
    plan = work.plan_of(args, specs, codec)
    torch.set_num_threads(resources.threads)
    replica = Replica(codec, resources.decode_threads, resources.queue_bytes)
    try:
        found = forecast.calibrate(specs[len(specs) // 2], plan, replica)
    except forecast.NoSamples as error:
        raise common.UsageError(str(error)) from error
    sys.stdout.write(forecast.text(specs, plan, resources, found) + "\n")
    return common.OK


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = flags.parser_of("plan", __doc__)
    flags.add_plan_flags(parser)
    flags.add_resource_flags(parser)
    return flags.parse(parser, argv)


if __name__ == "__main__":
    sys.exit(common.run(main))
