"""Decode an archive's code tables back to images, with the model that the archive carries.

    python -m jobs.decode --archive s3://bucket/arch --output pictures --format webdataset
    python -m jobs.decode --archive arch --output pictures --device cpu --key cyclamen
    python -m jobs.decode --archive s3://bucket/arch --output s3://bucket/png --replicas 8

png and jpeg write ``<output>/<shard_id>/<key>.png``, with everything in a key but letters, digits,
``_``, ``-`` and ``~`` as %XX; webdataset writes ``<output>/<shard_id>.tar`` with PNG and the kept
text members, and before it ``<shard_id>.000.tar`` and so on where a shard has more than half of
--queue-mb.  A picture that its format cannot hold is named, the others are written.  The same
command again writes only what is missing.  Finding a ``--key`` reads every table: give the
``--shard`` too if it is known.

One replica decodes in this process; several are processes of this machine or Ray's actors, as with
jobs.encode.  Memory of each: the table, and at most --queue-mb of pictures a shard in flight.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs import common
from jobs.common import flags

if TYPE_CHECKING:
    from pipeline.out.decoded import Totals
    from pipeline.out.shares import Decoder
    from pipeline.plan import Plan, Resources, ShardSpec
    from pipeline.store.storage import Store
    from pipeline.work.replica import Replica


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, find the tables, decode each, report, exit code."""
    args = parse(argv)
    from pipeline.archive import layout
    from pipeline.out import names, pictures
    from pipeline.out.shares import Decoder
    from pipeline.store.storage import Store

    resources = flags.resources_of(args)
    archive, output = Store(args.archive), Store(args.output)
    plan = layout.read_plan(archive)
    try:
        shards = names.choose_shards(archive, args.shard)
    except names.NoSuchShard as error:
        raise common.UsageError(str(error)) from error
    alone = resources.replicas == 1
    model = load(archive, plan, resources) if alone else None
    output.probe()
    tar_bytes = pictures.begin(output, plan, max(1, resources.queue_bytes // 2))
    keys = frozenset(args.key)
    work = Decoder(output, args.format, keys, tar_bytes)
    if model is not None:
        totals = here(archive, plan, shards, model, work)
    else:
        totals = by_replicas(archive, plan, shards, resources, work)
    for key in sorted(keys - totals.keys):
        totals.problems.add(f"no shard has the key {key!r}")
    sys.stdout.write(totals.text() + "\n")
    return common.INCOMPLETE if totals.problems.count else common.OK


def load(archive: Store, plan: Plan, resources: Resources) -> Replica:
    """The one replica, in this process."""
    import torch

    from jobs.common.pools import local_device
    from pipeline.work.decoder import load_codec
    from pipeline.work.replica import Replica

    device = local_device(resources.device)
    torch.set_num_threads(resources.threads)
    codec = load_codec(archive, plan, device)
    return Replica(codec, resources.decode_threads, resources.queue_bytes)


def here(
    archive: Store, plan: Plan, shards: Sequence[ShardSpec], replica: Replica, work: Decoder
) -> Totals:
    """One shard after the other."""
    from pipeline.out import pictures
    from pipeline.out.decoded import Totals

    totals, meter = Totals(), common.meter("decode", len(shards), "shards")
    for number, spec in enumerate(shards):

        def show(count: int, number: int = number) -> None:
            meter.show(number, f"{totals.written + count} images, {totals.bad.count} bad")

        task = pictures.Task(
            archive, work.output, plan, replica, work.form, work.keys, work.tar_bytes, show
        )
        totals.join(pictures.decode_shard(task, spec.shard_id))
    meter.close()
    return totals


def by_replicas(
    archive: Store, plan: Plan, shards: Sequence[ShardSpec], resources: Resources, work: Decoder
) -> Totals:
    """Shards by several replicas; one that is given up is a problem, and what stops the run too."""
    from jobs.common.work import drive
    from pipeline.driver import policy, report
    from pipeline.out.decoded import Totals
    from pipeline.out.shares import Decoded
    from pipeline.store.storage import Store

    class Joined(report.Progress):
        def shard_done(self, result: report.ShardResult, now: float, seconds: float) -> None:
            super().shard_done(result, now, seconds)
            if isinstance(result, Decoded):
                totals.join(result.totals)

    totals = Totals()
    progress = Joined(len(shards), 0, sum(spec.size for spec in shards), encodes=False)
    given_up = Store(work.output.url("decode"))  # keeps their records out of the archive's
    try:
        drive(plan, shards, archive, given_up, progress, resources, work)
    except policy.Stopped as stop:
        if progress.first_work is None:
            raise common.UsageError(str(stop)) from stop
        totals.problems.add(f"stopped before the end: {stop}")
    for url in progress.quarantined:
        totals.problems.add(f"{url}: could not be decoded; see {given_up.url('failed/')}")
    return totals


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = flags.parser_of("decode", __doc__)
    group = parser.add_argument_group("input")
    group.add_argument("--archive", required=True, metavar="URI", help="what jobs.encode wrote")
    group.add_argument("--shard", nargs="+", default=[], metavar="ID",
                       help="shard ids: names of tables in codes/ (all)")  # fmt: skip
    group.add_argument("--key", nargs="+", default=[], help="images, png and jpeg only (all)")
    group = parser.add_argument_group("output")
    group.add_argument("--output", required=True, metavar="URI", help="prefix of the images")
    group.add_argument("--format", choices=["png", "jpeg", "webdataset"], default="png",
                       help="files, or tars of PNG (%(default)s)")  # fmt: skip
    flags.add_resource_flags(parser)
    args = flags.parse(parser, argv)
    if args.key and args.format == "webdataset":
        parser.error("--key with --format webdataset: a tar holds a whole shard; take png or jpeg")
    if args.threads < 1:
        parser.error("--threads must be 1 or more")
    return args


if __name__ == "__main__":
    sys.exit(common.run(main))
