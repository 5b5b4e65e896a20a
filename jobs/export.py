"""Export an archive's codes as WebDataset tars, for programs that cannot read Parquet.

    python -m jobs.export --archive s3://bucket/arch --output s3://bucket/tars

One tar a table, in its order: ``<key>.npy`` (codes [h, w, M], uint8 or uint16), ``<key>.json`` with
the kept columns, size and grid, and ``<key>.txt`` and the like for kept text members.  Where the
JSON of the sources is kept (--keep json), that is ``<key>.json``, with null for NaN, and the rest
is ``<key>.codes.json``.  Images that have no codes are left out.  A table of more than --queue-mb
goes into several tars, ``<shard>.000.tar`` and so on to ``<shard>.tar``.  A tar is written whole or
not at all, and its bytes are always the same; ``export.json`` is written last and names them all:
without it the export is half-written, and the same command again completes it.  For the images
themselves: jobs.decode --format webdataset.

Cost: a tar pads every member to 512 bytes and gives it a header of as many, so codes of 2 KB take
twice the room that they have in the table; one table and one tar are in memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from jobs import common
from jobs.common import flags

SHOWN = 50  # problems in the final text


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, find the tables, write a tar of each, report, exit code."""
    args = parse(argv)
    from pipeline.archive import layout
    from pipeline.archive.table import BadTable
    from pipeline.out import codes, names
    from pipeline.store.storage import NotFound, Store

    archive, output = Store(args.archive), Store(args.output)
    plan = layout.read_plan(archive)
    if not plan.stores_codes:
        raise common.UsageError(str(codes.no_codes(archive)))
    try:
        shards = names.choose_shards(archive, args.shard)
    except names.NoSuchShard as error:
        raise common.UsageError(str(error)) from error
    output.probe()
    tar_bytes = codes.begin(output, plan, args.queue_mb << 20)
    written, problems, tars = 0, list[str](), dict[str, int]()
    meter = common.meter("export", len(shards), "shards")
    for number, shard_id in enumerate(spec.shard_id for spec in shards):
        meter.show(number, f"{written} images, {len(problems)} problems")
        try:
            counts = codes.export_shard(archive, output, plan, shard_id, tar_bytes)
            tars |= counts
            written += sum(counts.values())
        except NotFound:
            problems.append(f"{shard_id}: no table: not encoded, or quarantined; see jobs.status")
        except BadTable as error:
            problems.append(f"{shard_id}: {' '.join(str(error).split())}; see jobs.verify")
    meter.close()
    if not problems and not args.shard:
        done = json.dumps({"images": written, "tars": tars}, indent=1) + "\n"
        output.put(codes.DONE, done.encode())
    lines = [f"{output.root}: {len(tars)} tars with {written} images", *problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"and {len(problems) - SHOWN} more problems")
    sys.stdout.write("\n".join(lines) + "\n")
    return common.INCOMPLETE if problems else common.OK


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = flags.parser_of("export", __doc__)
    flags.add_archive_flag(parser)
    parser.add_argument("--output", required=True, metavar="URI", help="prefix of the tars")
    parser.add_argument("--shard", nargs="+", default=[], metavar="ID",
                        help="shard ids: names of tables in codes/ (all)")  # fmt: skip
    parser.add_argument("--queue-mb", type=int, default=256, metavar="MB", help="of a tar, at "
                        "most; an output keeps its first one (%(default)s)")  # fmt: skip
    args = flags.parse(parser, argv)
    if args.queue_mb < 1:
        parser.error("--queue-mb must be 1 or more")
    return args


if __name__ == "__main__":
    sys.exit(common.run(main))
