"""A replica in a process of its own: what a pool starts, whatever it starts it with.

It is sent a ShardSpec and sends back a ShardResult or a ShardFailure; nothing else crosses.  Every
exception becomes a ShardFailure here.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline import logs
from pipeline.plan import Plan, PlanMismatch, Resources, ShardFailure, ShardResult, ShardSpec
from pipeline.signals import Alone, Counts
from pipeline.store import storage
from pipeline.work.decoder import load_codec
from pipeline.work.replica import Replica, resident_bytes

# What a replica does with a shard: encoder.encode_shard, or the like of it.
Work = Callable[[ShardSpec, Plan, storage.Store, Replica, int], ShardResult]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """What a replica says of itself when it is up."""

    pid: int
    node: str  # address and id
    alone: Alone
    rss_bytes: int


class Host:
    """One replica in this process."""

    def __init__(self, store: storage.Store, plan: Plan, resources: Resources, work: Work) -> None:
        torch.set_num_threads(resources.threads)
        self.store, self.plan, self.work = store, plan, work
        codec = load_codec(store, plan, resources.device)
        self.replica = Replica(codec, resources.decode_threads, resources.queue_bytes)

    def warm_up(self, node: str) -> Ready:
        """Warm up, and measure the parts alone."""
        alone = self.replica.calibrate(self.plan)
        return Ready(os.getpid(), node, alone, resident_bytes())

    def run(self, spec: ShardSpec, attempt: int) -> ShardResult | ShardFailure:
        """Do one shard."""
        replica = f"{socket.gethostname()}:{os.getpid()}"
        with logs.about(shard=spec.shard_id, replica=replica):
            try:
                return self.work(spec, self.plan, self.store, self.replica, attempt)
            except Exception as error:
                log.exception("shard %s failed", spec.url)
                return ShardFailure(spec.shard_id, spec.url, classify(error), say(error), attempt)
            finally:
                self.replica.clocks.pop(spec.shard_id, None)

    def moved(self) -> dict[str, Counts]:
        """How far the shards in flight are, by shard id."""
        clocks = dict(self.replica.clocks)
        return {shard_id: clock.counts for shard_id, clock in clocks.items()}


def classify(error: Exception) -> str:
    """The kind of failure that an exception is: what the driver decides by."""
    if isinstance(error, storage.TransientStorage):
        return "transient"
    if isinstance(error, storage.StorageError | PlanMismatch):
        return "fatal"
    return "error"


def say(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}"[:1000]
