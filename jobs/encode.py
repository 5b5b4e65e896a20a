"""Encode shards of images into an archive of code tables.

    python -m jobs.encode --input 's3://bucket/{000000..009999}.tar' --output s3://bucket/arch
    python -m jobs.encode --input photos/ --output archive --device cpu --replicas 2

The same command again resumes: what is committed is not encoded again.  See jobs.status,
jobs.finish and jobs.verify for what comes after.  Ctrl-C or SIGTERM ends the replicas, writes the
summary of what was done and exits with 130; a second one exits at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jobs import common
from pipeline.archive import commit, resume, table
from pipeline.driver import policy, report, run
from pipeline.driver.fleet import IN_FLIGHT
from pipeline.driver.pace import Limits
from pipeline.plan import Plan, Resources, ShardSpec
from pipeline.store.storage import Store
from pipeline.work.encoder import encode_shard
from pqmim import checkpoint
from pqmim.codec import Codec

if TYPE_CHECKING:
    from pipeline.work.host import Work

log = logging.getLogger("jobs.encode")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, plan, freeze it in the archive, work it off."""
    args = parse(argv)
    resources = common.resources_of(args)
    store = Store(args.output)
    store.probe()
    specs = common.list_shards(args.input)
    weights = checkpoint.read(args.model)
    plan = common.plan_of(args, specs, Codec.from_bytes(weights, name=args.model))
    plan = begin(store, plan, specs, weights)
    return work_off(
        store, plan, specs, resources, encode_shard, args.retry_failed, args.max_bad_images
    )


def work_off(
    store: Store, plan: Plan, specs: list[ShardSpec], resources: Resources, work: Work,
    retry_failed: bool, max_bad_images: float, limits: Limits = Limits(),  # noqa: B008, frozen
) -> int:  # fmt: skip
    """What is left, drive, report, exit code."""
    left = resume.find_left(store, specs, retry_failed)
    counts = (
        f"{left.committed} committed, {len(left.quarantined)} quarantined, {len(left.todo)} to do"
    )
    log.info("%d shards: %s", len(specs), counts)
    progress = report.Progress(len(specs), left.committed, sum(s.size for s in left.todo))
    progress.damaged += left.damaged
    name, state, message = common.run_id(), "interrupted", ""
    try:
        if left.todo:
            drive(plan, left.todo, store, progress, resources, work, max_bad_images, limits)
        state = "complete"
    except policy.Stopped as stop:
        state, message = "stopped", str(stop)
        if progress.first_work is None:
            raise common.UsageError(message) from stop
    finally:
        bare = progress.bare_mpx_s if work is encode_shard else 0.0
        summary = progress.summary(plan, resources.device, resources.replicas, bare, state)
        report.save(store, name, summary)
    sys.stdout.write(report.text(summary) + "\n" + (f"stopped: {message}\n" if message else ""))
    bad = progress.damaged or progress.quarantined or left.quarantined
    return common.OK if state == "complete" and not bad else common.INCOMPLETE


def begin(store: Store, plan: Plan, specs: list[ShardSpec], weights: bytes) -> Plan:
    """Freeze the plan, the input listing and the model in the archive, or find them the same.

    The plan to follow: that of an older archive is one by the rules of its format version.

    Raises:
        pipeline.plan.PlanMismatch: the prefix holds another run.
    """
    begun = commit.begin(store, plan)
    if begun != plan:
        log.warning("%s: of format version 1: ICC profiles are ignored there, and what the codes "
                    "do not hold is not recorded", store.root)  # fmt: skip
    store.put_if_absent("inputs.parquet", table.write_listing(specs))
    store.put_if_absent(commit.model_name(plan.model), weights)
    return begun


def drive(
    plan: Plan, todo: list[ShardSpec], store: Store, progress: report.Progress,
    resources: Resources, work: Work, max_bad_images: float, limits: Limits,
) -> None:  # fmt: skip
    """Run the replicas over what is left, and end them whatever happens."""
    from pipeline.driver.ray_pool import RayPool  # imports Ray

    common.connect(resources)
    queues = 2 * IN_FLIGHT * resources.queue_bytes  # images as files and as pixels
    limits = replace(limits, rss_growth_bytes=limits.rss_growth_bytes + queues)
    pool = RayPool(store, plan, resources, work)
    try:
        run.run(todo, pool, store, progress, max_bad_images, resources.replicas, limits)
    finally:
        pool.close()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("jobs.encode", description=__doc__.split("\n")[0])
    common.add_plan_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--output", required=True, metavar="URI", help="prefix of the archive")
    common.add_resource_flags(parser)
    group = parser.add_argument_group("failure policy")
    group.add_argument(
        "--max-bad-images",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="stop when more than this share cannot be encoded (%(default)s)",
    )
    group.add_argument("--retry-failed", action="store_true", help="try quarantined shards again")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(common.run(main))
