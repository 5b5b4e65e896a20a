"""``manifest.parquet``: what readers open instead of listing an archive and its tables' footers.

One row a table that readers should open: what the ledger says of it, its row groups, and its whole
Parquet footer.  With that a reader goes to any row group by one range read, and no footer is ever
fetched.  Cost: ``jobs.finish`` reads the end of every table once, and the manifest takes about 0.3
bytes a row, 270 a row group (a billion rows: 300 MB); a reader holds that in memory.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.archive import table
from pipeline.archive.layout import read_plan, table_name
from pipeline.archive.table import BadTable
from pipeline.plan import Plan, ShardResult, Status
from pipeline.store.storage import NotFound, Store

MANIFEST = "manifest.parquet"
THREADS = 32  # footers read at once
TAIL = 64 << 10  # bytes: a footer of 50 row groups
MAGIC = b"PAR1"
END = 8  # bytes: length of the footer, magic
BATCH = 64  # tables: a row group of the manifest, and footers that a reader unpacks at once
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("name", "shard_id", "url", "outcome")]
    + [
        (name, pa.int64())
        for name in ("shards", "rows", "ok_rows", "pixels", "code_bytes", "table_bytes")
    ]
    + [("table_sha256", pa.string())]
    + [(name, pa.list_(pa.int64())) for name in ("group_rows", "group_bytes")]
    + [(name, pa.list_(pa.string())) for name in ("group_key_min", "group_key_max")]
    + [("footer", pa.binary())]
)


class DatasetError(Exception):
    """An archive cannot be read as it was asked; the message names the way out."""


class MissingManifest(DatasetError):
    """The archive has no manifest, or none that the readers can use."""


@dataclass(frozen=True)
class Entry:
    """One table that readers open."""

    name: str
    shards: tuple[ShardResult, ...]  # whose rows it has, in order
    table_bytes: int
    table_sha256: str
    footer: bytes  # Parquet's, without length and magic


# Threads that read one ParquetFile at once corrupt the memory of the process (pyarrow 26.0.1).  A
# fork waits for the reader, or the child would have a file in mid-read and a lock that stays taken.
READING = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=READING.acquire, after_in_parent=READING.release, after_in_child=READING.release
    )


@dataclass(frozen=True, eq=False)
class Manifest:
    """All tables and row groups of an archive, in order."""

    plan: Plan
    digest: str  # of the manifest's bytes
    names: list[str]
    ok_rows: np.ndarray  # [tables]
    group_table: np.ndarray  # [groups] table of the row group
    group_number: np.ndarray  # [groups] its number in the table
    group_rows: np.ndarray  # [groups]
    group_bytes: np.ndarray  # [groups] all columns
    key_min: pa.Array  # [groups] null: unknown
    key_max: pa.Array
    file: pq.ParquetFile  # of the manifest itself, in memory

    def metadata(self, number: int) -> pq.FileMetaData:
        """The parsed footer of a table; from any thread."""
        with READING:
            return self._metadata(number)

    @functools.lru_cache(maxsize=32)  # noqa: B019, a process has one manifest or two
    def _metadata(self, number: int) -> pq.FileMetaData:
        footers = self.file.read_row_group(number // BATCH, ["footer"], use_threads=False)
        return parse_footer(footers["footer"][number % BATCH].as_py())


def describe(store: Store, plan: Plan, results: Iterable[ShardResult]) -> Iterator[Entry]:
    """The archive's own tables with their footers, BATCH of them in memory at a time.

    Raises:
        BadTable: a table is not the one of its ledger entry, or is of another plan.
    """

    def one(result: ShardResult) -> Entry:
        name = table_name(result.shard_id)
        footer = read_end(store, name, result.table_bytes)
        check_footer(footer, plan, store.url(name))
        return Entry(name, (result,), result.table_bytes, result.table_sha256, footer)

    left = iter(results)
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(itertools.islice(left, BATCH)):
            yield from pool.map(one, batch)


def read_end(store: Store, name: str, size: int) -> bytes:
    """The footer of a table of that many bytes."""
    length = min(TAIL, size)
    tail = store.get_range(name, size - length, length)
    needed = int.from_bytes(tail[-END:-4], "little") + END
    if length < needed <= size:
        tail = store.get_range(name, size - needed, needed)
    return footer_of(tail, store.url(name))


def footer_of(tail: bytes, where: str) -> bytes:
    """The bare footer at the end of a Parquet file.

    Raises:
        BadTable: it does not end as one.
    """
    length = int.from_bytes(tail[-END:-4], "little")
    if tail[-4:] != MAGIC or length + END > len(tail):
        raise BadTable(
            f"{where}: does not end as a Parquet file: it was cut or replaced after the commit; "
            "jobs.verify says more"
        )
    return tail[-END - length : -END]


def check_footer(footer: bytes, plan: Plan, where: str) -> None:
    """Refuse a table of another plan.

    Raises:
        BadTable: so, or the footer is damaged.
    """
    try:
        metadata = parse_footer(footer).metadata or {}
    except table.UNREADABLE as error:
        raise BadTable(f"{where}: damaged footer: {error}") from error
    made_by = metadata.get(b"pqmim.plan_digest", b"?").decode()
    if made_by != plan.digest:
        raise BadTable(f"{where}: made by plan {made_by[:12]}, the archive's is {plan.digest[:12]}")


def parse_footer(footer: bytes) -> pq.FileMetaData:
    """Parquet metadata from a bare footer."""
    length = len(footer).to_bytes(4, "little")
    return pq.read_metadata(pa.BufferReader(MAGIC + footer + length + MAGIC))


def write(entries: Iterable[Entry], plan: Plan) -> bytes:
    """The manifest; equal entries give equal bytes."""
    schema = SCHEMA.with_metadata({"pqmim.plan_digest": plan.digest})
    sink, left = io.BytesIO(), iter(entries)
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        while batch := list(itertools.islice(left, BATCH)):
            rows = [_row(entry) for entry in batch]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return sink.getvalue()


def _row(entry: Entry) -> dict[str, object]:
    shards = entry.shards
    alone = shards[0] if len(shards) == 1 else None
    return {
        "name": entry.name,
        "shard_id": alone and alone.shard_id,  # null: several
        "url": alone and alone.url,
        "outcome": next((s.outcome for s in shards if s.outcome != "done"), "done"),
        "shards": len(shards),
        "rows": sum(sum(s.rows.values()) for s in shards),
        "ok_rows": sum(s.rows.get(Status.OK.value, 0) for s in shards),
        "pixels": sum(s.pixels for s in shards),
        "code_bytes": sum(s.code_bytes for s in shards),
        "table_bytes": entry.table_bytes,
        "table_sha256": entry.table_sha256,
        **_groups(parse_footer(entry.footer)),
        "footer": entry.footer,
    }


def _groups(metadata: pq.FileMetaData) -> dict[str, list[object]]:
    """Rows, bytes and range of the keys of every row group."""
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    keys = [group.column(0).statistics for group in groups]  # None for long keys
    known = [k is not None and k.has_min_max for k in keys]
    return {
        "group_rows": [group.num_rows for group in groups],
        "group_bytes": [group.total_byte_size for group in groups],
        "group_key_min": [k.min if there else None for k, there in zip(keys, known, strict=True)],
        "group_key_max": [k.max if there else None for k, there in zip(keys, known, strict=True)],
    }


def read(store: Store) -> Manifest:
    """The manifest of an archive, by two requests.

    Raises:
        MissingManifest: none, or one of an older version or another plan: jobs.finish writes it.
        BadTable: it is damaged.
        pipeline.plan.PlanMismatch: the archive is of a newer version of this software.
        pipeline.store.storage.NotFound: no archive was begun there.
    """
    plan, url = read_plan(store), store.url(MANIFEST)
    repair = f"run python -m jobs.finish --archive {store.root}"
    try:
        data = store.get(MANIFEST)
    except NotFound as error:
        raise MissingManifest(
            f"{url}: there is none: the archive is half-written, or was not finished: {repair}, "
            "which names what is missing"
        ) from error
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        small = [name for name in file.schema_arrow.names if name != "footer"]
        found = file.read(small, use_threads=False)
    except table.UNREADABLE as error:
        raise BadTable(f"{url}: damaged ({error}): {repair}") from error
    if file.schema_arrow.names != SCHEMA.names:
        raise MissingManifest(f"{url}: written by an older version: {repair}")
    made_by = (file.schema_arrow.metadata or {}).get(b"pqmim.plan_digest", b"").decode()
    if made_by != plan.digest:
        raise MissingManifest(
            f"{url}: is of plan {made_by[:12]}, plan.json is {plan.digest[:12]}: another model, "
            f"format version or run: {repair}"
        )
    return _manifest(plan, hashlib.sha256(data).hexdigest(), file, found.combine_chunks())


def _manifest(plan: Plan, digest: str, file: pq.ParquetFile, found: pa.Table) -> Manifest:
    def flat(name: str) -> pa.Array:
        return pc.list_flatten(found[name]).combine_chunks()

    counts = pc.list_value_length(found["group_rows"]).to_numpy().astype(np.int64)
    starts = np.cumsum(counts) - counts
    return Manifest(
        plan=plan,
        digest=digest,
        names=found["name"].to_pylist(),
        ok_rows=found["ok_rows"].to_numpy(),
        group_table=np.repeat(np.arange(len(counts)), counts),
        group_number=np.arange(counts.sum()) - np.repeat(starts, counts),
        group_rows=flat("group_rows").to_numpy(zero_copy_only=False),
        group_bytes=flat("group_bytes").to_numpy(zero_copy_only=False),
        key_min=flat("group_key_min"),
        key_max=flat("group_key_max"),
        file=file,
    )
