"""The replicas that are missing: when each is asked for, and when there is no hope for any."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from pipeline.driver.pace import Limits
from pipeline.driver.policy import MAX_ATTEMPTS, NoReplicas

MAX_RESTART_S = 60.0  # between two attempts to replace a replica that fails to start


class Missing:
    """Times at which replicas are to be asked for, and what is known of those that failed."""

    def __init__(self, replicas: int, limits: Limits, now: float) -> None:
        self.replicas, self.limits = replicas, limits
        self._wanted = [now] * replicas  # a heap
        self._failed_starts, self._reason = 0, ""
        self._alive = now  # when one was up last
        self._ever = False  # one was up

    def due(self, now: float) -> int:
        """How many to ask for now."""
        count = 0
        while self._wanted and self._wanted[0] <= now:
            heapq.heappop(self._wanted)
            count += 1
        return count

    def ask(self, at: float) -> None:
        """One more is wanted."""
        heapq.heappush(self._wanted, at)

    def came(self) -> None:
        """One is up."""
        self._failed_starts, self._ever = 0, True

    def lost(self, reason: str, now: float, *, started: bool) -> None:
        """One is gone: another is wanted, the later the more of them have failed to start."""
        self._reason, delay = reason, 0.0
        if not started:
            self._failed_starts += 1
            delay = min(self.limits.restart_s * 2 ** (self._failed_starts - 1), MAX_RESTART_S)
        self.ask(now + delay)

    def check(self, up: int, now: float, describe: Callable[[], str]) -> None:
        """Stop when no replica is left and none comes up.

        Raises:
            NoReplicas: says what a replica asks for and what there is.
        """
        if up:
            self._alive = now
            return
        waited = now - self._alive
        hopeless = not self._ever and self._failed_starts >= max(MAX_ATTEMPTS, self.replicas)
        if hopeless or waited > self.limits.start_s:
            reason = f"; the last failure: {self._reason}" if self._reason else ""
            raise NoReplicas(f"no replica is up after {waited:.0f} s: {describe()}{reason}")
