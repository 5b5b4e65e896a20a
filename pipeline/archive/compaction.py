"""Small tables copied into larger ones for readers: ``packed/<n shards>-<hash>.parquet``.

A copy, not a replacement: the tables in ``codes/`` and the ledger stay what commit, verify, decode
and transcode go by, so that nothing of the exactly-once protocol has to change, and a crash leaves
at worst a packed table that no manifest names.  The manifest, written last and in one PUT, is what
sends readers to the copies.  A packed table's name has the hash of what is in it and how it was
written, so that the same command again finds it there and goes on.

Cost: the payload of packed shards is stored twice; one group of tables is in memory, with its copy.
Packed tables that no manifest names any more are not removed: a reader may still have them open.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.archive import manifest, table
from pipeline.archive.layout import table_name
from pipeline.archive.manifest import Entry
from pipeline.archive.table import BadTable
from pipeline.plan import Plan, ShardResult
from pipeline.store.storage import StorageError, Store

MAX_BYTES = 1 << 30  # of a packed table: columns of 2 GB and more do not fit pyarrow's binary type
THREADS = 8  # tables of a group read at once


def pack(
    store: Store, plan: Plan, results: Iterable[ShardResult], target_bytes: int
) -> Iterator[Entry]:
    """Tables of about that size for the manifest; a table that has it already stays as it is.

    Raises:
        ValueError: more than MAX_BYTES.
        BadTable: a table is not the one of its ledger entry, or is of another plan.
    """
    if not 0 < target_bytes <= MAX_BYTES:
        raise ValueError(f"{target_bytes} bytes: a packed table has 1 to {MAX_BYTES}")
    for group in groups(results, target_bytes):
        if len(group) == 1:
            yield from manifest.describe(store, plan, group)
        else:
            yield _packed(store, plan, group)


def groups(results: Iterable[ShardResult], target_bytes: int) -> Iterator[list[ShardResult]]:
    """Neighbours that together have at most the target, and those that alone have more."""
    group, size = list[ShardResult](), 0
    for result in results:
        if group and size + result.table_bytes > target_bytes:
            yield group
            group, size = [], 0
        group.append(result)
        size += result.table_bytes
    if group:
        yield group


def _packed(store: Store, plan: Plan, group: Sequence[ShardResult]) -> Entry:
    sources = [[result.shard_id, result.table_sha256] for result in group]
    recipe = json.dumps([sources, table.ROW_GROUP, pa.__version__])
    digest = hashlib.sha256(recipe.encode()).hexdigest()
    name = f"packed/{len(group)}-{digest[:32]}.parquet"
    info = store.info(name)
    if info is None:
        data = _join(store, plan, group, sources)
        if not store.put_if_absent(name, data):
            raise StorageError(
                f"{store.url(name)}: holds something else than these tables: remove it, and run "
                "jobs.finish again"
            )
    else:
        data = store.get(name)
    footer = manifest.footer_of(data, store.url(name))
    manifest.check_footer(footer, plan, store.url(name))
    return Entry(name, tuple(group), len(data), hashlib.sha256(data).hexdigest(), footer)


def _join(store: Store, plan: Plan, group: Sequence[ShardResult], sources: object) -> bytes:
    """One table of the rows of several, in order."""
    with ThreadPoolExecutor(THREADS) as pool:
        tables = list(pool.map(functools.partial(_read, store, plan), group))
    footer = {
        "format_version": str(plan.format_version), "plan_digest": plan.digest,
        "model": plan.model, "subcodes": str(plan.quality), "codewords": str(plan.codewords),
        "stride": str(plan.stride), "packed_from": json.dumps(sources),
    }  # fmt: skip
    joined = pa.concat_tables([one.replace_schema_metadata(None) for one in tables])
    return table.to_parquet(joined.combine_chunks(), footer)


def _read(store: Store, plan: Plan, result: ShardResult) -> pa.Table:
    name = table_name(result.shard_id)
    data, url = store.get(name), store.url(name)
    if hashlib.sha256(data).hexdigest() != result.table_sha256:
        raise BadTable(
            f"{url}: the table's sha256 is not the ledger's: the object was changed after the "
            "commit; jobs.verify says more"
        )
    manifest.check_footer(manifest.footer_of(data, url), plan, url)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        return file.read(use_threads=False)
    except table.UNREADABLE as error:
        raise BadTable(f"{url}: damaged: {error}; jobs.verify says more") from error
