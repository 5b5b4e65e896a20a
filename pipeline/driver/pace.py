"""How long a shard may take: the pace of the run, and the limits that follow from it.

Shards of one job are alike, so that a multiple of the running median says when one is late, stuck
or hung; floors keep the multiples from meaning anything while shards take seconds.  Nothing is
known of the pace before the first shard returns: the hang limit then is its floor, and it doubles
for a shard each time that it was hit, so that a job of very long shards still gets through.
Cost: an insertion into a sorted list of 255 numbers a shard.
"""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass

WINDOW = 255  # shards that the running median is taken over


@dataclass(frozen=True)
class Limits:
    """When the driver steps in; seconds, and multiples of the median shard."""

    late_floor_s: float = 30.0
    late_times: float = 5.0  # then a second copy, on a replica that would idle
    stall_floor_s: float = 600.0
    stall_times: float = 10.0  # nothing came back: say what is stuck
    # Then the replica is killed: of a shard that has got further before and no longer does, above
    # what a table and its ledger entry may take on a store that does not answer (each 300 s,
    # pipeline.store.errors); and of one that nothing has been heard of.
    still_s: float = 900.0
    hang_floor_s: float = 1800.0
    hang_times: float = 20.0
    start_s: float = 300.0  # no replica is up, and none comes up
    restart_s: float = 1.0  # before a replica that failed to start is replaced, doubling
    rss_growth_bytes: int = 4 << 30  # of a replica since it came up; then it is replaced
    max_shards: int = 5000  # of one replica; then it is replaced


class Pace:
    """The running median of shard seconds, from hand-out to return."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._recent = deque[float]()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        """Count a shard that has come back."""
        if len(self._recent) == WINDOW:
            del self._sorted[bisect.bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(seconds)
        bisect.insort(self._sorted, seconds)

    @property
    def median(self) -> float:
        """Seconds; 0 before the first shard."""
        return self._sorted[len(self._sorted) // 2] if self._sorted else 0.0

    @property
    def late_s(self) -> float:
        """After this a shard gets a second copy; never before one has come back."""
        if not self._sorted:
            return float("inf")
        return max(self.limits.late_floor_s, self.limits.late_times * self.median)

    @property
    def stall_s(self) -> float:
        """After this without any result the run is stalled."""
        return max(self.limits.stall_floor_s, self.limits.stall_times * self.median)

    @property
    def hang_s(self) -> float:
        """After this a replica counts as hung."""
        return max(self.limits.hang_floor_s, self.limits.hang_times * self.median)
