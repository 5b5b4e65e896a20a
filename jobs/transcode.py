"""Copy an archive with other payload columns: bitstreams to raw codes, and back.

    python -m jobs.transcode --archive s3://bucket/arch --output s3://bucket/raw --store codes

Neither the source images nor the autoencoder are needed; every crc32 is checked on the way.  The
same command again resumes.  The output is an archive like any other, with the old one's plan but
for the store: what the old one lacks, jobs.encode can add with the old command and that --store.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from jobs import common
from jobs.common import flags


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, read the old plan, freeze the new one, work off what is committed there."""
    args = parse(argv)
    from jobs.common import work
    from pipeline.archive import commit, layout, table
    from pipeline.plan import listing_digest
    from pipeline.store.storage import Store
    from pipeline.work import decoder
    from pipeline.work.transcoder import Transcoder

    resources = flags.resources_of(args)
    source, store = Store(args.archive), Store(args.output)
    old = layout.read_plan(source)
    specs = table.read_listing(source.get(layout.LISTING))
    if listing_digest(specs) != old.inputs_digest:
        raise table.BadTable(f"{source.url('inputs.parquet')}: not the listing of its plan.json")
    if old.store == args.store:
        raise common.UsageError(f"--store {args.store}: {source.root} has that already; copy it")
    work.check_store(args.store, decoder.load_replica(source, old, "cpu").codec)
    plan = replace(old, store=args.store)
    store.probe()
    weights = source.get(layout.model_name(old.model))
    plan, begun = work.begin(store, plan, specs, weights)
    if begun != specs:
        raise common.UsageError(
            f"{store.root}: was begun with other names for the same shards than {source.root} has: "
            "choose another output"
        )
    there = commit.committed_ids(source)
    todo = [spec for spec in specs if spec.shard_id in there]
    # Bad images were judged when they were encoded: any share of them will do.
    code = work.work_off(store, plan, todo, resources, Transcoder(source, old), args.retry_failed)
    if len(todo) == len(specs):
        return code
    sys.stdout.write(f"{len(specs) - len(todo)} of {len(specs)} shards are not in {source.root}\n")
    return common.INCOMPLETE


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = flags.parser_of("transcode", __doc__)
    flags.add_archive_flag(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--output", required=True, metavar="URI", help="prefix of the new archive")
    flags.add_store_flag(group)
    flags.add_imageless_flags(parser)
    return flags.parse(parser, argv)


if __name__ == "__main__":
    sys.exit(common.run(main))
