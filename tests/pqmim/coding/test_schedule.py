"""The order of sending: which stage each code belongs to."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqmim.coding import schedule
from pqmim.coding.schedule import CHECKERBOARD, QUINCUNX, ScheduleError

BYTES = [*range(1, 17), *range(129, 138)]


def test_ranks_are_a_permutation_and_nested_quincunx() -> None:
    ranks = schedule.bayer_ranks()
    assert sorted(ranks.ravel().tolist()) == list(range(256))
    y, x = np.mgrid[:16, :16]
    assert ((ranks < 128) == ((y + x) % 2 == 0)).all()
    assert ((ranks < 64) == ((y % 2 == 0) & (x % 2 == 0))).all()


def test_quincunx_is_the_closed_form_of_the_paper() -> None:
    stages = schedule.position_stages(QUINCUNX)
    y, x = np.mgrid[:16, :16]
    wanted = np.full((16, 16), 4)
    wanted[(y % 2 == 1) & (x % 2 == 1)] = 3
    wanted[(y % 4 + x % 4 == 2) & (y % 2 == 0)] = 2
    wanted[(y % 4 == 2) & (x % 4 == 2)] = 1
    wanted[(y % 4 == 0) & (x % 4 == 0)] = 0
    assert (stages == wanted).all()


def test_checkerboard_sends_every_other_position_first() -> None:
    y, x = np.mgrid[:16, :16]
    assert (schedule.position_stages(CHECKERBOARD) == (y + x) % 2).all()


@pytest.mark.parametrize("byte", BYTES)
def test_every_stage_of_a_full_window_sends_something(byte: int) -> None:
    sizes = np.bincount(schedule.position_stages(byte).ravel())
    assert len(sizes) == schedule.spatial_stages(byte)
    assert sizes.min() >= 1 and sizes.sum() == 256


def test_square_sizes_grow_as_documented() -> None:
    sizes = np.bincount(schedule.position_stages(8).ravel())
    assert sizes.cumsum().tolist() == [4, 16, 36, 64, 100, 144, 196, 256]


@pytest.mark.parametrize("byte", [0, 17, 128, 138, 255, -1])
def test_unknown_plan_bytes_are_refused(byte: int) -> None:
    with pytest.raises(ScheduleError, match="plan byte"):
        schedule.stage_map(4, 4, 4, (byte,), 4)


def test_groups_beyond_a_plan_have_one_stage() -> None:
    assert schedule.filled((4, 2), 9, 4) == (4, 2, 1)
    assert schedule.filled((4, 2, 8), 5, 4) == (4, 2)
    short, long = (schedule.stage_map(9, 17, 12, plan, 4) for plan in ((4, 2), (4, 2, 1)))
    assert (short == long).all()


@settings(max_examples=60, deadline=None)
@given(
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    m=st.integers(1, 16),
    plan=st.tuples(*[st.sampled_from(BYTES)] * 4),
)
def test_groups_are_sent_in_order_and_coarser_streams_are_prefixes(
    h: int, w: int, m: int, plan: tuple[int, ...]
) -> None:
    stages = schedule.stage_map(h, w, m, plan, 4)
    groups = schedule.stage_groups(m, plan, 4)
    assert stages.min() >= 0 and stages.max() < len(groups)
    of_code = np.array(groups)[stages]
    assert (of_code == np.arange(m) // 4).all()
    whole = schedule.stage_map(h, w, 16, plan, 4)
    assert (whole[..., :m] == stages).all()
    big = schedule.stage_map(48, 48, m, plan, 4)
    assert (big[:h, :w] == stages).all()


@pytest.mark.parametrize(("h", "w"), [(1, 1), (16, 16), (17, 5), (32, 48)])
def test_windows_come_back(h: int, w: int) -> None:
    grid = np.arange(h * w * 3).reshape(h, w, 3)
    windows = schedule.to_windows(grid, -1)
    assert (windows >= 0).sum() == grid.size
    assert (schedule.from_windows(windows, h, w) == grid).all()


def test_the_stages_of_a_plan_never_change() -> None:
    stages = schedule.stage_map(37, 21, 16, (2, 1, 1, 1), 4).astype("<i2")
    assert hashlib.sha256(stages.tobytes()).hexdigest() == (
        "3c03441b3629f5f6edeecca28e209f017cb504ff4bc0e71f06e9d70b9966bb11"
    )
