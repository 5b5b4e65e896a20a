"""The shards that wait for a replica: those to be tried again, then the rest of the listing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from pipeline.driver.fleet import Job
from pipeline.plan import ShardSpec


class Waiting:
    """A queue over a listing that is read as it is needed."""

    def __init__(self, specs: Iterable[ShardSpec]) -> None:
        self._specs = iter(specs)
        self._ahead = deque[ShardSpec]()  # read from the listing, to know how many there are
        self._again = deque[Job]()
        self.suspects = deque[Job]()  # to be tried each on a replica of its own
        self.unended = 0  # shards begun and neither committed nor quarantined

    def again(self, job: Job, alone: bool) -> None:
        """A shard comes back."""
        (self.suspects if alone else self._again).append(job)

    def next(self) -> Job | None:
        """The next shard that any replica may take."""
        if self._again:
            return self._again.popleft()
        if not self.more_than(0):
            return None
        self.unended += 1
        return Job(self._ahead.popleft())

    def end(self, job: Job) -> None:
        """A shard is committed or quarantined."""
        job.over = True
        self.unended -= 1

    def more_than(self, count: int) -> bool:
        """Whether more shards than that wait that any replica may take."""
        while len(self._again) + len(self._ahead) <= count:
            spec = next(self._specs, None)
            if spec is None:
                return False
            self._ahead.append(spec)
        return True

    @property
    def over(self) -> bool:
        """Whether every shard has its end."""
        return not self.unended and not self.more_than(0)
