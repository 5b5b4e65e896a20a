"""Archives of synthetic codes through the real writer and commit: no model, thousands of images."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.archive import commit, manifest, table
from pipeline.archive.table import Row
from pipeline.plan import Plan, ShardResult, ShardSpec, Status, listing_digest
from pipeline.store.storage import Store

PLAN = Plan(model="f" * 64, quality=3, stride=16, codewords=256, inputs=0, inputs_digest="",
            store="codes", keep=("txt", "json.label:int32"))  # fmt: skip
Change = Callable[[Row, int], Row]


@dataclass(frozen=True)
class Codes:
    """An archive, and all rows that went into it."""

    store: Store
    plan: Plan
    results: list[ShardResult]
    rows: list[Row]

    @property
    def ok(self) -> list[Row]:
        """Those that a reader gives."""
        return [row for row in self.rows if row.status is Status.OK]

    def finish(self) -> None:
        """Write the manifest."""
        entries = manifest.describe(self.store, self.plan, self.results)
        self.store.put(manifest.MANIFEST, manifest.write(entries, self.plan))


def row(number: int, grid: tuple[int, int], plan: Plan, prefix: str = "") -> Row:
    """Image ``number``; every 11th failed, labels count up to 9."""
    key = f"{prefix}{number:06d}"
    if number % 11 == 5:
        return Row(key, Status.DECODE_ERROR, "made up")
    h, w = grid
    kind = np.uint8 if plan.codewords <= 256 else np.dtype("<u2")
    rng = np.random.default_rng(number)
    codes = rng.integers(0, plan.codewords, (h, w, plan.quality)).astype(kind).tobytes()
    kept = {"txt": f"caption {number}" if number % 3 else None, "json.label": number % 10}
    return Row(key, Status.OK, None, w * 16, h * 16, w, h, codes, None, zlib.crc32(codes),
               kept={k: v for k, v in kept.items() if k in "".join(plan.keep)})  # fmt: skip


def make(
    root: str,
    tables: Sequence[int],
    grids: Sequence[tuple[int, int]] = ((2, 2),),
    change: Change = lambda row, number: row,
    finish: bool = True,
    **plan: object,
) -> Codes:
    """An archive with so many rows in each table; image i has grid i modulo the number of grids."""
    specs = [ShardSpec(f"shard-{n:04d}", f"/in/{n}.tar", 1, "etag") for n in range(len(tables))]
    frozen = replace(PLAN, inputs=len(specs), inputs_digest=listing_digest(specs), **plan)
    store, results, all_rows, number = Store(root), [], [], 0
    commit.begin(store, frozen)
    store.put_if_absent("inputs.parquet", table.write_listing(specs))
    for spec, count in zip(specs, tables, strict=True):
        first, number = number, number + count
        rows = [change(row(n, grids[n % len(grids)], frozen), n) for n in range(first, number)]
        all_rows += rows
        data = _table(rows, frozen, spec)
        results.append(commit.commit(store, frozen, _result(spec, rows), data))
    made = Codes(store, frozen, results, all_rows)
    if finish:
        made.finish()
    return made


def _result(spec: ShardSpec, rows: Sequence[Row]) -> ShardResult:
    counts: dict[str, int] = {}
    for one in rows:
        counts[one.status.value] = counts.get(one.status.value, 0) + 1
    size = sum(one.payload_bytes for one in rows)
    return ShardResult(spec.shard_id, spec.url, spec.size, spec.etag, "done", counts, 0, size,
                       0, "", "")  # fmt: skip


def _table(rows: Sequence[Row], plan: Plan, spec: ShardSpec) -> bytes:
    return table.write_table(rows, plan, spec, _result(spec, rows))
