"""Who gets which rows: each once an epoch over all ranks and workers, ranks alike but for one row.

Worlds of up to 64 ranks and 4 workers over random shards, without files: row groups are numbers.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codes import order
from pipeline.codes.errors import TooFewImages
from pipeline.codes.shares import Dealer

GRIDS = np.array([2 << 16 | 2, 1 << 16 | 4, 3 << 16 | 2], np.uint32)
PLAN = SimpleNamespace(quality=3, codewords=256)


class Counts:
    """Ok rows and grids of every row group, and which of them were asked for."""

    def __init__(self, tables: np.ndarray, grids: list[np.ndarray]) -> None:
        self.tables, self._grids, self.asked = tables, grids, set[int]()
        self.rows = np.array([len(g) for g in grids], np.int64)

    def of_tables(self) -> np.ndarray:
        return np.bincount(self.tables, self.rows, int(self.tables.max()) + 1).astype(np.int64)

    def of_groups(self, groups: np.ndarray) -> np.ndarray:
        self.asked |= set(groups.tolist())
        return self.rows[groups]

    def grids(self) -> list[np.ndarray]:
        return self._grids

    def one_grid(self) -> bool:
        return len(np.unique(np.concatenate(self._grids))) <= 1


@st.composite
def archives(draw: st.DrawFn, kinds: int = 1) -> Counts:
    """Up to 25 tables of up to 3 row groups of up to 30 ok rows."""
    sizes = draw(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3), max_size=25))
    tables = np.repeat(np.arange(len(sizes) + 1), [*map(len, sizes), 1])
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    rows = [*(rows for groups in sizes for rows in groups), 1]
    return Counts(tables, [GRIDS[rng.integers(0, kinds, n)] for n in rows])


def dealer(counts: Counts, rank: int, world: int, **options: object) -> Dealer:
    failed = 2  # rows of each row group
    manifest = SimpleNamespace(
        plan=PLAN, names=list(range(int(counts.tables.max()) + 1)), group_table=counts.tables,
        group_rows=counts.rows + failed, group_bytes=12 * (counts.rows + failed),
        ok_rows=counts.of_tables(),
    )  # fmt: skip
    given = {"seed": 0, "batch_size": 4, "buffer_bytes": 300, "drop_last": False,
             "even_batches": False, "grid_known": False, **options}  # fmt: skip
    return Dealer(manifest, counts, rank=rank, world_size=world, **given)


def rows(counts: Counts, pieces: np.ndarray) -> list[tuple[int, int]]:
    return [
        (group, row)
        for group, first, end in pieces.tolist()
        for row in range(first, min(end, int(counts.rows[group])))
    ]


def batches(counts: Counts, deal: Dealer, epoch: int, worker: int, workers: int) -> list[int]:
    """Rows of each batch of a worker, by the planning that the reader does."""
    share, grids, made = deal.share(epoch, worker, workers), counts.grids(), list[int]()
    position, carry = 0, np.empty(0, np.uint32)
    while position < len(share.pieces):
        end = order.window_end(share.sizes, position, deal.buffer_bytes)
        new = [grids[g][first:last] for g, first, last in share.pieces[position:end].tolist()]
        there = np.concatenate([carry, *new])
        size = int(((carry >> 16) * (carry & 0xFFFF)).sum()) * PLAN.quality
        flush = end == len(share.pieces) or size > deal.buffer_bytes
        some, rest = order.plan_batches(
            there, np.random.default_rng(position), deal.batch_size, flush, deal.drop_last
        )
        made += [len(one) for one in some]
        position, carry = end, there[rest]
    assert (worker in share.busy) >= bool(made[: share.limit])
    return made[: share.limit]


worlds, some_workers = st.integers(1, 64), st.integers(1, 4)


@given(archives(), worlds, some_workers, st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_every_row_once_and_ranks_differ_by_one_row_at_most(counts, world, workers, epoch):
    ranks = [
        [rows(counts, deal.share(epoch, worker, workers).pieces) for worker in range(workers)]
        for deal in (dealer(counts, rank, world) for rank in range(world))
    ]
    everything = [row for rank in ranks for part in rank for row in part]
    expected = [(g, row) for g, n in enumerate(counts.rows.tolist()) for row in range(n)]
    assert sorted(everything) == expected
    sizes = [sum(map(len, rank)) for rank in ranks]
    assert max(sizes) - min(sizes) <= 1
    for parts in ranks:  # of the workers only the last one with rows may have a part of a batch
        there = [len(part) for part in parts if part]
        assert all(size % 4 == 0 for size in there[:-1])


@given(archives(kinds=1), worlds, some_workers, st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_with_one_grid_the_number_of_batches_is_known(counts, world, workers, drop, even):
    options = {"drop_last": drop, "even_batches": even}
    total, lengths = int(counts.rows.sum()), []
    for rank in range(world):
        deal = dealer(counts, rank, world, **options)
        found = [batches(counts, deal, 1, w, workers) for w in range(workers)]
        assert sum(map(len, found)) == deal.batches()
        assert sum(size < 4 for part in found for size in part) <= (0 if drop else 1)
        lengths.append(deal.batches())
    own = [total * (r + 1) // world - total * r // world for r in range(world)]
    torch_lengths = [n // 4 if drop else -(-n // 4) for n in own]
    assert lengths == ([min(torch_lengths)] * world if even else torch_lengths)


@given(archives(kinds=3), st.integers(1, 16), some_workers, st.booleans())
@settings(max_examples=40, deadline=None)
def test_with_several_grids_ranks_give_as_many_batches_as_the_one_with_the_fewest(
    counts, world, workers, drop
):
    plain, even = [], []
    for rank in range(world):
        for found, on in ((plain, False), (even, True)):
            deal = dealer(counts, rank, world, drop_last=drop, even_batches=on)
            parts = [batches(counts, deal, 0, w, workers) for w in range(workers)]
            found.append(sum(map(len, parts)))
            assert not drop or all(size == 4 for part in parts for size in part)
    assert even == [min(plain)] * world
    if not counts.one_grid():
        with pytest.raises(TypeError, match="several grids.*where="):
            dealer(counts, 0, world).batches()


def test_only_the_tables_at_the_ends_of_a_share_are_counted():
    counts = Counts(np.arange(640), [GRIDS[np.zeros(50, int)]] * 640)
    share = dealer(counts, 1, 4).share(0, 0, 1)
    assert len(share.pieces) == 160 and len(counts.asked) == 0
    dealer(counts, 1, 3).share(0, 0, 1)
    assert len(counts.asked) == 2 * order.SPAN


def test_a_world_larger_than_the_data_is_refused():
    counts = Counts(np.arange(3), [GRIDS[np.zeros(5, int)]] * 3)
    dealer(counts, 0, 15).check()
    with pytest.raises(TooFewImages, match="15 images for 16 ranks.*fewer ranks"):
        dealer(counts, 0, 16).check()
    dealer(counts, 0, 3, drop_last=True).check()
    with pytest.raises(TooFewImages, match="a batch of 4.*smaller batch"):
        dealer(counts, 0, 4, drop_last=True).check()
