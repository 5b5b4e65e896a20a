"""Encode shards of images into an archive of code tables.

    python -m jobs.encode --input 's3://bucket/shards/{000000..009999}.tar' --output
    s3://bucket/arch python -m jobs.encode --input photos/ --output archive --device cpu --replicas
    2

The same command again resumes: what is committed is not encoded again.  See jobs.status,
jobs.finish and jobs.verify for what comes after.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs import common
from pipeline import commit, driver, report, table
from pipeline.encoder import encode_shard
from pipeline.plan import Plan, Resources, ShardSpec
from pipeline.storage import Store
from pqmim import checkpoint
from pqmim.codec import Codec

if TYPE_CHECKING:
    from pipeline.actors import Work  # imports Ray

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
    begin(store, plan, specs, weights)
    return work_off(
        store, plan, specs, resources, encode_shard, args.retry_failed, args.max_bad_images
    )


def work_off(
    store: Store, plan: Plan, specs: list[ShardSpec], resources: Resources, work: Work,
    retry_failed: bool, max_bad_images: float,
) -> int:  # fmt: skip
    """What is left, drive, report, exit code."""
    committed = commit.committed_ids(store)
    quarantined = set() if retry_failed else set(commit.quarantined(store))
    left = [s for s in specs if s.shard_id not in committed and s.shard_id not in quarantined]
    counts = f"{len(committed)} committed, {len(quarantined)} quarantined, {len(left)} to do"
    log.info("%d shards: %s", len(specs), counts)
    progress = report.Progress(len(specs), len(committed), sum(s.size for s in left))
    name, state, bare, message = common.run_id(), "interrupted", 0.0, ""
    try:
        if left:
            bare = drive(plan, left, store, progress, resources, work, max_bad_images)
        state = "complete"
    except driver.Stopped as stop:
        state, message = "stopped", str(stop)
    finally:
        summary = progress.summary(plan, resources.device, resources.replicas, bare, state)
        report.save(store, name, summary)
    sys.stdout.write(report.text(summary) + "\n" + (f"stopped: {message}\n" if message else ""))
    return common.OK if complete(store, specs, state) else common.INCOMPLETE


def begin(store: Store, plan: Plan, specs: list[ShardSpec], weights: bytes) -> None:
    """Freeze the plan, the input listing and the model in the archive, or find them the same.

    Raises:
        pipeline.plan.PlanMismatch: the prefix holds another run.
    """
    commit.begin(store, plan)
    store.put_if_absent("inputs.parquet", table.write_listing(specs))
    store.put_if_absent(commit.model_name(plan.model), weights)


def drive(
    plan: Plan, left: list[ShardSpec], store: Store, progress: report.Progress,
    resources: Resources, work: Work, max_bad_images: float,
) -> float:  # fmt: skip
    """Run the replicas over what is left; returns the bare speed in megapixels a second, which is
    a measure of encoding alone."""
    from pipeline.actors import NoReplicas, RayPool  # imports Ray

    common.connect(resources)
    try:
        pool = RayPool(store, plan, resources, work)
    except NoReplicas as error:
        raise common.UsageError(str(error)) from error
    bare = pool.bare_megapixels_per_s if work is encode_shard else 0.0
    progress.first_work = time.monotonic()
    try:
        driver.run(left, pool, store, progress, max_bad_images)
    finally:
        pool.close()
    return bare


def complete(store: Store, specs: list[ShardSpec], state: str) -> bool:
    """Every shard committed and none of them damaged or quarantined."""
    if state != "complete":
        return False
    results = commit.committed(store)
    return all(s.shard_id in results and results[s.shard_id].outcome == "done" for s in specs)


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
