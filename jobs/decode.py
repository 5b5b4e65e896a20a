"""Decode an archive's code tables back to images, with the model that the archive carries.

    python -m jobs.decode --archive s3://bucket/arch --output pictures --format webdataset
    python -m jobs.decode --archive arch --output pictures --device cpu --key cyclamen

png and jpeg write ``<output>/<shard_id>/<key>.png``, with everything in a key but letters, digits,
``_``, ``-`` and ``~`` as %XX; webdataset writes ``<output>/<shard_id>.tar`` with PNG and the kept
text members, and holds one shard's tar in memory.  The same command again writes only what is
missing.  Finding a ``--key`` reads every table: give the ``--shard`` too if it is known.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from jobs import common
from jobs.common import flags


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, find the tables, decode each, report, exit code."""
    args = parse(argv)
    import torch

    from jobs.common.pools import local_device
    from pipeline.archive import layout
    from pipeline.out import names, pictures
    from pipeline.store.storage import Store
    from pipeline.work import decoder

    archive, output = Store(args.archive), Store(args.output)
    plan = layout.read_plan(archive)
    try:
        shards = names.choose_shards(archive, args.shard)
    except names.NoSuchShard as error:
        raise common.UsageError(str(error)) from error
    device = local_device(args.device)
    torch.set_num_threads(args.threads)
    replica = decoder.load_replica(archive, plan, device)
    output.probe()
    pictures.begin(output, plan)
    totals, meter = pictures.Totals(), common.meter("decode", len(shards), "shards")
    with ThreadPoolExecutor(args.threads) as pool:
        keys = frozenset(args.key)
        task = pictures.Task(archive, output, plan, replica, args.format, keys, pool, meter)
        for number, shard_id in enumerate(shards):
            task.number = number
            pictures.decode_shard(task, shard_id, totals)
    meter.close()
    totals.problems += [f"no shard has the key {key!r}" for key in keys - totals.keys]
    sys.stdout.write(pictures.text(totals) + "\n")
    return common.INCOMPLETE if totals.problems else common.OK


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
                       help="files, or one tar of PNG a shard (%(default)s)")  # fmt: skip
    group = parser.add_argument_group("resources")
    flags.add_device_flags(group)
    args = flags.parse(parser, argv)
    if args.key and args.format == "webdataset":
        parser.error("--key with --format webdataset: a tar holds a whole shard; take png or jpeg")
    if args.threads < 1:
        parser.error("--threads must be 1 or more")
    return args


if __name__ == "__main__":
    sys.exit(common.run(main))
