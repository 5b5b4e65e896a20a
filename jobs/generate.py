"""Sample new images from the entropy model into an archive of code tables.

    python -m jobs.generate --weights run/3f….safetensors --count 1000 --output s3://bucket/new
    python -m jobs.decode --archive s3://bucket/new --output pictures

Nothing is read but the weights.  Image n depends on the weights, the sizes, ``--seed``, ``--steps``
and ``--temperature`` alone: any number of replicas, on any device, gives the same codes.  The same
command again resumes.  The model sees 256 x 256 pixels at once (16 x 16 codes at stride 16): larger
pictures are mosaics of parts that know nothing of each other.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs import common
from jobs.common import flags
from pipeline.plan import Plan, PlanMismatch, ShardSpec, listing_digest
from pqmim.completion.rule import TEMPERATURE_ONE, CompletionError, Rule

if TYPE_CHECKING:
    from pipeline.store.storage import Store
    from pipeline.work.generator import Request
    from pqmim.codec import Codec


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, describe the images, freeze it in the archive, work it off."""
    args = parse(argv)
    from jobs.common import work
    from pipeline.store.storage import Store
    from pipeline.work.generator import generate_shard
    from pqmim import checkpoint
    from pqmim.codec import Codec

    resources = flags.resources_of(args)
    store = Store(args.output)
    store.probe()
    specs = list(request_of(args).shards(args.images_per_shard))
    check_same(store, specs)
    weights = checkpoint.read(args.weights)
    plan = plan_of(args, specs, Codec.from_bytes(weights, name=args.weights))
    plan, specs = work.begin(store, plan, specs, weights)
    return work.work_off(store, plan, specs, resources, generate_shard, args.retry_failed)


def request_of(args: argparse.Namespace) -> Request:
    """The images that the flags describe.

    Raises:
        jobs.common.UsageError: they cannot be.
    """
    from pipeline.work.generator import Request, check_rule
    from pqmim.files.container import MAX_PIXELS

    size = re.fullmatch(r"(\d+)x(\d+)", args.size)
    if size is None:
        raise common.UsageError(f"--size {args.size}: WIDTHxHEIGHT in pixels, as 256x256")
    width, height = int(size[1]), int(size[2])
    if not 0 < width * height <= MAX_PIXELS or args.count < 1 or args.images_per_shard < 1:
        raise common.UsageError(
            f"--size, --count and --images-per-shard must be 1 or more, a picture at most "
            f"{MAX_PIXELS} pixels"
        )
    units = round(args.temperature * TEMPERATURE_ONE)
    request = Request(args.seed, 0, args.count, height, width, args.steps, units)
    try:
        check_rule(request)
    except CompletionError as error:
        raise common.UsageError(str(error)) from error
    return request


def plan_of(args: argparse.Namespace, specs: list[ShardSpec], codec: Codec) -> Plan:
    """The plan of an archive that is generated."""
    if not codec.has_prior:
        raise common.UsageError(
            f"--weights {args.weights}: no entropy model in them, which is what images are drawn "
            "from: jobs.train --recipe prior makes one"
        )
    return Plan(
        model=codec.fingerprint, quality=codec.config.subcodes, stride=codec.config.stride,
        codewords=codec.config.codewords, inputs=len(specs), inputs_digest=listing_digest(specs),
        store=args.store,
    )  # fmt: skip


def check_same(store: Store, specs: list[ShardSpec]) -> None:
    """Refuse to go on with other images than the archive was begun with.

    Raises:
        pipeline.plan.PlanMismatch: says which.
    """
    from pipeline.archive import layout, table
    from pipeline.store.storage import NotFound

    try:
        there = table.read_listing(store.get(layout.LISTING))
    except NotFound:
        return
    if there != specs:
        raise PlanMismatch(
            f"{store.root} was begun with {len(there)} shards, the first {there[0].url}; now "
            f"{len(specs)}, the first {specs[0].url}: repeat those options, or choose another "
            "--output"
        )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    rule = Rule()
    parser = flags.parser_of("generate", __doc__)
    group = parser.add_argument_group("images")
    flags.add_weights_flag(group)
    group.add_argument("--count", type=int, required=True, metavar="N", help="images")
    group.add_argument("--size", default="256x256", metavar="WxH", help="pixels (%(default)s)")
    group.add_argument("--seed", type=int, default=0, help="another one, other images (0)")
    group.add_argument("--steps", type=int, default=rule.steps, metavar="K",
                       help="passes a group of sub-codes, 1..256 (%(default)s)")  # fmt: skip
    group.add_argument("--temperature", type=float, default=rule.temperature, metavar="T",
                       help="0, the most probable codes, to 16 (%(default)s)")  # fmt: skip
    group = parser.add_argument_group("output")
    group.add_argument("--output", required=True, metavar="URI", help="prefix of the archive")
    flags.add_store_flag(group, default=Plan.store)
    group.add_argument("--images-per-shard", type=int, default=256, metavar="N",
                       help="images of one table (%(default)s)")  # fmt: skip
    flags.add_imageless_flags(parser)
    return flags.parse(parser, argv)


if __name__ == "__main__":
    sys.exit(common.run(main))
