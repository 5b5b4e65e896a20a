"""The driver over simulated replicas that get lost, stand still and wait (benchmarks.scale)."""

from __future__ import annotations

import pytest

from benchmarks.scale import __main__ as scale
from benchmarks.scale import simulated

SHARDS, REPLICAS = 12_000, 20
IDEAL_S = SHARDS * simulated.MEDIAN_S / REPLICAS  # 100 minutes: both zones and the head are lost


def test_every_shard_is_done_whatever_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    monkeypatch.setattr(simulated, "HANGS", 1 / 2000)  # six, as they are rare
    for name in ("as it is", "neither"):
        world, counts, _, _ = scale.simulate(scale.LIMITS[name], SHARDS, REPLICAS)
        assert all(world.done) and counts["replicas lost"] >= 2 * (REPLICAS // simulated.ZONES)
        assert world.head_lost == simulated.NEVER and world.lost_s["lost head"] > 0
        found[name] = world.now
        assert f"{IDEAL_S / world.now:.0%}" in scale.report(
            name, IDEAL_S, REPLICAS, world, counts, 0.0, 0
        )[0]  # fmt: skip
    assert found["as it is"] < 1.6 * IDEAL_S
    assert found["neither"] > 6 * 3600  # until the last hang ends by itself
