"""Read-ahead: order, bounds, errors and endings."""

from __future__ import annotations

import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.work.readahead import ByteBudget, read_ahead


def run(source, prepare, limit=100, threads=3, after=lambda r: 10):
    budget = ByteBudget(limit)
    with ThreadPoolExecutor(threads) as pool:
        yield from read_ahead(source, prepare, pool, budget, lambda item: 10, after)
    assert budget.used == 0


def test_results_come_in_order_whatever_order_they_finish_in():
    def slow(item: int) -> int:
        time.sleep(random.random() * 0.003)
        return item * 2

    assert list(run(range(200), slow)) == [2 * i for i in range(200)]


def test_no_more_is_read_than_the_limit_allows():
    held, peak, lock = 0, 0, threading.Lock()

    def source():
        nonlocal held, peak
        for item in range(60):
            with lock:
                held += 1
                peak = max(peak, held)
            yield item

    for _ in run(source(), lambda item: item, limit=50):
        with lock:
            held -= 1
    assert peak <= 7  # 5 items of 10 bytes, one being read, one being taken


def test_an_item_over_the_limit_passes_alone():
    assert list(run(range(3), lambda i: i, limit=5, after=lambda r: 1000)) == [0, 1, 2]


@pytest.mark.parametrize("where", ["source", "prepare"])
def test_an_error_is_raised_at_its_place_and_nothing_hangs(where):
    def source():
        for item in range(100):
            if where == "source" and item == 7:
                raise OSError("broken stream")
            yield item

    def prepare(item):
        if where == "prepare" and item == 7:
            raise OSError("broken image")
        return item

    got = []
    with pytest.raises(OSError, match="broken"):
        for item in run(source(), prepare):
            got.append(item)
    assert got == list(range(7))


def test_leaving_early_ends_the_reader_thread():
    stream = run(iter(range(10**9)), lambda item: item)
    assert next(stream) == 0
    stream.close()
    assert not [t for t in threading.enumerate() if t.name == "shard-reader"]


def test_large_items_are_prepared_alone_however_many_threads_there_are():
    running, peak, lock = 0, 0, threading.Lock()

    def prepare(item: int) -> int:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        time.sleep(0.002)
        with lock:
            running -= 1
        return item

    assert list(run(range(20), prepare, limit=9, threads=4)) == list(range(20))
    assert peak == 1


def test_an_item_counts_until_the_next_one_is_asked_for():
    budget = ByteBudget(100)
    with ThreadPoolExecutor(1) as pool:
        stream = read_ahead(range(1), lambda i: i, pool, budget, lambda i: 10, lambda r: 30)
        assert next(stream) == 0
        assert budget.used == 30
        assert list(stream) == [] and budget.used == 0


def test_what_was_taken_is_not_held_while_the_next_is_prepared():
    class Result:
        pass

    kept: list[weakref.ref] = []
    go_on = threading.Event()

    def prepare(item: int) -> Result:
        if item:
            go_on.wait(10)
        return Result()

    def consume() -> None:
        for result in run(range(2), prepare):
            kept.append(weakref.ref(result))
            del result

    consumer = threading.Thread(target=consume)
    consumer.start()
    try:
        deadline = time.monotonic() + 60
        while not (kept and kept[0]() is None) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert kept[0]() is None
    finally:
        go_on.set()
        consumer.join()
