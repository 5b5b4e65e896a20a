"""Write an archive's manifest, once every shard is committed or quarantined.

    python -m jobs.finish --archive s3://bucket/arch

    python -m jobs.finish --archive s3://bucket/arch --target-mb 128

``manifest.parquet`` has one row a table and is what readers open instead of listing the tables.
With ``--target-mb`` small tables are copied together into ``packed/``, and the manifest names the
copies; verify, decode and transcode go on with the archive's own tables.  The same command again
writes the manifest anew.  Ledger entries are read and written in batches, so
that memory grows with the input listing alone.  Exit code 3 if shards are missing (then there is no
manifest), quarantined or damaged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jobs import common
from jobs.common import flags

if TYPE_CHECKING:
    from pipeline.plan import ShardResult

MAX_MB = 1024  # of a packed table


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, see what is missing, write the manifest, exit code."""
    args = parse(argv)
    from pipeline.archive import commit, compaction, layout, manifest, table
    from pipeline.archive.resume import ledger
    from pipeline.store.storage import Store

    store = Store(args.archive)
    plan = layout.read_plan(store)
    specs = table.read_listing(store.get(layout.LISTING))
    done, given_up = commit.committed_ids(store), commit.quarantined(store)
    missing = [s for s in specs if s.shard_id not in done and s.shard_id not in given_up]
    if missing:
        sys.stdout.write(
            f"{len(missing)} of {len(specs)} shards are missing, the first is {missing[0].url}; no "
            f"manifest was written. To resume: the same command that began this archive, "
            f"python -m jobs.encode --output {store.root} with its --input and options\n"
        )
        return common.INCOMPLETE
    tables, damaged = 0, list[str]()
    meter = common.meter("finish", len(done), "tables")

    def results() -> Iterator[ShardResult]:
        nonlocal tables
        for result in ledger(store, specs, done):
            tables += 1
            meter.show(tables, f"{tables}/{len(done)} tables")
            if result.outcome != "done":
                damaged.append(result.url)
            yield result

    if args.target_mb is None:
        entries = manifest.describe(store, plan, results())
    else:
        entries = compaction.pack(store, plan, results(), args.target_mb << 20)
    store.put(manifest.MANIFEST, manifest.write(entries, plan))
    meter.close()
    lines = [f"{store.url(manifest.MANIFEST)}: {tables} tables, {len(damaged)} of damaged shards"]
    lines += [f"damaged: {url}" for url in damaged]
    lines += [f"quarantined, without a table: {q.url}: {q.reason}" for q in given_up.values()]
    if given_up:
        lines.append("To try these again: the same jobs.encode command with --retry-failed")
    sys.stdout.write("\n".join(lines) + "\n")
    return common.INCOMPLETE if given_up or damaged else common.OK


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = flags.parser_of("finish", __doc__)
    flags.add_archive_flag(parser)
    parser.add_argument("--target-mb", type=int, metavar="N",
                        help="join small tables into copies of at most N MiB")  # fmt: skip
    args = flags.parse(parser, argv)
    if args.target_mb is not None and not 1 <= args.target_mb <= MAX_MB:
        parser.error(f"--target-mb must be 1 to {MAX_MB}")
    return args


if __name__ == "__main__":
    sys.exit(common.run(main))
