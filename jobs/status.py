"""Say how far an archive is: shards, images, bytes, and how the last run went.

    python -m jobs.status --archive s3://bucket/arch

Reads the listing, the ledger and the last summary, no tables.  Exit code 0 if every shard is done,
else 3.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from jobs import common
from pipeline import commit, report, table
from pipeline.plan import Plan, ShardResult, ShardSpec
from pipeline.storage import Store

SHOWN = 50  # shards named of each kind


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, read the ledger, report, exit code."""
    args = parse(argv)
    store = Store(args.archive)
    plan = commit.read_plan(store)
    specs = table.read_listing(store.get("inputs.parquet"))
    results = read_ledger(store, specs)
    damaged = [r for r in results if r.outcome != "done"]
    quarantined = commit.quarantined(store)
    lines = [shards(store, specs, results, len(damaged), len(quarantined)), *content(plan, results)]
    reasons = [f"damaged: {r.url}: {'; '.join(r.damage)}" for r in damaged]
    reasons += [f"quarantined: {q.url}: {q.reason}" for q in quarantined.values()]
    lines += reasons[:SHOWN]
    if len(reasons) > SHOWN:
        lines.append(f"and {len(reasons) - SHOWN} more; jobs.verify names them all")
    sys.stdout.write("\n".join(lines + last_run(store)) + "\n")
    done = len(results) == len(specs) and not damaged
    return common.OK if done else common.INCOMPLETE


def read_ledger(store: Store, specs: Sequence[ShardSpec]) -> list[ShardResult]:
    """The ledger entries of the listing's shards, in its order."""
    try:
        found = commit.committed(store)
    except (ValueError, TypeError, KeyError) as error:
        raise common.UsageError(
            f"{store.url('ledger/')}: an entry is damaged ({error}): jobs.verify names it"
        ) from error
    return [found[s.shard_id] for s in specs if s.shard_id in found]


def shards(store: Store, specs: Sequence[ShardSpec], results: Sequence[ShardResult],
           damaged: int, quarantined: int) -> str:  # fmt: skip
    """Shards by what became of them."""
    left = len(specs) - len(results) - quarantined
    return (
        f"{store.root}: {len(specs)} shards: {len(results) - damaged} done, {damaged} damaged, "
        f"{quarantined} quarantined, {left} left"
    )


def content(plan: Plan, results: Sequence[ShardResult]) -> list[str]:
    """Images by status, bytes, and the rate."""
    rows: dict[str, int] = {}
    for result in results:
        for status, count in result.rows.items():
            rows[status] = rows.get(status, 0) + count
    counts = ", ".join(f"{n:,} {s}" for s, n in sorted(rows.items())) or "none"
    source, tables, codes, pixels = (
        sum(getattr(r, name) for r in results)
        for name in ("source_size", "table_bytes", "code_bytes", "pixels")
    )
    bpp = f"{8 * codes / pixels:.4f} bpp" if pixels else "no rate yet"
    return [
        f"images: {counts}",
        f"{source:,} bytes of source, {tables:,} of tables, {codes:,} of codes in them, {bpp}",
        f"model {plan.model[:16]}, quality {plan.quality}",
    ]


def last_run(store: Store) -> list[str]:
    """The summary of the last submission."""
    names = [name for name in store.names("runs/") if name.endswith("/summary.json")]
    if not names:
        return ["no run has ended yet"]
    name = max(names)  # run ids begin with the time
    return [f"last run, {name.split('/')[1]}:", report.text(json.loads(store.get(name)))]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("jobs.status", description=__doc__.split("\n")[0])
    parser.add_argument("--archive", required=True, metavar="URI", help="what jobs.encode wrote")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(common.run(main))
