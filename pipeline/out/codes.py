"""Code tables to WebDataset tars of .npy, for programs that cannot read Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import numpy as np
import webdataset

from pipeline.archive import layout, table
from pipeline.archive.table import Row
from pipeline.codes.errors import NoCodes
from pipeline.out.names import member_key
from pipeline.plan import Plan, PlanMismatch, Status
from pipeline.store.storage import Store
from pipeline.work import decoder

PLAN, DONE = "export-plan.json", "export.json"


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
    data = archive.get(layout.table_name(shard_id))
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
    texts = {k.name for k in plan.kept if not k.path and k.type == "string"}
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
