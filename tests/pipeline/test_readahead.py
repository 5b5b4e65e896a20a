"""Read-ahead: order, bounds, errors and endings."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.readahead import ByteBudget, read_ahead


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
