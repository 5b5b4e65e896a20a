"""The commit protocol: crash at every step, overlapping attempts, lost replies, wrong plans."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.archive import commit, layout
from pipeline.archive.table import Row, write_table
from pipeline.plan import Plan, PlanMismatch, ShardResult, ShardSpec, Status
from pipeline.store.storage import NotFound, ObjectInfo, Store
from tests.archives import committed

PLAN = Plan(model="f" * 16, quality=4, stride=16, codewords=256, inputs=1, inputs_digest="d")
SPEC = ShardSpec("shard-0-1234abcd", "s3://in/shard-0.tar", 10240, "etag-1")


def encode(plan: Plan = PLAN, spec: ShardSpec = SPEC) -> tuple[ShardResult, bytes]:
    """What encoding gives: a result without the table's facts, and the table."""
    rows = [Row("a", Status.OK, width=32, height=16, grid_w=2, grid_h=1, codes=bytes(8), crc32=1)]
    result = ShardResult(
        shard_id=spec.shard_id,
        url=spec.url,
        source_size=spec.size,
        source_etag=spec.etag,
        outcome="done",
        rows={"ok": 1},
        pixels=512,
        code_bytes=8,
        table_bytes=0,
        table_sha256="",
        table_etag="",
        wall_s=1.5,
    )
    return result, write_table(rows, plan, spec, result)


def run(store: Store, plan: Plan = PLAN, spec: ShardSpec = SPEC) -> ShardResult:
    """What a job does with one shard."""
    commit.begin(store, plan)
    found = commit.find_committed(store, plan, spec)
    return found or commit.commit(store, plan, *encode(plan, spec))


def check(root: str, plan: Plan = PLAN, spec: ShardSpec = SPEC) -> ShardResult:
    """The archive holds the shard exactly once, and its ledger entry is true."""
    store = Store(root)
    assert sorted(store.names()) == [
        f"codes/{spec.shard_id}.parquet",
        f"ledger/{spec.shard_id}.json",
        "plan.json",
    ]
    assert layout.read_plan(store) == plan
    assert commit.committed_ids(store) == {spec.shard_id}
    (entry,) = committed(store).values()
    table = store.get(layout.table_name(spec.shard_id))
    info = store.info(layout.table_name(spec.shard_id))
    assert info is not None
    assert (entry.table_bytes, entry.table_etag) == (len(table), info.etag)
    assert entry.table_sha256 == hashlib.sha256(table).hexdigest()
    assert entry.rows == {"ok": 1} and entry.pixels == 512 and entry.outcome == "done"
    assert (entry.url, entry.source_etag, entry.source_size) == (spec.url, spec.etag, spec.size)
    return entry


class Crash(BaseException):
    """The process died."""


class DyingStore(Store):
    """Dies at the n-th operation, before or after it took effect."""

    def __init__(self, uri: str, step: int, after: bool) -> None:
        super().__init__(uri)
        self.left, self.after = step, after

    def _step(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        self.left -= 1
        if self.left < 0 and not self.after:
            raise Crash
        value = operation(*arguments)
        if self.left < 0:
            raise Crash
        return value

    def get(self, name: str) -> bytes:
        return self._step(super().get, name)

    def info(self, name: str) -> ObjectInfo | None:
        return self._step(super().info, name)

    def create(self, name: str, data: bytes) -> ObjectInfo | None:
        return self._step(super().create, name, data)


def crashes(root: str, after: bool) -> Iterator[tuple[int, bool]]:
    """Run with a crash at step 0, 1, ... up to the first run that gets through."""
    for step in range(100):
        here = f"{root}/{step}"
        try:
            run(DyingStore(here, step, after))
        except Crash:
            yield step, True
        else:
            yield step, False
            return


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_that_died_at_any_step_is_completed_by_the_next(root: str, after: bool) -> None:
    steps = 0
    for step, died in crashes(root, after):
        result = run(Store(f"{root}/{step}"))
        assert check(f"{root}/{step}") == result
        steps += died
    assert steps == 4  # plan, table?, table, ledger


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_adoption_that_died_at_any_step_is_completed_by_the_next(root: str, after: bool) -> None:
    adopted = 0
    for step in range(100):
        here = f"{root}/{step}"
        commit.begin(Store(here), PLAN)
        Store(here).put_if_absent(layout.table_name(SPEC.shard_id), encode()[1])
        try:
            run(DyingStore(here, step, after))
        except Crash:
            run(Store(here))
        else:
            step = -1
        adopted += check(here).adopted
        if step < 0:
            break
    assert adopted == 9  # plan, its bytes, ETag, table?, ledger?, table, ETag, ledger; and no crash


def test_committing_twice_gives_the_first_entry(root: str) -> None:
    first = run(Store(root))
    result, table = encode()
    again = commit.commit(Store(root), PLAN, replace(result, attempt=2, wall_s=9.0), table)
    assert again == first == check(root)


def test_overlapping_attempt_with_other_bytes_adopts_the_first_table(root: str) -> None:
    store = Store(root)
    commit.begin(store, PLAN)
    assert commit.find_committed(store, PLAN, SPEC) is None
    result, table = encode()
    other = write_table([Row("b", Status.OK)] * 3, PLAN, SPEC, replace(result, rows={"ok": 3}))
    store.put_if_absent(layout.table_name(SPEC.shard_id), table)  # the other attempt, half-way
    adopted = commit.commit(store, PLAN, replace(result, rows={"ok": 3}, attempt=2), other)
    assert adopted.adopted and adopted == check(root)
    first = commit.commit(store, PLAN, result, table)  # the other attempt goes on
    assert first == adopted == check(root)


class ForgetfulStore(Store):
    """Loses the reply to every first write of an object, and so writes it twice."""

    def create(self, name: str, data: bytes) -> ObjectInfo | None:
        super().create(name, data)
        return super().create(name, data)


def test_lost_replies_leave_one_commit(root: str) -> None:
    result = run(ForgetfulStore(root))
    assert check(root) == result and result.wall_s == 1.5 and not result.adopted


@pytest.mark.parametrize("conditional", [True, False])
def test_resuming_needs_the_same_plan(root: str, conditional: bool) -> None:
    store = Store(root, conditional=conditional)
    run(store)
    commit.begin(store, PLAN)
    with pytest.raises(PlanMismatch, match=r"plan\.json.*quality: 8, there 4.*another output"):
        commit.begin(store, replace(PLAN, quality=8))
    with pytest.raises(PlanMismatch, match="an input shard was added, removed or replaced"):
        commit.begin(store, replace(PLAN, inputs_digest="e"))
    check(root)


def test_a_table_of_another_plan_is_not_adopted(root: str) -> None:
    other = replace(PLAN, quality=8)
    store = Store(root)
    store.put_if_absent(layout.table_name(SPEC.shard_id), encode(other)[1])
    pattern = f"{other.digest[:12]}.*{PLAN.digest[:12]}"
    with pytest.raises(PlanMismatch, match=pattern):
        commit.find_committed(store, PLAN, SPEC)
    with pytest.raises(PlanMismatch, match=pattern):
        commit.commit(store, PLAN, *encode())
    assert commit.committed_ids(store) == set()


@pytest.mark.parametrize("ledger", [True, False], ids=["committed", "orphan"])
def test_a_replaced_source_is_refused(root: str, ledger: bool) -> None:
    store = Store(root)
    if ledger:
        run(store)
    else:
        store.put_if_absent(layout.table_name(SPEC.shard_id), encode()[1])
    with pytest.raises(PlanMismatch, match=r"etag-1.*etag-2.*restore"):
        commit.find_committed(store, PLAN, replace(SPEC, etag="etag-2"))


def test_garbage_under_the_name_of_a_table_is_refused(root: str) -> None:
    store = Store(root)
    store.put(layout.table_name(SPEC.shard_id), encode()[1][:-7])
    with pytest.raises(PlanMismatch, match=r"codes/.*not a table.*remove it"):
        commit.find_committed(store, PLAN, SPEC)


def test_a_ledger_entry_of_another_table_is_an_error(root: str) -> None:
    store = Store(root)
    result, table = encode()
    stale = replace(result, table_sha256="0" * 64)
    store.put(layout.ledger_name(SPEC.shard_id), stale.to_json())
    with pytest.raises(PlanMismatch, match="remove both"):
        commit.commit(store, PLAN, result, table)


def test_garbage_for_a_plan_is_refused(root: str) -> None:
    store = Store(root)
    with pytest.raises(NotFound, match="plan.json"):
        layout.read_plan(store)
    store.put(layout.PLAN, b'{"colour": 1}')
    with pytest.raises(PlanMismatch, match="not a plan of this software"):
        commit.begin(store, PLAN)


def test_all_ledger_entries_are_read(root: str) -> None:
    store = Store(root)
    specs = [replace(SPEC, shard_id=f"shard-{i}") for i in range(40)]
    for spec in specs:
        result, _ = encode(spec=spec)
        store.put(layout.ledger_name(spec.shard_id), result.to_json())
    assert commit.committed_ids(store) == {spec.shard_id for spec in specs}
    assert set(committed(store)) == {spec.shard_id for spec in specs}


class CountingStore(Store):
    """Remembers what was read."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.read: list[str] = []

    def get(self, name: str) -> bytes:
        self.read.append(name)
        return super().get(name)


def test_entries_come_in_the_order_asked_for_a_batch_at_a_time(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "BATCH", 4)
    store, ids = CountingStore(root), [f"shard-{i}" for i in reversed(range(10))]
    for shard_id in ids:
        result, _ = encode(spec=replace(SPEC, shard_id=shard_id))
        store.put(layout.ledger_name(shard_id), result.to_json())
    found = commit.entries(store, ids)
    assert next(found).shard_id == ids[0] and len(store.read) <= 4
    assert [entry.shard_id for entry in found] == ids[1:]


def test_entries_of_older_versions_are_read_and_retries_are_not_in_the_table() -> None:
    result, table = encode()
    fields = json.loads(result.to_json())
    del fields["retries"]
    assert ShardResult.from_json(json.dumps(fields).encode()) == result
    assert write_table(
        [Row("a", Status.OK, width=32, height=16, grid_w=2, grid_h=1, codes=bytes(8), crc32=1)],
        PLAN, SPEC, replace(result, retries=7),
    ) == table  # fmt: skip


def test_of_the_ledger_only_entries_of_quarantined_shards_are_looked_at(tmp_path: Path) -> None:
    store = CountingStore(str(tmp_path))
    run(store)
    commit.quarantine(store, replace(SPEC, shard_id="other"), "killed its worker", attempts=3)
    store.read.clear()
    assert set(commit.quarantined(store)) == {"other"}
    assert store.read == [layout.failed_name("other")]


def test_quarantine_is_recorded_until_the_shard_is_committed(root: str) -> None:
    store = Store(root)
    assert commit.quarantined(store) == {} and committed(store) == {}
    commit.quarantine(store, SPEC, "killed its worker", attempts=2)
    commit.quarantine(store, SPEC, "killed its worker", attempts=3)
    record = commit.quarantined(store)[SPEC.shard_id]
    assert (record.reason, record.attempts, record.url) == ("killed its worker", 3, SPEC.url)
    run(store)
    assert commit.quarantined(store) == {}


def test_plans_of_before_a_later_field_keep_their_digest():
    old = json.loads(PLAN.to_json())
    assert "price" not in old and Plan.from_json(json.dumps(old).encode()) == PLAN
    priced = replace(PLAN, price=0.05)
    assert priced.digest != PLAN.digest and Plan.from_json(priced.to_json()) == priced
