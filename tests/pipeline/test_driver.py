"""The driver over a scripted pool: every shard ends committed or quarantined, or the run stops."""

from __future__ import annotations

import pytest

from pipeline import commit, driver
from pipeline.plan import ShardFailure, ShardResult, ShardSpec
from pipeline.report import Progress
from pipeline.storage import Store


def spec(name: str) -> ShardSpec:
    return ShardSpec(name, f"/in/{name}.tar", 1000, "e")


def result(shard: ShardSpec, attempt: int, rows: dict[str, int] | None = None) -> ShardResult:
    return ShardResult(
        shard.shard_id, shard.url, shard.size, shard.etag, "done", rows or {"ok": 10}, 1000, 100,
        200, "", "", attempt=attempt, seconds={"encode": 1.0},
    )  # fmt: skip


class ScriptedPool:
    """Answers each shard from a list: a failure kind an attempt, then a result."""

    def __init__(self, script: dict[str, list[str]], slots: int = 3, rows=None) -> None:
        self.script, self.slots, self.rows = script, slots, rows
        self.running: list[tuple[ShardSpec, int]] = []
        self.started: list[str] = []

    @property
    def free(self) -> int:
        return self.slots - len(self.running)

    def start(self, shard: ShardSpec, attempt: int) -> None:
        assert self.free > 0
        self.running.append((shard, attempt))
        self.started.append(shard.shard_id)

    def wait(self, timeout_s: float) -> list[ShardResult | ShardFailure]:
        shard, attempt = self.running.pop()
        kinds = self.script.get(shard.shard_id, [])
        if attempt <= len(kinds):
            kind = kinds[attempt - 1]
            return [ShardFailure(shard.shard_id, shard.url, kind, f"{kind}!", attempt)]
        return [result(shard, attempt, self.rows)]


def drive(tmp_path, script, names="abcdef", **changes):
    pool, progress = ScriptedPool(script, **changes), Progress(len(names))
    store = Store(str(tmp_path))
    driver.run((spec(n) for n in names), pool, store, progress, max_bad_images=0.05)
    return pool, progress, store


def test_every_shard_is_handed_out_once_when_nothing_fails(tmp_path):
    pool, progress, _ = drive(tmp_path, {})
    assert sorted(pool.started) == list("abcdef")
    assert (progress.done, progress.images, progress.retries) == (6, 60, 0)


@pytest.mark.parametrize("kind", ["transient", "lost", "error"])
def test_a_shard_that_fails_twice_is_tried_a_third_time(tmp_path, kind):
    pool, progress, _ = drive(tmp_path, {"c": [kind, kind]})
    assert pool.started.count("c") == 3
    assert (progress.done, progress.retries, progress.quarantined) == (6, 2, [])


def test_a_shard_that_fails_three_times_is_set_aside_and_the_rest_goes_on(tmp_path):
    pool, progress, store = drive(tmp_path, {"c": ["lost"] * 3})
    assert progress.done == 5 and progress.quarantined == ["/in/c.tar"]
    record = commit.quarantined(store)["c"]
    assert (record.reason, record.attempts) == ("lost!", 3)


def test_a_failure_that_concerns_the_whole_run_stops_it(tmp_path):
    with pytest.raises(driver.Stopped, match="fatal!"):
        drive(tmp_path, {"c": ["fatal"]})


def test_too_many_bad_images_stop_the_run_and_name_the_way_out(tmp_path):
    with pytest.raises(driver.Stopped, match=r"12 of 120 .*12 missing_image.*--image-key"):
        drive(tmp_path, {}, rows={"ok": 54, "missing_image": 6})


def test_no_shards_end_at_once(tmp_path):
    assert drive(tmp_path, {}, names="")[1].done == 0


def test_the_listing_is_consumed_as_slots_come_free(tmp_path):
    taken = []

    def endless():
        for number in range(50):
            taken.append(number)
            yield spec(f"s{number}")

    class Watching(ScriptedPool):
        def wait(self, timeout_s):
            assert len(taken) - len(self.started) <= 1
            return super().wait(timeout_s)

    progress = Progress(50)
    driver.run(endless(), Watching({}), Store(str(tmp_path)), progress, 0.05)
    assert progress.done == 50
