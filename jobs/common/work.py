"""What the jobs with replicas do alike: freeze the plan, see what is left, drive, report."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jobs import common
from jobs.common.pools import exporters, open_pool
from pipeline import logs
from pipeline.archive import commit, layout, resume, table
from pipeline.driver import policy, report, run
from pipeline.driver.fleet import IN_FLIGHT
from pipeline.driver.pace import Limits
from pipeline.observe.keeper import Keeper
from pipeline.plan import Plan, PlanMismatch, Resources, ShardSpec, listing_digest
from pipeline.store import shard_names
from pipeline.store.storage import Store
from pqmim import checkpoint
from pqmim.coding.schedule import DEFAULT_PRICE

if TYPE_CHECKING:
    from pipeline.work.host import Work
    from pqmim.codec import Codec

log = logging.getLogger("jobs")


def check_store(store: str, codec: Codec) -> None:
    """Find out now whether the model can make bitstreams, if they are wanted.

    Raises:
        UsageError: its weights hold no entropy model.
    """
    if store != "codes" and not codec.has_prior:
        raise common.UsageError(
            f"--store {store}: model {codec.fingerprint[:16]} has no entropy model, which "
            "bitstreams need; give --store codes, or weights that hold one"
        )


def plan_of(args: argparse.Namespace, specs: list[ShardSpec], codec: Codec) -> Plan:
    """The plan that the flags describe."""
    if not 1 <= args.quality <= codec.config.subcodes:
        raise common.UsageError(
            f"--quality {args.quality}: this model has 1..{codec.config.subcodes}"
        )
    check_store(args.store, codec)
    try:
        return Plan(
            model=codec.fingerprint,
            quality=args.quality,
            stride=codec.config.stride,
            codewords=codec.config.codewords,
            inputs=len(specs),
            inputs_digest=listing_digest(specs),
            store=args.store,
            price=price_of(args),
            image_keys=tuple(k.lower().lstrip(".") for k in args.image_key),
            keep=tuple(args.keep),
            resize=args.resize,
            crop=args.crop,
            min_side=args.min_side,
            max_pixels=args.max_pixels,
            icc=args.icc,
            strict_images=args.strict_images,
            hash=args.hash,
            measure=args.measure,
            batch_pixels=args.batch_pixels,
        )
    except ValueError as error:
        raise common.UsageError(str(error)) from error


def price_of(args: argparse.Namespace) -> float:
    """The price of a bit; raw codes have a fixed length, so bits cost nothing there."""
    if args.price is None:
        return 0.0 if args.store == "codes" else DEFAULT_PRICE
    if args.price and args.store == "codes":
        raise common.UsageError(
            f"--price {args.price}: --store codes has no bits to save; leave it out"
        )
    return float(args.price)


def begin(
    store: Store, plan: Plan, specs: Sequence[ShardSpec], weights: bytes
) -> tuple[Plan, list[ShardSpec]]:
    """Freeze the plan, the input listing and the model in the archive, or find them the same.

    The plan and the shards to follow: an older archive goes on by the rules of its format version,
    and by the names that it gave its shards.

    Raises:
        pipeline.plan.PlanMismatch: the prefix holds another run, or another model.
    """
    begun = commit.begin(store, plan)
    if begun != plan:
        older = "" if begun.has_dropped else "ICC profiles are ignored there, what the codes do " \
            "not hold is not recorded, "  # fmt: skip
        log.warning(
            "%s: of format version %d, and goes on by its rules: %snumbers above 2**53 are null, "
            "AppleDouble members are samples", store.root, begun.format_version, older,
        )  # fmt: skip
    if not store.put_if_absent(layout.LISTING, table.write_listing(specs)):
        specs = table.read_listing(store.get(layout.LISTING))
        if listing_digest(specs) != plan.inputs_digest:
            url = store.url(layout.LISTING)
            raise PlanMismatch(f"{url}: not the listing of its plan.json: it was replaced; restore "
                               "it, or choose another output")  # fmt: skip
    shard_names.check_unique((spec.shard_id, spec.url) for spec in specs)
    _put_model(store, plan, weights)
    return begun, list(specs)


def _put_model(store: Store, plan: Plan, weights: bytes) -> None:
    """Freeze the model; one that is there must be the same, if perhaps another file of it."""
    name = layout.model_name(plan.model)
    if store.put_if_absent(name, weights):
        return
    try:
        there = checkpoint.parse(store.get(name), store.url(name)).fingerprint
    except checkpoint.CheckpointError as error:
        raise PlanMismatch(f"{error}; put the weights {plan.model[:16]} there again") from error
    if there != plan.model:
        raise PlanMismatch(
            f"{store.url(name)}: holds model {there[:16]}, the plan says {plan.model[:16]}: put "
            "the right weights there, or choose another output"
        )


def work_off(
    store: Store, plan: Plan, specs: Sequence[ShardSpec], resources: Resources, work: Work,
    retry_failed: bool, max_bad_images: float = 1.0, limits: Limits = Limits(),  # noqa: B008
) -> int:  # fmt: skip
    """What is left, drive, report, exit code."""
    left = resume.find_left(store, list(specs), retry_failed)
    counts = (
        f"{left.committed} committed, {len(left.quarantined)} quarantined, {len(left.todo)} to do"
    )
    log.info("%d shards: %s", len(specs), counts)
    progress = report.Progress(len(specs), left.committed, sum(s.size for s in left.todo))
    progress.damaged += left.damaged
    progress.set_aside = len(left.quarantined)
    progress.encodes = getattr(work, "__name__", "") == "encode_shard"
    progress.run, state, message = common.run_id(), "interrupted", ""
    progress.resources = resources
    keeper = Keeper(store, plan, progress)
    try:
        if left.todo:
            with logs.run(progress.run):
                drive(
                    plan, left.todo, store, store, progress, resources, work, max_bad_images, limits
                )
        state = "complete"
    except policy.Stopped as stop:
        state, message = "stopped", str(stop)
        if progress.first_work is None:
            raise common.UsageError(message) from stop
    finally:
        summary = keeper.keep(state, message)
    sys.stdout.write(report.text(summary) + "\n" + (f"stopped: {message}\n" if message else ""))
    bad = progress.damaged or progress.quarantined or left.quarantined
    return common.OK if state == "complete" and not bad else common.INCOMPLETE


def drive(
    plan: Plan, todo: Sequence[ShardSpec], store: Store, own: Store, progress: report.Progress,
    resources: Resources, work: Work, max_bad_images: float = 1.0,
    limits: Limits = Limits(),  # noqa: B008, frozen
) -> None:  # fmt: skip
    """Run the replicas over what is left, and end them whatever happens; shards that are given up
    are kept in ``own``."""
    queues = 2 * IN_FLIGHT * resources.queue_bytes  # images as files and as pixels
    limits = replace(limits, rss_growth_bytes=limits.rss_growth_bytes + queues)
    progress.run = progress.run or common.run_id()
    progress.meter = common.meter("progress", progress.bytes_left)
    try:
        with open_pool(store, plan, resources, work) as (pool, found):
            progress.resources = found
            progress.watchers += exporters(found, progress)
            log.info("starting %d replicas: each loads the model and tries it", found.replicas)
            run.run(todo, pool, own, progress, max_bad_images, found.replicas, limits)
    finally:
        progress.end()
