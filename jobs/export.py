"""Export an archive's codes as WebDataset tars, for programs that cannot read Parquet.

    python -m jobs.export --archive s3://bucket/arch --output s3://bucket/tars

One tar a table, in its order: ``<key>.npy`` (codes [h, w, M], uint8 or uint16), ``<key>.json`` with
the kept columns, size and grid, and ``<key>.txt`` and the like for kept text members.  Images that
have no codes are left out.  A tar is written whole or not at all, and its bytes are always the
same; ``export.json`` is written last and names them all: without it the export is half-written, and
the same command again completes it.  For the images themselves: jobs.decode --format webdataset.

Cost: a tar pads every member to 512 bytes and gives it a header of as many, so codes of 2 KB take
twice the room that they have in the table; one shard's tar is in memory.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import webdataset

from jobs import common
from jobs.decode import choose_shards, member_key
from pipeline import keep
from pipeline.archive import commit, table
from pipeline.archive.table import BadTable, Row
from pipeline.codes.errors import NoCodes
from pipeline.plan import Plan, PlanMismatch, Status
from pipeline.store.storage import NotFound, Store
from pipeline.work import decoder

log = logging.getLogger("jobs.export")
PLAN, DONE = "export-plan.json", "export.json"
SHOWN = 50  # problems in the final text


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, find the tables, write a tar of each, report, exit code."""
    args = parse(argv)
    archive, output = Store(args.archive), Store(args.output)
    plan = commit.read_plan(archive)
    if not plan.stores_codes:
        raise common.UsageError(str(no_codes(archive)))
    shards = choose_shards(archive, args.shard)
    output.probe()
    begin(output, plan)
    written, problems, tars = 0, list[str](), dict[str, int]()
    for number, shard_id in enumerate(shards, 1):
        try:
            tars[f"{shard_id}.tar"] = count = export_shard(archive, output, plan, shard_id)
            written += count
        except NotFound:
            problems.append(f"{shard_id}: no table: not encoded, or quarantined; see jobs.status")
        except BadTable as error:
            problems.append(f"{shard_id}: {' '.join(str(error).split())}; see jobs.verify")
        log.info("%d/%d %s: %d images so far", number, len(shards), shard_id, written)
    if not problems and not args.shard:
        output.put(DONE, (json.dumps({"images": written, "tars": tars}, indent=1) + "\n").encode())
    lines = [f"{output.root}: {len(tars)} tars with {written} images", *problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"and {len(problems) - SHOWN} more problems")
    sys.stdout.write("\n".join(lines) + "\n")
    return common.INCOMPLETE if problems else common.OK


def no_codes(archive: Store) -> NoCodes:
    """Why an archive of bitstreams is refused."""
    return NoCodes(
        f"{archive.root}: has bitstreams, no raw codes: run python -m jobs.transcode --archive "
        f"{archive.root} --output NEW --store codes, and export NEW"
    )


def begin(output: Store, plan: Plan) -> None:
    """Mark the output as being of this plan, so that codes of two archives never mix.

    Raises:
        pipeline.plan.PlanMismatch: it holds the codes of another archive.
    """
    record = {"plan_digest": plan.digest, "model": plan.model, "subcodes": plan.quality,
              "codewords": plan.codewords, "stride": plan.stride}  # fmt: skip
    mark = (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
    if not output.put_if_absent(PLAN, mark):
        raise PlanMismatch(
            f"{output.url(PLAN)}: the codes there are of another archive: choose another output"
        )


def export_shard(archive: Store, output: Store, plan: Plan, shard_id: str) -> int:
    """Write the tar of a table unless it is there; the number of images in it.

    Raises:
        pipeline.store.storage.NotFound: there is no table.
        BadTable: it is damaged, or is of another plan.
    """
    name, sink, count = f"{shard_id}.tar", io.BytesIO(), 0
    data = archive.get(commit.table_name(shard_id))
    decoder.check_table(table.read_footer(data), plan)
    if output.info(name) is not None:
        return sum(row.status is Status.OK for row in table.read_rows(data, ["status"]))
    with webdataset.TarWriter(sink, encoder=False, mtime=0) as tar:
        for sample in samples(data, plan):
            tar.write(sample)
            count += 1
    if not output.put_if_absent(name, sink.getvalue()):
        raise PlanMismatch(
            f"{output.url(name)}: somebody wrote another tar there just now: stop them, remove it"
        )
    return count


def samples(data: bytes, plan: Plan) -> Iterator[dict[str, object]]:
    """The members of every ok row of a table, crc32 checked."""
    texts = {k.name for k in map(keep.parse, plan.keep) if not k.path and k.type == "string"}
    for row in table.read_rows(data):
        if row.status is Status.OK:
            members = {
                name.lower(): str(value).encode()
                for name, value in row.kept.items() if name in texts and value is not None
            }  # fmt: skip
            yield {
                **members, "__key__": member_key(row.key),
                "json": facts(row, texts), "npy": npy(decoder.row_codes(row, plan)),
            }  # fmt: skip


def facts(row: Row, texts: set[str]) -> bytes:
    """What the row says besides its codes, as JSON."""
    kept = {name: value for name, value in row.kept.items() if name not in texts}
    own = {"key": row.key, "width": row.width, "height": row.height,
           "grid_w": row.grid_w, "grid_h": row.grid_h}  # fmt: skip
    return json.dumps({**own, **kept}, sort_keys=True, ensure_ascii=False).encode()


def npy(codes: np.ndarray) -> bytes:
    """An array as a .npy file."""
    sink = io.BytesIO()
    np.save(sink, codes, allow_pickle=False)
    return sink.getvalue()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("jobs.export", description=__doc__.split("\n")[0])
    parser.add_argument("--archive", required=True, metavar="URI", help="what jobs.encode wrote")
    parser.add_argument("--output", required=True, metavar="URI", help="prefix of the tars")
    parser.add_argument("--shard", nargs="+", default=[], metavar="ID",
                        help="shard ids: names of tables in codes/ (all)")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(common.run(main))
