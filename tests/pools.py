"""A pool whose one replica is this process: the driver and the work are real, processes are not.

For tests of what a job does around its replicas.  A replica's process costs 3 s to start, most of
it torch; tests/pipeline/driver/test_local_pool.py and one test of each job have real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.driver.fleet import Event, Pool, Returned, Up
from pipeline.plan import Plan, Resources, ShardSpec
from pipeline.store.storage import Store
from pipeline.work.host import Host, Work


@contextmanager
def open_here(
    store: Store, plan: Plan, resources: Resources, work: Work
) -> Iterator[tuple[Pool, Resources]]:
    """In place of jobs.common.pools.open_pool."""
    yield HerePool(store, plan, resources, work), resources


class HerePool:
    """Does a shard when it is handed out."""

    def __init__(self, store: Store, plan: Plan, resources: Resources, work: Work) -> None:
        self.host = Host(store, plan, resources, work)
        self.events = list[Event]()
        self.names = 0

    def add(self) -> str:
        self.names += 1
        name = f"replica-{self.names}"
        self.events.append(Up(name, "here"))
        return name

    def start(self, replica: str, spec: ShardSpec, attempt: int) -> None:
        self.events.append(Returned(replica, self.host.run(spec, attempt)))

    def wait(self, timeout_s: float) -> list[Event]:
        events, self.events = self.events, []
        return events

    def kill(self, replica: str) -> None: ...

    def describe(self) -> str:
        return "it is this process"
