"""How close a run came to its limit, on figures that can be checked by hand."""

from __future__ import annotations

import pytest

from pipeline.driver.limit import NAMES, Limit
from pipeline.signals import Alone

MPX = 10_000_000  # pixels of the runs here


def run_of(alone: Alone, replicas: int, seconds: float, nodes: int = 1) -> Limit:
    limit = Limit()
    for number in range(replicas):
        limit.came(f"r{number}", f"node-{number % nodes}", alone, 100.0)
    return limit


def test_on_one_core_the_limit_is_the_sum_of_the_parts() -> None:
    alone = Alone(encode=0.5, code=1.0, cores=1, threads=4)
    found = run_of(alone, 1, 20.0).verdict(
        MPX, {}, {"decode": 2.0, "read": 0.5, "write": 0.5}, 120.0
    )
    assert found is not None
    assert found.share == pytest.approx((5 + 10 + 3) / 20) and found.bound == "code"
    assert found.parts == {"read": 0.5, "decode": 2.0, "write": 0.5, "encode": 5.0, "code": 10.0}


def test_with_cores_to_spare_the_model_is_the_limit() -> None:
    alone = Alone(encode=1.0, code=0.5, cores=64, threads=4)
    found = run_of(alone, 2, 10.0).verdict(MPX, {}, {"decode": 8.0}, 110.0)
    assert found is not None
    assert found.share == pytest.approx(15 / 2 / 10) and found.bound == "encode"


def test_a_gpu_leaves_the_cores_to_the_decoders() -> None:
    alone = Alone(encode=0.01, code=0.02, cores=4, threads=3, on_cpu=False)
    found = run_of(alone, 1, 10.0).verdict(MPX, {}, {"decode": 24.0}, 110.0)
    assert found is not None
    assert found.share == pytest.approx(24 / 3 / 10) and found.bound == "decode"  # three threads


def test_slow_storage_is_named() -> None:
    alone = Alone(encode=0.1, code=0.1, cores=2, threads=4)
    found = run_of(alone, 1, 10.0).verdict(MPX, {"read": 19.0}, {"read": 0.2}, 110.0)
    assert found is not None
    assert found.share == pytest.approx(0.95) and found.bound == "read"
    assert set(found.parts) == set(NAMES) - {"measure"}


def test_replicas_count_for_the_time_that_they_were_up() -> None:
    alone, limit = Alone(encode=1.0, code=0.0, cores=8, threads=1), Limit()
    limit.came("a", "node", alone, 0.0)
    limit.came("b", "node", alone, 5.0)
    limit.went("b", 10.0)
    found = limit.verdict(MPX, {}, {}, 20.0)
    assert found is not None and found.share == pytest.approx(10 / (20 + 5))
    assert limit.verdict(0, {}, {}, 20.0) is None and Limit().verdict(MPX, {}, {}, 1.0) is None
