"""Decoding by replicas, as encoding is done: a shard goes out, what became of it comes back.

A replica writes its pictures itself; files and tars are create-only and always the same, so that
a shard that two replicas do, or one that died half-way, ends as if one had done it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pipeline.out.decoded import Totals
from pipeline.out.pictures import Task, decode_shard
from pipeline.plan import Facts, Plan, ShardResult, ShardSpec, Status
from pipeline.store.storage import Store
from pipeline.work.replica import Clock, Replica
from pipeline.work.shard import cost


@dataclass(frozen=True)
class Decoded(ShardResult):
    """What a replica sends back."""

    totals: Totals = field(default_factory=Totals)


@dataclass(frozen=True)
class Decoder:
    """The work of a replica: the pictures of one table."""

    output: Store
    form: str
    keys: frozenset[str]
    tar_bytes: int

    def __call__(
        self, spec: ShardSpec, plan: Plan, store: Store, replica: Replica, attempt: int = 1
    ) -> ShardResult:
        """Write them; what is wrong with the table or a picture is in the result.

        Raises:
            pipeline.store.storage.StorageError: by class of recovery.
        """
        begin, clock = time.perf_counter(), Clock()
        replica.clocks[spec.shard_id] = clock

        def show(count: int) -> None:
            clock.advance(images=count - clock.counts.images)

        task = Task(
            store, self.output, plan, replica, self.form, self.keys, self.tar_bytes, show
        )  # fmt: skip
        totals = decode_shard(task, spec.shard_id)
        facts = Facts({Status.OK.value: totals.written, **totals.statuses})
        return Decoded.of(spec, facts, totals=totals, attempt=attempt, **cost(clock, begin))
