"""Order, split, windows and batches, as pure functions."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codes import sampler
from pipeline.codes.sampler import Cursor

counts = st.lists(st.integers(0, 5), max_size=40)
small = st.integers(1, 8)


@given(counts, st.integers(0, 3), st.integers(0, 3), small, small)
def test_the_parts_of_all_workers_are_every_row_group_once(groups, seed, epoch, world, workers):
    tables = np.repeat(np.arange(len(groups)), groups)
    order = sampler.epoch_order(tables, seed, epoch)
    parts = [
        sampler.split(order, rank, world, worker, workers)
        for rank in range(world) for worker in range(workers)
    ]  # fmt: skip
    assert sorted(np.concatenate(parts)) == list(range(len(tables)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_epochs_and_seeds_differ_and_repeat():
    tables = np.repeat(np.arange(100), 4)
    orders = [tuple(sampler.epoch_order(tables, s, e)) for s in (0, 1) for e in (0, 1)]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(sampler.epoch_order(tables, 0, 0))


def test_only_so_many_tables_are_mixed_that_their_footers_stay_in_memory():
    tables = np.repeat(np.arange(100), 4)
    order = sampler.epoch_order(tables, 0, 0)
    for first in range(0, 400, 64):
        assert len(set(tables[order[first : first + 64]])) <= sampler.SPAN


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 100))
def test_windows_take_every_row_group_and_fit_unless_one_alone_does_not(sizes, budget):
    sizes, position = np.array(sizes), 0
    while position < len(sizes):
        end = sampler.window_end(sizes, position, budget)
        assert end == position + 1 or sizes[position:end].sum() <= budget
        assert end > position
        position = end


@given(st.lists(st.integers(0, 3), max_size=60), small, st.booleans())
def test_batches_hold_one_grid_and_with_the_rest_every_row_once(grids, size, flush):
    grids = np.array(grids, np.int64)
    batches, rest = sampler.plan_batches(grids, np.random.default_rng(0), size, flush)
    assert sorted(np.concatenate([*batches, rest])) == list(range(len(grids)))
    assert all(len(set(grids[b])) == 1 for b in batches)
    if flush:
        assert len(rest) == 0
    else:
        assert all(len(b) == size for b in batches)


def test_cursors_survive_json():
    cursor = Cursor(3, 2, np.array([1, 2, 2**32 - 1, 4], np.uint32).tobytes())
    assert Cursor.from_state(cursor.to_state()) == cursor
