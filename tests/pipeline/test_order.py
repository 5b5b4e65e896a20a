"""Order, windows and batches, as pure functions; the shares are in test_shares.py."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codes import order
from pipeline.codes.order import Cursor


def epoch(tables: np.ndarray, seed: int, number: int) -> np.ndarray:
    return order.epoch_order(tables, seed, number)[0]


def test_epochs_and_seeds_differ_and_repeat():
    tables = np.repeat(np.arange(100), 4)
    orders = [tuple(epoch(tables, s, e)) for s in (0, 1) for e in (0, 1)]
    assert len(set(orders)) == 4 and orders[0] == tuple(epoch(tables, 0, 0))


def test_only_so_many_tables_are_mixed_that_their_footers_stay_in_memory():
    tables = np.repeat(np.arange(100), 4)
    groups = epoch(tables, 0, 0)
    for first in range(0, 400, 64):
        assert len(set(tables[groups[first : first + 64]])) <= order.SPAN


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 100))
def test_windows_take_every_row_group_and_fit_unless_one_alone_does_not(sizes, budget):
    sizes, position = np.array(sizes), 0
    while position < len(sizes):
        end = order.window_end(sizes, position, budget)
        assert end == position + 1 or sizes[position:end].sum() <= budget
        assert end > position
        position = end


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8), st.booleans(), st.booleans())
def test_batches_hold_one_grid_and_with_the_rest_every_row_once(grids, size, flush, drop):
    grids = np.array(grids, np.int64)
    batches, rest = order.plan_batches(grids, np.random.default_rng(0), size, flush, drop)
    rows = np.concatenate([*batches, rest])
    assert len(set(rows)) == len(rows) and all(len(set(grids[b])) == 1 for b in batches)
    lost = sum(np.bincount(grids) % size) if flush and drop and len(grids) else 0
    assert len(rows) == len(grids) - lost
    if flush and not drop:
        assert len(rest) == 0
    else:
        assert all(len(b) == size for b in batches)


def test_cursors_survive_json():
    cursor = Cursor(3, 2, np.array([1, 2, 2**32 - 1, 4], np.uint32).tobytes(), 17, True)
    assert Cursor.from_state(cursor.to_state()) == cursor
