"""Verify an archive: tables against ledger, plan and listing, and images against their sources.

    python -m jobs.verify --archive s3://bucket/arch
    python -m jobs.verify --archive s3://bucket/arch --full --replicas 8
    python -m jobs.verify --archive arch --device cpu --decode-fraction 0.01 --no-source

Without ``--full`` or ``--decode-fraction``: all tables in this process, and a sample of images.
Those two work by replicas, as jobs.encode does, and ``--full`` alone can say SAFE TO DELETE: it
reads every source and compares every image.  The last line is the verdict.  Exit code 0 only if
every shard is done, every check passed and, with ``--full``, the verdict is that; else 3, with each
problem named.  Kept in the archive: ``runs/<id>/verify.json``, and a line a shard in
``runs/<id>/verify/*.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from jobs import common
from jobs.common import flags

if TYPE_CHECKING:
    from pipeline.plan import Plan, Resources, ShardSpec
    from pipeline.proof.prover import Prover
    from pipeline.proof.verdict import Report, Verdict
    from pipeline.store.storage import Store
    from pipeline.work.replica import Replica

log = logging.getLogger("jobs.verify")
TABLES = 8  # tables read and checked at once in this process
RECORDS = 32  # verdicts of shards read at once; each is a small GET
LINES = 10_000  # shards in one list, about 5 MB


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check the model, every shard and a sample, report, exit code."""
    args = parse(argv)
    import torch

    from jobs.common.pools import local_device
    from pipeline.archive import layout, table
    from pipeline.proof import sampled, tables
    from pipeline.proof.verdict import Report
    from pipeline.store.storage import Store

    resources = flags.resources_of(args)
    torch.set_num_threads(resources.threads)  # more than there are free cores wait for each other
    store, name = Store(args.archive), args.resume or common.run_id()
    plan = layout.read_plan(store)
    specs = table.read_listing(store.get(layout.LISTING))
    by_replicas = args.full or args.decode_fraction is not None
    device = "cpu" if by_replicas else local_device(args.device)
    found = Report(plan, len(specs), args.full and not args.no_source, args.accept_failed_images)
    found.archive += tables.check_archive(store, plan, specs)
    replica = open_model(store, plan, device, found)
    if by_replicas and replica is not None:
        checks, resumed = prover_of(args, name), args.resume is not None
        verdicts = prove(store, plan, specs, resources, checks, resumed, found)
    else:
        verdicts = tables.check_tables(store, plan, specs, not args.no_source, TABLES)
    good = write_lines(store, name, specs, verdicts, found)
    chosen = sampled.spread(good, 0 if args.full else args.sample)
    if replica is not None:
        arguments = store, plan, specs, chosen, replica, args.min_psnr, not args.no_source
        for one in sampled.compare_sample(*arguments):
            if by_replicas:  # these may be of the share that is counted already
                one.proved["bitstreams"] = one.proved["pictures"] = 0
            found.total.add(one)
    if layout.read_plan(store) != plan:
        found.archive.append("plan.json: was replaced while the archive was verified")
    return finish(store, name, found, args)


def finish(store: Store, name: str, found: Report, args: argparse.Namespace) -> int:
    """Print and keep what was found; the exit code."""
    if not found.total.proved["compared"]:
        found.total.not_proved.append("no image was decoded and compared with its source")
    asked = {key: value for key, value in vars(args).items() if key != "archive"}
    record = json.dumps({**found.record(), "asked": asked}, indent=1) + "\n"
    store.put(f"runs/{name}/verify.json", record.encode())
    sys.stdout.write(found.text() + "\n")
    return common.OK if (found.safe if found.full else found.complete) else common.INCOMPLETE


def open_model(store: Store, plan: Plan, device: str, found: Report) -> Replica | None:
    """The archive's model; loading it proves that it hashes to its name."""
    from pipeline.store.storage import NotFound
    from pipeline.work import decoder
    from pqmim.checkpoint import CheckpointError

    try:
        return decoder.load_replica(store, plan, device)
    except (CheckpointError, NotFound) as error:
        found.archive.append(f"model: {error}")
        return None


def write_lines(
    store: Store, name: str, specs: Sequence[ShardSpec], verdicts: Iterable[Verdict], found: Report
) -> list[int]:
    """Add up the verdicts, and keep a line of each; the good images of each shard."""
    good, lines = list[int](), list[bytes]()
    meter = common.meter("verify", len(specs), "shards")
    for spec, one in zip(specs, verdicts, strict=True):
        problems = sum(map(len, (found.total.problems, found.archive)))
        meter.show(len(good), f"{len(good)}/{len(specs)} shards, {problems} problems")
        lines.append(found.add(spec, one))
        good.append(one.proved["images"] if not one.problems else 0)
        if len(good) % LINES == 0 or len(good) == len(specs):
            number = (len(good) - 1) // LINES
            store.put(f"runs/{name}/verify/{number:05d}.jsonl", b"".join(lines))
            lines.clear()
    meter.close()
    return good


# By replicas -------------------------------------------------------------------------------------


def prover_of(args: argparse.Namespace, name: str) -> Prover:
    """The checks that the flags describe."""
    from pipeline.proof.prover import Prover

    fraction = 1.0 if args.full else args.decode_fraction
    return Prover(name, args.full, fraction, not args.no_source, args.min_psnr)


def prove(
    store: Store, plan: Plan, specs: Sequence[ShardSpec], resources: Resources, prover: Prover,
    resumed: bool, found: Report,
) -> Iterator[Verdict]:  # fmt: skip
    """Have the replicas prove what is left of a verification, then read every shard's verdict."""
    from jobs.common.work import drive
    from pipeline.archive import commit
    from pipeline.driver import policy, report
    from pipeline.proof import tables
    from pipeline.proof.prover import read_record, still_proved
    from pipeline.proof.verdict import Verdict
    from pipeline.store.storage import Store

    log.info("verification %s; give --resume %s to go on with it", prover.run, prover.run)
    left = list(specs)
    if resumed:
        there = tables.in_order(lambda s: still_proved(store, plan, s, prover), specs, RECORDS)
        left = [spec for spec, done in zip(specs, there, strict=True) if not done]
    log.info("%d shards: %d proved before, %d to do", len(specs), len(specs) - len(left), len(left))
    own = Store(store.url(f"runs/{prover.run}"))  # keeps the shards given up out of the archive's
    progress = report.Progress(len(specs), len(specs) - len(left), sum(s.size for s in left))
    progress.run = prover.run
    if left:
        try:
            # Bad images were judged when they were encoded: any share of them will do.
            drive(plan, left, store, own, progress, resources, prover)
        except policy.Stopped as stop:
            if progress.first_work is None:
                raise common.UsageError(str(stop)) from stop
            found.archive.append(f"stopped before the end: {stop}")
    given_up = commit.quarantined(own)

    def verdict(spec: ShardSpec) -> Verdict:
        one = read_record(store, plan, spec, prover)
        if one is None:
            record = given_up.get(spec.shard_id)
            why = f" in {record.attempts} attempts: {record.reason}" if record else ""
            one = Verdict(problems=[f"{spec.shard_id}: could not be checked{why}"])
        return one

    return tables.in_order(verdict, specs, RECORDS)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = flags.parser_of("verify", __doc__)
    flags.add_archive_flag(parser)
    parser.add_argument("--no-source", action="store_true",
                        help="the sources are gone: do not look at them")  # fmt: skip
    group = parser.add_argument_group("images")
    group.add_argument("--sample", type=int, default=32, metavar="N", help="images, spread evenly "
                       "over the shards, compared with their sources (%(default)s)")  # fmt: skip
    group.add_argument("--decode-fraction", type=float, metavar="F", help="of every shard, decode "
                       "this share of the images, one at least, by replicas")  # fmt: skip
    group.add_argument("--full", action="store_true", help="read every source and compare every "
                       "image, by replicas: before originals are deleted")  # fmt: skip
    group.add_argument("--min-psnr", type=float, default=15.0, metavar="DB",
                       help="an image below is a problem (%(default)s)")  # fmt: skip
    group.add_argument("--accept-failed-images", action="store_true", help="with --full: samples "
                       "that could not be encoded may be deleted as well")  # fmt: skip
    group.add_argument("--resume", metavar="ID", help="go on with a --full or --decode-fraction "
                       "that was interrupted")  # fmt: skip
    flags.add_resource_flags(parser)
    args = flags.parse(parser, argv)
    if args.sample < 0:
        parser.error("--sample must be 0 or more")
    if args.decode_fraction is not None and not 0 < args.decode_fraction <= 1:
        parser.error("--decode-fraction must be above 0, at most 1")
    if args.full and args.decode_fraction is not None:
        parser.error("--full decodes every image: leave --decode-fraction out")
    if args.resume and not (args.full or args.decode_fraction):
        parser.error("--resume goes with --full or --decode-fraction")
    if args.accept_failed_images and not args.full:
        parser.error("--accept-failed-images goes with --full")
    return args


if __name__ == "__main__":
    sys.exit(common.run(main))
