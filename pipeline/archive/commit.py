"""Exactly once: one code table and one ledger entry a shard, whatever crashes, repeats or overlaps.

A shard is committed by two create-only writes: ``codes/<id>.parquet``, then ``ledger/<id>.json``.
The first table wins; every later attempt adopts it.  The table's footer carries what the ledger
needs, so a ledger entry that was never written is made up from the table.  What holds when a
process dies, and what the next run does:

    after                       there is            next run
    begin, before plan.json     nothing             begins
    plan.json                   the plan            checks that its own is the same
    encoding, before the table  nothing             encodes again
    the table, reply lost       the table           the repeated PUT finds its own bytes, goes on
    the table                   the table           find_committed adopts it, writes the ledger
    the ledger                  both                skips the shard
    damaged/<id>.json           at most the mark    encodes again; a mark alone says nothing
    two attempts at once        the first table     the loser adopts it; the first ledger stands
    quarantine                  failed/<id>.json    tries again; a commit outweighs the record

A shard whose source could be read in part only is marked under ``damaged/`` before its table is
written, so that a run that resumes knows the few committed shards whose outcome it has to read.

Nothing is ever overwritten or deleted but the record of a quarantine.  Cost: a HEAD before a shard
is encoded, and two PUTs after it.  A store without atomic create-only writes (``Store.probe``)
leaves a window in which two overlapping attempts both write; equal plans write equal tables, and a
ledger entry that does not fit its table is an error here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.archive.table import BadTable, read_footer
from pipeline.plan import Facts, Plan, PlanMismatch, ShardResult, ShardSpec
from pipeline.store.errors import take_retries
from pipeline.store.storage import NotFound, ObjectInfo, Store

PLAN = "plan.json"
THREADS = 32  # ledger entries read at once; each is one small GET
BATCH = 1024  # ledger entries in memory at once

ReadFooter = Callable[[bytes], dict[str, str]]


@dataclass(frozen=True)
class Quarantined:
    """A shard that was given up, the body of ``failed/<id>.json``."""

    shard_id: str
    url: str
    source_etag: str
    reason: str
    attempts: int


def model_name(fingerprint: str) -> str:
    """The archive's decoder."""
    return f"model/{fingerprint}.safetensors"


def table_name(shard_id: str) -> str:
    """The object with the shard's rows."""
    return f"codes/{shard_id}.parquet"


def ledger_name(shard_id: str) -> str:
    """The object that says that the shard is committed."""
    return f"ledger/{shard_id}.json"


def failed_name(shard_id: str) -> str:
    """The object that says that the shard was given up."""
    return f"failed/{shard_id}.json"


def damaged_name(shard_id: str) -> str:
    """The object that says that some attempt found the shard's source damaged."""
    return f"damaged/{shard_id}.json"


def begin(store: Store, plan: Plan) -> Plan:
    """Put the plan into the archive, or check that the one there is the same; the plan to follow.

    An archive of an older format version goes on by its own rules.

    Raises:
        PlanMismatch: the prefix belongs to another plan; names the fields that differ.
    """
    if store.put_if_absent(PLAN, plan.to_json()):
        return plan
    there = read_plan(store)
    plan = plan.as_begun(there)
    differences = plan.differences(there)
    if differences:
        hint = ""
        if plan.inputs_digest != there.inputs_digest:
            hint = "; an input shard was added, removed or replaced since the archive was begun"
        raise PlanMismatch(
            f"{store.url(PLAN)} is of another run ({'; '.join(differences)}){hint}: "
            "use the options and inputs of that run to resume it, or choose another output"
        )
    return plan


def read_plan(store: Store) -> Plan:
    """The plan of an archive.

    Raises:
        NotFound: no archive was begun there.
        PlanMismatch: not a plan, or one of a newer version.
    """
    try:
        return Plan.from_json(store.get(PLAN))
    except (ValueError, TypeError) as exc:
        raise PlanMismatch(
            f"{store.url(PLAN)} is not a plan of this software ({exc}): choose another output"
        ) from exc


def find_committed(
    store: Store, plan: Plan, spec: ShardSpec, read_footer: ReadFooter = read_footer
) -> ShardResult | None:
    """What is committed of a shard, before any work is spent on it; None if nothing is.

    A table without ledger entry (a crash between the two) is adopted: afterwards both are there.

    Raises:
        PlanMismatch: it was made from another version of the source, or by another plan.
    """
    if store.info(table_name(spec.shard_id)) is None:
        return None  # nor can there be a ledger entry, which comes second
    found = _ledger_entry(store, spec.shard_id)
    if found is None:
        return _record(store, _adopt(store, plan, spec, read_footer))
    there = ShardSpec(found.shard_id, found.url, found.source_size, found.source_etag)
    if there != spec:
        raise PlanMismatch(
            f"{store.url(ledger_name(spec.shard_id))} is of {_version(there)}, but the source is "
            f"now {_version(spec)}: restore that source, or choose another output"
        )
    return found


def commit(
    store: Store,
    plan: Plan,
    result: ShardResult,
    table: bytes,
    read_footer: ReadFooter = read_footer,
) -> ShardResult:
    """Mark a damaged shard, write the table, then the ledger entry; give the entry that stands.

    Another attempt may have come first, also with its ledger entry: its table stays and is adopted,
    its entry is the one returned.  After a crash at any point :func:`find_committed` or a second
    call completes what was begun.

    Raises:
        PlanMismatch: the table that is there is of another plan or another version of the source.
    """
    if result.outcome != "done":
        mark = json.dumps({"url": result.url, "damage": result.damage}) + "\n"
        store.put(damaged_name(result.shard_id), mark.encode())
    info = store.create(table_name(result.shard_id), table)
    if info is not None:
        result = _describe(result, table, info)
    else:
        spec = ShardSpec(result.shard_id, result.url, result.source_size, result.source_etag)
        result = _adopt(store, plan, spec, read_footer)
    return _record(store, result)


def committed(store: Store) -> dict[str, ShardResult]:
    """All ledger entries, by shard: 1 KB of memory each."""
    return {entry.shard_id: entry for entry in entries(store, ids(store, "ledger/"))}


def entries(store: Store, shard_ids: Iterable[str]) -> Iterator[ShardResult]:
    """The ledger entries of these shards, in this order, BATCH of them in memory at a time.

    Raises:
        NotFound: a shard has none.
        ValueError, TypeError, KeyError: an entry is damaged.
    """

    def read(shard_id: str) -> ShardResult:
        return ShardResult.from_json(store.get(ledger_name(shard_id)))

    left = iter(shard_ids)
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(itertools.islice(left, BATCH)):
            yield from pool.map(read, batch)


def committed_ids(store: Store) -> set[str]:
    """The shards that have a ledger entry, by listing alone."""
    return set(ids(store, "ledger/"))


def quarantine(store: Store, spec: ShardSpec, reason: str, attempts: int) -> None:
    """Record that a shard was given up; a later run tries it again."""
    record = Quarantined(spec.shard_id, spec.url, spec.etag, reason, attempts)
    body = json.dumps(dataclasses.asdict(record), sort_keys=True) + "\n"
    store.put(failed_name(spec.shard_id), body.encode())


def quarantined(store: Store) -> dict[str, Quarantined]:
    """The shards that were given up and not committed since; the rest of the ledger is not read."""

    def read(shard_id: str) -> Quarantined | None:
        if store.info(ledger_name(shard_id)) is not None:
            return None
        return Quarantined(**json.loads(store.get(failed_name(shard_id))))

    with ThreadPoolExecutor(THREADS) as pool:
        found = [one for one in pool.map(read, ids(store, "failed/")) if one is not None]
    return {one.shard_id: one for one in found}


def ids(store: Store, prefix: str, suffix: str = ".json") -> Iterator[str]:
    """Shards by the names below ``ledger/``, ``failed/``, ``damaged/`` or ``codes/``."""
    names = (name.removeprefix(prefix) for name in store.names(prefix))
    return (name.removesuffix(suffix) for name in names if name.endswith(suffix))


def _ledger_entry(store: Store, shard_id: str) -> ShardResult | None:
    try:
        return ShardResult.from_json(store.get(ledger_name(shard_id)))
    except NotFound:
        return None


def _version(spec: ShardSpec) -> str:
    """A source and which version of it, for messages."""
    return f"{spec.url} (ETag {spec.etag}, {spec.size} bytes)"


def _describe(result: ShardResult, table: bytes, info: ObjectInfo) -> ShardResult:
    """The result with size, checksum and ETag of the table as it is in the store."""
    return dataclasses.replace(
        result,
        table_bytes=len(table),
        table_sha256=hashlib.sha256(table).hexdigest(),
        table_etag=info.etag,
    )


def _adopt(store: Store, plan: Plan, spec: ShardSpec, read_footer: ReadFooter) -> ShardResult:
    """The result that the table in the store stands for, if it is what we would have written."""
    name = table_name(spec.shard_id)
    table, info = store.get(name), store.info(name)
    if info is None or info.size != len(table):
        raise PlanMismatch(f"{store.url(name)}: was removed or replaced just now; stop who does it")
    try:
        footer = read_footer(table)
        source = {key: footer[f"source_{key}"] for key in ("url", "size", "etag")}
        there = ShardSpec(footer["shard_id"], source["url"], int(source["size"]), source["etag"])
        facts = json.loads(footer["result"])
        facts = Facts(**{**facts, "damage": tuple(facts["damage"])})
    except (BadTable, KeyError, ValueError, TypeError) as exc:
        raise PlanMismatch(
            f"{store.url(name)} is not a table of this software ({exc}): remove it, or choose "
            "another output"
        ) from exc
    if footer["plan_digest"] != plan.digest:
        raise PlanMismatch(
            f"{store.url(name)} was made by plan {footer['plan_digest'][:12]}, this is plan "
            f"{plan.digest[:12]}: choose another output"
        )
    if there != spec:
        raise PlanMismatch(
            f"{store.url(name)} was made from {_version(there)}, but the source is now "
            f"{_version(spec)}: restore that source, or choose another output"
        )
    return _describe(ShardResult.of(spec, facts, adopted=True), table, info)


def _record(store: Store, result: ShardResult) -> ShardResult:
    """Write the ledger entry; give the one that stands, which an overlapping attempt may own.

    Raises:
        PlanMismatch: the entry describes another table than the one that is there.
    """
    name = ledger_name(result.shard_id)
    result = dataclasses.replace(result, retries=result.retries + take_retries())
    if store.put_if_absent(name, result.to_json()):
        return result
    there = ShardResult.from_json(store.get(name))
    if there.table_sha256 != result.table_sha256:
        raise PlanMismatch(
            f"{store.url(name)} describes a table with sha256 {there.table_sha256[:12]}, but "
            f"{table_name(result.shard_id)} has {result.table_sha256[:12]}: remove both, and run "
            "the same command again"
        )
    return there
