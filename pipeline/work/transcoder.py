"""One code table of an archive through one replica, into the same table with another payload.

    source table -> read_rows -> Row --batches of one grid--> batch_codes (crc32 checked)
        -> codec.entropy_encode -> Row -> write_table -> commit -> ShardResult

Nothing but the payload columns changes: no source image is read, no code is computed again.  The
new archive's plan is the old one with another ``store``, so its tables are the ones that encoding
the sources with that store would have given, and ``jobs.encode`` can go on with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.archive import commit, layout, table
from pipeline.archive.table import BadTable, Row
from pipeline.plan import Facts, Plan, ShardResult, ShardSpec, Status
from pipeline.store.storage import Store
from pipeline.work import decoder
from pipeline.work.replica import Clock, Replica, batch_size
from pipeline.work.shard import payload_bytes, run_shard


@dataclass(frozen=True)
class Transcoder:
    """The work of a replica, and the archive that it reads."""

    source: Store
    source_plan: Plan

    def __call__(
        self, spec: ShardSpec, plan: Plan, store: Store, replica: Replica, attempt: int = 1
    ) -> ShardResult:
        """Transcode one shard and commit its table; what is committed already is returned as it is.

        Raises:
            BadTable: the source's table is not the one of its ledger, or is damaged.
            others: see :func:`pipeline.work.shard.run_shard`.
        """

        def make(clock: Clock) -> tuple[list[Row], Facts]:
            with clock.stage("read"):
                entry, rows = self._read(spec)
            try:
                rows = transcode_rows(rows, self.source_plan, plan, replica, clock)
            except BadTable as error:
                raise BadTable(f"shard {spec.shard_id}: {error}") from error
            size = payload_bytes(rows)
            return rows, Facts(
                entry.rows, entry.pixels, size, entry.damage, entry.dropped, entry.skipped,
                entry.filled, entry.outcome,
            )  # fmt: skip

        return run_shard(spec, plan, store, replica, attempt, make)

    def _read(self, spec: ShardSpec) -> tuple[ShardResult, list[Row]]:
        """The source's ledger entry, and the rows of the very table that it is of."""
        name = layout.table_name(spec.shard_id)
        entry = commit.find_committed(self.source, self.source_plan, spec)
        if entry is None:
            raise BadTable(f"{self.source.url(name)}: no longer committed there")
        data = self.source.get(name)
        if hashlib.sha256(data).hexdigest() != entry.table_sha256:
            raise BadTable(
                f"{self.source.url(name)}: the table's sha256 is not the ledger's: the object was "
                "changed after the commit; jobs.verify says more"
            )
        try:
            decoder.check_table(table.read_footer(data), self.source_plan)
            return entry, list(table.read_rows(data))
        except BadTable as error:
            raise BadTable(f"{self.source.url(name)}: {error}") from error


def transcode_rows(
    rows: Sequence[Row], source: Plan, plan: Plan, replica: Replica, clock: Clock
) -> list[Row]:
    """The rows with the payload columns of ``plan``, every crc32 checked on the way.

    Raises:
        BadTable: a payload is not what was encoded; names the key.
    """
    out = list(rows)
    buckets: dict[tuple[int, int], list[int]] = {}
    for index, row in enumerate(rows):
        if row.status is Status.OK:
            decoder.check_grid(row, source)
            buckets.setdefault((row.grid_h, row.grid_w), []).append(index)
    for (h, w), places in buckets.items():
        size = batch_size(plan.batch_pixels, h * plan.stride, w * plan.stride)
        for first in range(0, len(places), size):
            _transcode_batch(out, places[first : first + size], source, plan, replica, clock)
    return out


def _transcode_batch(
    rows: list[Row], places: Sequence[int], source: Plan, plan: Plan, replica: Replica, clock: Clock
) -> None:
    """Replace the payload of some rows of one grid."""
    with clock.stage("code"):
        codes = decoder.batch_codes([rows[i] for i in places], source, replica)
    streams = replica.entropy_encode(codes, plan.coding, clock) if plan.stores_bitstream else None
    for n, i in enumerate(places):
        # A row that came from a bitstream has no raw bytes yet; its codes are uint8.
        raw = rows[i].codes if rows[i].codes is not None else codes[n].tobytes()
        rows[i] = replace(
            rows[i], codes=raw if plan.stores_codes else None,
            bitstream=None if streams is None else streams[n],
        )  # fmt: skip
    clock.advance(images=len(places), code_bytes=payload_bytes([rows[i] for i in places]))
