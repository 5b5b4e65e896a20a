"""Code tables to WebDataset tars of .npy, for programs that cannot read Parquet."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np

from pipeline.archive import layout, table
from pipeline.archive.table import Row
from pipeline.codes.errors import NoCodes
from pipeline.out import jsons, tars
from pipeline.out.names import kept_members, member_key
from pipeline.plan import Plan, Status
from pipeline.store.storage import Store
from pipeline.work import decoder

PLAN, DONE = "export-plan.json", "export.json"


def no_codes(archive: Store) -> NoCodes:
    """Why an archive of bitstreams is refused."""
    return NoCodes(
        f"{archive.root}: has bitstreams, no raw codes: run python -m jobs.transcode --archive "
        f"{archive.root} --output NEW --store codes, and export NEW"
    )


def begin(output: Store, plan: Plan, tar_bytes: int) -> int:
    """Mark the output; see :func:`pipeline.out.tars.begin`."""
    more = {"model": plan.model, "subcodes": plan.quality, "codewords": plan.codewords}
    return tars.begin(output, PLAN, plan, tar_bytes, **more, stride=plan.stride)


def export_shard(
    archive: Store, output: Store, plan: Plan, shard_id: str, tar_bytes: int
) -> dict[str, int]:
    """Write the tars of a table unless they are there; the number of images in each.

    Raises:
        pipeline.store.storage.NotFound: there is no table.
        BadTable: it is damaged, or is of another plan.
    """
    data = archive.get(layout.table_name(shard_id))
    decoder.check_table(table.read_footer(data), plan)
    out = tars.Tars(output, shard_id, tar_bytes)
    for sample in samples(data, plan):
        out.write(sample)
    out.close()
    return out.counts


def samples(data: bytes, plan: Plan) -> Iterator[dict[str, object]]:
    """The members of every ok row of a table, crc32 checked.

    What the row says besides is ``json``, or ``codes.json`` where the source's own JSON is kept,
    and so on: no kept member gives way.
    """
    texts = {column.name for column in plan.kept if column.is_text}
    for row in table.read_rows(data):
        if row.status is Status.OK:
            members = kept_members(row, plan)
            own = _free("json", members)
            yield {
                **members, "__key__": member_key(row.key), own: facts(row, texts),
                _free("npy", members): npy(decoder.row_codes(row, plan)),
            }  # fmt: skip


def _free(extension: str, members: dict[str, bytes]) -> str:
    """An extension that no kept member has."""
    while extension in members:
        extension = f"codes.{extension}"
    return extension


def facts(row: Row, texts: set[str]) -> bytes:
    """What the row says besides its codes, as JSON."""
    kept = {name: value for name, value in row.kept.items() if name not in texts}
    own = {"key": row.key, "width": row.width, "height": row.height,
           "grid_w": row.grid_w, "grid_h": row.grid_h}  # fmt: skip
    return jsons.dumps({**own, **kept})


def npy(codes: np.ndarray) -> bytes:
    """An array as a .npy file."""
    sink = io.BytesIO()
    np.save(sink, codes, allow_pickle=False)
    return sink.getvalue()
