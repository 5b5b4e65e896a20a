"""Encode shards of images into an archive of code tables.

    python -m jobs.encode --input 's3://bucket/{000000..009999}.tar' --output s3://bucket/arch
    python -m jobs.encode --input photos/ --output archive --device cpu --replicas 2

The same command again resumes: what is committed is not encoded again.  See jobs.status,
jobs.finish and jobs.verify for what comes after.  Ctrl-C or SIGTERM ends the replicas, writes the
summary of what was done and exits with 130; a second one exits at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs import common
from jobs.common import flags


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, plan, freeze it in the archive, work it off."""
    args = parse(argv)
    from jobs.common import shards, work
    from pipeline.store.storage import Store
    from pipeline.work.encoder import encode_shard
    from pqmim import checkpoint
    from pqmim.codec import Codec

    resources = flags.resources_of(args)
    store = Store(args.output)
    shards.check_place(args.input, store)
    store.probe()
    specs = shards.as_begun(store, shards.list_shards(args.input))
    weights = checkpoint.read(args.weights)
    plan = work.plan_of(args, specs, Codec.from_bytes(weights, name=args.weights))
    plan, specs = work.begin(store, plan, specs, weights)
    return work.work_off(
        store, plan, specs, resources, encode_shard, args.retry_failed, args.max_bad_images
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = flags.parser_of("encode", __doc__)
    flags.add_plan_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--output", required=True, metavar="URI", help="prefix of the archive")
    flags.add_resource_flags(parser)
    group = parser.add_argument_group("failure policy")
    group.add_argument(
        "--max-bad-images", type=float, default=0.05, metavar="SHARE",
        help="stop when more than this share cannot be encoded (%(default)s)",
    )  # fmt: skip
    group.add_argument("--retry-failed", action="store_true", help="try quarantined shards again")
    return flags.parse(parser, argv)


if __name__ == "__main__":
    sys.exit(common.run(main))
