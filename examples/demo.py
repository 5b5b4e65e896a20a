"""The main job on the example photographs: ``make demo``.

Encodes the shards of examples/shards with two replicas, writes the manifest, verifies the archive,
decodes it again, and builds demo/index.html: every picture beside its reconstruction.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from examples.page import Card, ErrorRow, write_page
from jobs import common, decode, encode, finish, verify
from pipeline.archive import commit, layout, losses, table
from pipeline.out.names import file_name
from pipeline.plan import Plan, Status
from pipeline.signals import add
from pipeline.store.storage import Store
from pipeline.tars.samples import ShardReader
from pipeline.work import images
from pqmim.metrics import psnr

HERE = Path(__file__).parent
SHARDS = HERE / "shards"
OUT = Path("demo")


def main(encode_flags: Sequence[str] = (), verify_flags: Sequence[str] = ()) -> int:
    """Run the jobs, with more flags if wanted, then build the page."""
    shutil.rmtree(OUT, ignore_errors=True)
    archive = str(OUT / "archive")
    steps = [
        ("encode", encode.main, ["--input", str(SHARDS), "--output", archive, "--local",
                                 "--replicas", "2", "--measure", "psnr", "--keep", "txt",
                                 "--store", "both", *encode_flags]),
        ("finish", finish.main, ["--archive", archive]),
        ("verify", verify.main, ["--archive", archive, *verify_flags]),
        ("decode", decode.main, ["--archive", archive, "--output", str(OUT / "decoded"),
                                 "--format", "png"]),
    ]  # fmt: skip
    for name, job, arguments in steps:
        sys.stdout.write(f"\n== python -m jobs.{name} {' '.join(arguments)}\n")
        sys.stdout.flush()
        code = job(arguments)
        if code:
            return code
    page = build(Store(archive), OUT)
    sys.stdout.write(f"\nOpen {page}\n")
    return common.OK


def build(store: Store, out: Path) -> Path:
    """The page of an archive whose sources are examples/shards."""
    plan = layout.read_plan(store)
    cards: list[Card] = []
    errors: list[ErrorRow] = []
    for spec in table.read_listing(store.get("inputs.parquet")):
        with open(spec.url, "rb") as stream:
            sources = {s.key: s.members for s in ShardReader(stream, spec.size)}
        for row in table.read_rows(store.get(layout.table_name(spec.shard_id))):
            if row.status is Status.OK:
                decoded = out / "decoded" / spec.shard_id / f"{file_name(row.key)}.png"
                cards.append(card(row, sources[row.key], plan, decoded))
            else:
                errors.append(ErrorRow(row.key, row.status.value, row.error or "", spec.shard_id))
    runs = [name for name in store.names("runs/") if name.endswith("summary.json")]
    files = [(name, info.size) for name in sorted(store.names("")) if (info := store.info(name))]
    lost = dict[str, int]()
    for entry in commit.entries(store, layout.ids(store, "ledger/")):
        add(lost, entry.dropped)
    summary, words = json.loads(store.get(max(runs))), losses.in_words(lost, plan.icc)
    return write_page(out, summary, cards, errors, files, words)


def card(row: table.Row, members: dict[str, bytes], plan: Plan, decoded: Path) -> Card:
    """One picture beside its reconstruction; PSNR of the decoded file against the source."""
    source = next(members[e] for e in plan.image_keys if e in members)
    original = images.decode(source, plan.pictures).pixels.transpose(1, 2, 0)
    reconstruction = decoded.read_bytes()
    shown = np.asarray(Image.open(io.BytesIO(reconstruction)).convert("RGB"))
    payload = row.payload_bytes
    return Card(
        key=row.key, width=row.width, height=row.height, grid=f"{row.grid_w} x {row.grid_h}",
        bpp=8 * payload / (row.width * row.height), psnr=psnr(original, shown),
        source_bytes=len(source), code_bytes=payload, original=source,
        reconstruction=reconstruction,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(common.run(main))
