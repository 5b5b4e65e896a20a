"""Verify an archive: tables against ledger, plan and listing, and a sample against the sources.

    python -m jobs.verify --archive s3://bucket/arch
    python -m jobs.verify --archive arch --device cpu --no-source

Exit code 0 only if every shard is done and every check passed, else 3; each problem is named.  What
was proved, and what was not, is printed and kept in ``<archive>/runs/<id>/verify.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from jobs import common
from pipeline import commit, decoder, table, verify
from pipeline.plan import Plan
from pipeline.replica import Replica
from pipeline.storage import NotFound, Store
from pqmim.checkpoint import CheckpointError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check the model, every shard and a sample, report, exit code."""
    args = parse(argv)
    store = Store(args.archive)
    plan = commit.read_plan(store)
    specs = table.read_listing(store.get("inputs.parquet"))
    if problem := decoder.missing_device(args.device):
        raise common.UsageError(problem)
    verdict, good = verify.verify_tables(store, plan, specs, not args.no_source, args.threads)
    replica = open_model(store, plan, args.device, verdict)
    chosen = verify.spread(good, args.sample)
    if replica is not None and chosen:
        arguments = store, plan, specs, chosen, replica, args.min_psnr
        verdict.add(verify.compare_sample(*arguments, sources=not args.no_source))
    if not verdict.proved["compared"]:
        verdict.not_proved.append("no image was decoded and compared with its source")
    sys.stdout.write(verdict.text(len(specs)) + "\n")
    record = json.dumps(verdict.record(len(specs)), indent=1) + "\n"
    store.put(f"runs/{common.run_id()}/verify.json", record.encode())
    return common.OK if verdict.complete else common.INCOMPLETE


def open_model(store: Store, plan: Plan, device: str, verdict: verify.Verdict) -> Replica | None:
    """The archive's model; loading it proves that it hashes to its name."""
    try:
        return decoder.load_replica(store, plan, device)
    except (CheckpointError, NotFound) as error:
        verdict.problems.append(f"model: {error}")
        return None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("jobs.verify", description=__doc__.split("\n")[0])
    parser.add_argument("--archive", required=True, metavar="URI", help="what jobs.encode wrote")
    group = parser.add_argument_group("sample of images, compared with their sources")
    group.add_argument("--sample", type=int, default=32, metavar="N",
                       help="images, spread evenly over the shards, whose bitstreams are decoded "
                       "(%(default)s)")  # fmt: skip
    group.add_argument("--min-psnr", type=float, default=15.0, metavar="DB",
                       help="an image below is a problem (%(default)s)")  # fmt: skip
    group.add_argument("--no-source", action="store_true", help="the sources are gone: skip this")
    group = parser.add_argument_group("resources")
    group.add_argument("--device", default="cuda", help="'cuda' or 'cpu' (%(default)s)")
    group.add_argument("--threads", type=int, default=8,
                       help="tables read and checked at once (%(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.threads < 1 or args.sample < 0:
        parser.error("--threads must be 1 or more, --sample 0 or more")
    return args


if __name__ == "__main__":
    sys.exit(common.run(main))
