"""Write an archive's manifest, once every shard is committed or quarantined.

    python -m jobs.finish --archive s3://bucket/arch

``manifest.parquet`` has one row a table and is what readers open instead of listing the tables.
The same command again writes it anew.  Exit code 3 if shards are missing (then there is no
manifest), quarantined or damaged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs import common
from jobs.status import read_ledger
from pipeline import commit, table
from pipeline.storage import Store

MANIFEST = "manifest.parquet"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, see what is missing, write the manifest, exit code."""
    args = parse(argv)
    store = Store(args.archive)
    commit.read_plan(store)
    specs = table.read_listing(store.get("inputs.parquet"))
    results, given_up = read_ledger(store, specs), commit.quarantined(store)
    known = {r.shard_id for r in results} | set(given_up)
    missing = [s for s in specs if s.shard_id not in known]
    if missing:
        sys.stdout.write(
            f"{len(missing)} of {len(specs)} shards are missing, the first is {missing[0].url}; no "
            f"manifest was written. To resume: the same command that began this archive, "
            f"python -m jobs.encode --output {store.root} with its --input and options\n"
        )
        return common.INCOMPLETE
    store.put(MANIFEST, table.write_manifest(results))
    damaged = [r for r in results if r.outcome != "done"]
    lines = [f"{store.url(MANIFEST)}: {len(results)} tables, {len(damaged)} of damaged shards"]
    lines += [f"damaged: {r.url}" for r in damaged]
    lines += [f"quarantined, without a table: {q.url}: {q.reason}" for q in given_up.values()]
    if given_up:
        lines.append("To try these again: the same jobs.encode command with --retry-failed")
    sys.stdout.write("\n".join(lines) + "\n")
    return common.INCOMPLETE if given_up or damaged else common.OK


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("jobs.finish", description=__doc__.split("\n")[0])
    parser.add_argument("--archive", required=True, metavar="URI", help="what jobs.encode wrote")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(common.run(main))
