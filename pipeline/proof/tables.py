"""Read an archive's tables back and say what is proved of each shard, without the model.

Every shard of the listing: ledger entry, table bytes against the ledger's sha256, footer against
plan and listing, page checksums, counts, keys, crc32 and size of every row's raw codes, and whether
the source is still the object that was listed.  Nothing is repaired and every problem is named.
Pictures and sources are proofs.py's affair; without it a picture is proved to be the payload that
was written, not to look like its source.

Cost: every table is read once, as many at a time as there are threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from pipeline.archive import commit, layout, losses, table
from pipeline.archive.table import BadTable, Row
from pipeline.plan import Plan, ShardResult, ShardSpec, Status, listing_digest
from pipeline.proof.verdict import Verdict
from pipeline.signals import add
from pipeline.store import storage
from pipeline.store.storage import AccessDenied, NotFound, StorageError, Store, TransientStorage
from pipeline.work import images
from pipeline.work.decoder import check_grid, check_table, row_codes

BATCH = 1000  # shards whose checks are queued at once
T = TypeVar("T")


def check_archive(store: Store, plan: Plan, specs: Sequence[ShardSpec]) -> list[str]:
    """Problems of no single shard: another listing, or objects that belong to none of it."""
    problems = []
    if listing_digest(list(specs)) != plan.inputs_digest or len(specs) != plan.inputs:
        problems.append("inputs.parquet: is not the listing that plan.json was made for")
    return problems + list(_foreign(store, {spec.shard_id for spec in specs}))


def check_tables(
    store: Store, plan: Plan, specs: Sequence[ShardSpec], sources: bool, threads: int
) -> Iterator[Verdict]:
    """Check every shard, in order."""
    said = []
    if not sources:
        said.append("the sources were not looked at")
    if plan.stores_bitstream:
        said.append(
            "bitstreams outside the sample were not decoded: page checksums and the ledger's "
            "sha256 prove that they are the bytes that were written, nothing more"
        )
    for found, _ in in_order(lambda spec: check_shard(store, plan, spec, sources), specs, threads):
        found.not_proved += said
        yield found


def in_order(
    work: Callable[[ShardSpec], T], specs: Sequence[ShardSpec], threads: int
) -> Iterator[T]:
    """``map`` over threads; a million shards are not queued at once."""
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(specs), BATCH):
            yield from pool.map(work, specs[first : first + BATCH])


def check_shard(
    store: Store, plan: Plan, spec: ShardSpec, sources: bool
) -> tuple[Verdict, bytes | None]:
    """What the tables prove of one shard, and the bytes of the table that it is proved of.

    Raises:
        TransientStorage, AccessDenied: the store does not answer, or not to us, which says nothing
            about the shard.
    """
    found, data = Verdict(), None
    say = Sayer(found, spec.shard_id)
    entry = _ledger_entry(store, spec, say)
    if entry is not None:
        _check_entry(entry, spec, say)
        found.proved["shards"] = int(not found.problems)
        data = _check_table(store, plan, spec, entry, say)
    if sources:
        try:
            storage.open_read(spec.url, storage.ObjectInfo(spec.url, spec.size, spec.etag)).close()
            found.proved["sources"] = 1
        except (TransientStorage, AccessDenied):
            raise
        except StorageError as error:
            say(f"source: {error}")
    return found, data


@dataclass(frozen=True)
class Sayer:
    """Notes problems of one shard under its name."""

    verdict: Verdict
    shard_id: str

    def __call__(self, message: str) -> None:
        self.verdict.problems.append(f"{self.shard_id}: {' '.join(message.split())}")


def _ledger_entry(store: Store, spec: ShardSpec, say: Sayer) -> ShardResult | None:
    try:
        return ShardResult.from_json(store.get(layout.ledger_name(spec.shard_id)))
    except NotFound:
        say(_uncommitted(store, spec.shard_id))
    except (ValueError, TypeError, KeyError) as error:
        say(f"damaged ledger entry {layout.ledger_name(spec.shard_id)}: {error}")
    return None


def _uncommitted(store: Store, shard_id: str) -> str:
    """Why a shard has no ledger entry."""
    try:
        record = commit.Quarantined(**json.loads(store.get(layout.failed_name(shard_id))))
        return f"quarantined after {record.attempts} attempts: {record.reason}"
    except NotFound:
        pass
    except (ValueError, TypeError) as error:
        return f"quarantined; damaged record {layout.failed_name(shard_id)}: {error}"
    if store.info(layout.table_name(shard_id)) is not None:
        return "a table without ledger entry: run the same jobs.encode command again"
    return "not encoded yet: run the same jobs.encode command again"


def _check_entry(entry: ShardResult, spec: ShardSpec, say: Sayer) -> None:
    there = ShardSpec(entry.shard_id, entry.url, entry.source_size, entry.source_etag)
    if there != spec:
        say(f"the ledger entry is of {there}, the listing has {spec}")
    if entry.outcome != "done":
        say(f"{entry.outcome}: {'; '.join(entry.damage) or 'no reason given'}")


def _check_table(
    store: Store, plan: Plan, spec: ShardSpec, entry: ShardResult, say: Sayer
) -> bytes | None:
    """The table's bytes against the ledger, its footer against plan and listing, then its rows."""
    proved, before = say.verdict.proved, len(say.verdict.problems)
    try:
        data = store.get(layout.table_name(spec.shard_id))
    except NotFound:
        say("the ledger has it, but the table is gone")
        return None
    if len(data) != entry.table_bytes:
        say(f"the table has {len(data)} bytes, the ledger says {entry.table_bytes}")
    elif hashlib.sha256(data).hexdigest() != entry.table_sha256:
        say("the table's sha256 is not the ledger's: the object was changed after the commit")
    try:
        footer = table.read_footer(data)
        expected = {
            "plan_digest": plan.digest, "model": plan.model, "shard_id": spec.shard_id,
            "source_url": spec.url, "source_size": str(spec.size), "source_etag": spec.etag,
            "rows": json.dumps(entry.rows, sort_keys=True),
        }  # fmt: skip
        for name, value in expected.items():
            if footer.get(name) != value:
                say(f"the table's footer has {name} {footer.get(name)!r}, expected {value!r}")
        proved["tables"] = int(len(say.verdict.problems) == before)
        if footer.get("plan_digest") == plan.digest:
            check_table(footer, plan)
        _check_rows(data, plan, entry, say)
    except BadTable as error:
        say(f"table: {error}")
    return data


def _check_rows(data: bytes, plan: Plan, entry: ShardResult, say: Sayer) -> None:
    """Every row by itself, and their totals against the ledger."""
    proved, keys = say.verdict.proved, set[str]()
    counts: dict[str, int] = {}
    dropped = say.verdict.dropped
    pixels = code_bytes = 0
    for row in table.read_rows(data):
        proved["rows"] += 1
        counts[row.status.value] = counts.get(row.status.value, 0) + 1
        code_bytes += row.payload_bytes
        add(dropped, losses.count([row]) if plan.has_dropped else {})
        if (row.key in keys) != (row.status is Status.DUPLICATE_KEY):
            say(f"key {row.key!r}: status {row.status.value}, {_times(row.key in keys)}")
        keys.add(row.key)
        if row.status is not Status.OK:
            _note_absent(row, say)
            continue
        try:
            _check_payload(row, plan)
        except BadTable as error:
            say(str(error))
            continue
        proved["images"] += 1
        proved["codes"] += plan.stores_codes
        width, height = images.encoded_size(row.width, row.height, plan.pictures)
        pixels += width * height
    for name, here, there in (
        ("rows by status", counts, entry.rows),
        ("encoded pixels", pixels, entry.pixels),
        ("bytes of payload", code_bytes, entry.code_bytes),
        ("what the codes do not hold", dropped, entry.dropped),
    ):
        if here != there:
            say(f"{name}: the table has {here}, the ledger says {there}")


def _note_absent(row: Row, say: Sayer) -> None:
    """A row without an image: its original is not in the archive."""
    found, status = say.verdict, row.status.value
    found.absent[status] = found.absent.get(status, 0) + 1
    found.absent_keys.append(f"{say.shard_id}: key {row.key!r}: {status}: {row.error}")
    if row.codes is not None or row.bitstream is not None:
        say(f"key {row.key!r}: status {status}, but it has codes")


def _check_payload(row: Row, plan: Plan) -> None:
    """An ok row has the columns that the plan stores; without the model, a bitstream is opaque.

    Raises:
        BadTable: it has others, or its raw codes or its grid are wrong.
    """
    for name, there, wanted in (
        ("codes", row.codes is not None, plan.stores_codes),
        ("bitstream", row.bitstream is not None, plan.stores_bitstream),
    ):
        if there != wanted:
            has = f"a {name} column" if there else f"no {name}"
            raise BadTable(f"key {row.key!r}: the row has {has}, the plan says {plan.store!r}")
    if row.crc32 is None:
        raise BadTable(f"key {row.key!r}: status {row.status.value}, but it has no crc32")
    if plan.stores_codes:
        row_codes(row, plan)
    else:
        check_grid(row, plan)


def _times(again: bool) -> str:
    return "but the key occurs before" if again else "but the key does not occur before"


def _foreign(store: Store, shard_ids: set[str]) -> Iterator[str]:
    """Objects among the tables and ledger entries that belong to no shard of the listing."""
    for prefix, name_of in (("codes/", layout.table_name), ("ledger/", layout.ledger_name)):
        own = {name_of(shard_id) for shard_id in shard_ids}
        for name in store.names(prefix):
            if name not in own:
                yield f"{name}: belongs to no shard of the listing"
