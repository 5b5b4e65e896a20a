"""What an archive has already, found by listings: a run over committed shards costs no GET a shard.

Four listings, a thousand names a request: ``ledger/``, ``codes/``, ``failed/``, ``damaged/``.  A
damaged shard has its mark before it is committed, so that the few committed shards with a mark are
the only ones whose outcome has to be read.  Memory: the names of the
committed shards, until the answer is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.archive import commit, layout
from pipeline.archive.table import BadTable
from pipeline.plan import ShardResult, ShardSpec
from pipeline.store.storage import Store


@dataclass(frozen=True)
class Left:
    """What earlier runs have left."""

    todo: list[ShardSpec]
    committed: int
    quarantined: list[str]  # URLs, given up and not to be tried again
    damaged: list[str]  # URLs, committed as far as they could be read


def find_left(store: Store, specs: Sequence[ShardSpec], retry_failed: bool) -> Left:
    """Compare the input listing with the archive.

    Raises:
        BadTable: a shard is committed, but its table is gone.
    """
    committed = commit.committed_ids(store)
    _check_tables(store, committed)
    failed = set(layout.ids(store, "failed/"))
    damaged = _damaged(store, sorted(committed.intersection(layout.ids(store, "damaged/"))))
    given_up = set() if retry_failed else failed - committed
    ended = committed | given_up
    todo = [spec for spec in specs if spec.shard_id not in ended]
    quarantined = [spec.url for spec in specs if spec.shard_id in given_up]
    return Left(todo, len(specs) - len(todo) - len(quarantined), quarantined, damaged)


def _check_tables(store: Store, committed: set[str]) -> None:
    """A table is written before its ledger entry, so that the later listing must show it."""
    gone = sorted(committed.difference(layout.ids(store, "codes/", ".parquet")))
    if gone:
        table, entry = layout.table_name(gone[0]), layout.ledger_name(gone[0])
        raise BadTable(
            f"{store.url(entry)} says that this shard is committed, but {store.url(table)} is gone"
            f" ({len(gone)} such shards): restore the tables, or remove these ledger entries too, "
            "and run the same command again to encode them anew"
        )


def _damaged(store: Store, candidates: Sequence[str]) -> list[str]:
    """Of committed shards that some attempt found damaged: those that are committed so."""
    with ThreadPoolExecutor(commit.THREADS) as pool:
        entries = pool.map(store.get, map(layout.ledger_name, candidates))
        results = [ShardResult.from_json(entry) for entry in entries]
    return [result.url for result in results if result.outcome != "done"]


def ledger(store: Store, specs: Sequence[ShardSpec], done: Set[str]) -> Iterator[ShardResult]:
    """The entries of those of the listing's shards that are ``done``, in its order.

    Raises:
        BadTable: one of them is damaged.
    """
    try:
        yield from commit.entries(store, (s.shard_id for s in specs if s.shard_id in done))
    except (ValueError, TypeError, KeyError) as error:
        raise BadTable(
            f"{store.url('ledger/')}: an entry is damaged ({error}): jobs.verify names it"
        ) from error
