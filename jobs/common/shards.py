"""Which shards a job works on: what ``--input`` names, and what an archive was begun with."""

from __future__ import annotations

import logging

from jobs import common
from pipeline.archive import layout, table
from pipeline.plan import ShardSpec
from pipeline.store import inputs, shard_names, storage
from pipeline.store.storage import NotFound, Store

log = logging.getLogger("jobs")


def list_shards(given: list[str]) -> list[ShardSpec]:
    """Expand ``--input`` into shards, sorted by URL."""
    found = inputs.expand(given)
    return [ShardSpec(shard_names.shard_id(o.url), o.url, o.size, o.etag) for o in found]


def as_begun(store: Store, specs: list[ShardSpec]) -> list[ShardSpec]:
    """The shards, or those that an archive of before was begun with, if nothing but the rules of
    listing has changed since: hidden and repeated files were shards then, and other endings than
    .tar were not."""
    try:
        if layout.read_plan(store).exact:
            return specs
        there = table.read_listing(store.get(layout.LISTING))
    except NotFound:
        return specs
    now, then = ({(s.url, s.size, s.etag) for s in listed} for listed in (specs, there))
    gone = [storage.ObjectInfo(*one) for one in then - now]
    same = inputs.left_out_now(gone, [spec.url for spec in specs])
    if now == then or not same or any(url.endswith(".tar") for url, _, _ in now - then):
        return specs
    log.warning(
        "%s: goes on with the %d shards that it was begun with: today's rules of listing would "
        "choose %d", store.root, len(there), len(specs),
    )  # fmt: skip
    return there


def check_place(given: list[str], store: Store) -> None:
    """Refuse an archive among its own originals: who removes them would remove it as well.

    Raises:
        UsageError: so; one that was begun there goes on, with a warning.
    """
    around = inputs.holder(given, store.root)
    if around is None:
        return
    where = f"--output {store.root} is inside --input {around}"
    if store.info(layout.PLAN) is None:
        raise common.UsageError(f"{where}: who removes the originals would remove the archive too; "
                                "choose another output")  # fmt: skip
    log.warning("%s: move the archive away before you remove the originals", where)
