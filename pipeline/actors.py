"""The thin Ray side: an actor around a replica, and the pool of them that the driver talks to.

An actor is sent a ShardSpec and sends back a ShardResult or a ShardFailure; nothing else crosses.
Every exception becomes a ShardFailure here, at the only broad ``except`` of the project.  Ray is
told never to restart or retry: the driver owns that.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError

from pipeline import commit, storage
from pipeline.encoder import encode_shard
from pipeline.plan import Plan, PlanMismatch, Resources, ShardFailure, ShardResult, ShardSpec
from pipeline.replica import Replica
from pqmim.codec import Codec

# What a replica does with a shard: encoder.encode_shard, or the like of it.
Work = Callable[[ShardSpec, Plan, storage.Store, Replica, int], ShardResult]

log = logging.getLogger(__name__)
IN_FLIGHT = 2  # shards a replica: one opens while the other computes
START_TIMEOUT_S = 300.0  # until the first replica is up
STRAGGLERS_S = 30.0  # then go on without those that are not


class NoReplicas(Exception):
    """No replica came up."""


class ReplicaActor:
    """One replica in one process."""

    def __init__(self, store: storage.Store, plan: Plan, resources: Resources, work: Work) -> None:
        torch.set_num_threads(resources.threads)
        self.store, self.plan, self.work = store, plan, work
        name = commit.model_name(plan.model)
        codec = Codec.from_bytes(store.get(name), resources.device, name=store.url(name))
        self.replica = Replica(codec, resources.decode_threads, resources.queue_bytes)

    def ready(self) -> tuple[int, float]:
        """Process id, and the bare model's megapixels a second here."""
        return os.getpid(), self.replica.calibrate(self.plan)

    def run(self, spec: ShardSpec, attempt: int) -> ShardResult | ShardFailure:
        """Do one shard."""
        try:
            return self.work(spec, self.plan, self.store, self.replica, attempt)
        except Exception as error:
            log.exception("shard %s failed", spec.url)
            return ShardFailure(spec.shard_id, spec.url, classify(error), _say(error), attempt)


def classify(error: Exception) -> str:
    """The kind of failure that an exception is: what the driver decides by."""
    if isinstance(error, storage.TransientStorage):
        return "transient"
    if isinstance(error, storage.StorageError | PlanMismatch):
        return "fatal"
    return "error"


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:1000]


@dataclass
class _Slot:
    actor: Any
    name: str
    megapixels_per_s: float = 0.0
    dead: bool = False
    running: dict[Any, tuple[ShardSpec, int]] = field(default_factory=dict)


class RayPool:
    """Replicas as Ray actors.  ``start`` hands out, ``wait`` collects, ``close`` ends them."""

    def __init__(
        self, store: storage.Store, plan: Plan, resources: Resources, work: Work = encode_shard
    ) -> None:
        actor: Any = ray.remote(ReplicaActor)
        actor = actor.options(
            num_gpus=resources.gpus_per_replica, num_cpus=resources.cpus_per_replica,
            max_restarts=0, max_task_retries=0, max_concurrency=IN_FLIGHT,
        )  # fmt: skip
        self._make: Callable[[], Any] = lambda: actor.remote(store, plan, resources, work)
        self.resources, self.slots, self._names = resources, list[_Slot](), 0
        self._come_up([self._slot() for _ in range(resources.replicas)])

    @property
    def bare_megapixels_per_s(self) -> float:
        """Sum over the replicas of the bare model's speed, measured when they came up."""
        return sum(slot.megapixels_per_s for slot in self.slots)

    def _slot(self) -> _Slot:
        self._names += 1
        return _Slot(self._make(), f"replica-{self._names}")

    def _come_up(self, slots: list[_Slot]) -> None:
        """Wait for the first replica, then shortly for the others; go on with those that are up."""
        waiting = {slot.actor.ready.remote(): slot for slot in slots}
        deadline = time.monotonic() + START_TIMEOUT_S
        while waiting and time.monotonic() < deadline:
            done, _ = ray.wait(list(waiting), timeout=1.0)
            for ref in done:
                slot = waiting.pop(ref)
                pid, slot.megapixels_per_s = ray.get(ref)
                log.info("%s up, pid %d, %.2f Mpx/s bare", slot.name, pid, slot.megapixels_per_s)
                self.slots.append(slot)
                deadline = min(deadline, time.monotonic() + STRAGGLERS_S)
        for slot in waiting.values():
            log.warning("%s did not come up; going on without it", slot.name)
            ray.kill(slot.actor)
        if not self.slots:
            asked = (
                f"{self.resources.cpus_per_replica} CPUs and {self.resources.gpus_per_replica} GPUs"
            )
            raise NoReplicas(
                f"no replica came up in {START_TIMEOUT_S:.0f} s: each asks for {asked}, the "
                f"cluster has {ray.cluster_resources()}; give less with --cpus-per-replica or "
                "--gpus-per-replica, or add nodes"
            )

    @property
    def free(self) -> int:
        """Shards that could be handed out now."""
        return sum(IN_FLIGHT - len(slot.running) for slot in self.slots if not slot.dead)

    def start(self, spec: ShardSpec, attempt: int) -> None:
        """Hand a shard to the least busy replica."""
        slot = min((s for s in self.slots if not s.dead), key=lambda s: len(s.running))
        slot.running[slot.actor.run.remote(spec, attempt)] = (spec, attempt)

    def wait(self, timeout_s: float) -> list[ShardResult | ShardFailure]:
        """What has come back, after at most ``timeout_s``.  A dead replica is replaced."""
        refs = {ref: slot for slot in self.slots for ref in slot.running}
        if not refs:
            return []
        done, _ = ray.wait(list(refs), timeout=timeout_s)
        events: list[ShardResult | ShardFailure] = []
        for ref in done:
            slot = refs[ref]
            spec, attempt = slot.running.pop(ref)
            try:
                events.append(ray.get(ref))
            except RayActorError as error:
                message = f"{slot.name} died: {str(error).splitlines()[0]}"[:500]
                log.warning("%s while working on %s", message, spec.url)
                events.append(ShardFailure(spec.shard_id, spec.url, "lost", message, attempt))
                slot.dead = True
        self._replace_dead()
        return events

    def _replace_dead(self) -> None:
        """A new actor for each dead one, once all its shards have come back as lost."""
        for slot in [s for s in self.slots if s.dead and not s.running]:
            self.slots.remove(slot)
            self._come_up([self._slot()])

    def close(self) -> None:
        """End every replica."""
        for slot in self.slots:
            ray.kill(slot.actor)
        self.slots.clear()
