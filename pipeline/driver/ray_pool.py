"""The thin Ray side: an actor around a replica, and the pool of them that the driver talks to.

An actor is sent a ShardSpec and sends back a ShardResult or a ShardFailure; nothing else crosses.
Ray is told never to restart or retry: the driver owns that.

Ray calls back when a call has ended, into one queue, so that collecting costs the same for one
replica and for thousands; ``ray.wait`` looks at every call that is in flight each time.  Nothing
here waits for an actor to come up: one that cannot be placed yet stays pending in Ray, is what an
autoscaler sees as demand, and reports itself when a node has room for it.
"""

from __future__ import annotations

import functools
import logging
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from pipeline.driver.fleet import IN_FLIGHT, Down, Event, Returned, Up
from pipeline.plan import Plan, Resources, ShardFailure, ShardSpec
from pipeline.store import storage
from pipeline.work.encoder import encode_shard
from pipeline.work.host import Host, Ready, Work, say

log = logging.getLogger(__name__)
NODE_LOST = ("node has died", "node was terminated", "node is dead", "node died")  # Ray's words


class ReplicaActor(Host):
    """One replica in one Ray actor."""

    def ready(self) -> Ready:
        """See :class:`Host`."""
        node = ray.get_runtime_context().get_node_id()[:8]
        return self.warm_up(f"{ray.util.get_node_ip_address()}/{node}")


class RayPool:
    """Replicas as Ray actors, by name; see :class:`pipeline.driver.fleet.Pool`."""

    def __init__(
        self, store: storage.Store, plan: Plan, resources: Resources, work: Work = encode_shard
    ) -> None:
        actor: Any = ray.remote(ReplicaActor)
        actor = actor.options(
            num_gpus=resources.gpus_per_replica, num_cpus=resources.cpus_per_replica,
            max_restarts=0, max_task_retries=0, max_concurrency=IN_FLIGHT,
        )  # fmt: skip
        self._make: Callable[[], Any] = lambda: actor.remote(store, plan, resources, work)
        self.resources = resources
        self._actors: dict[str, Any] = {}
        self._names = 0
        self._ended = queue.SimpleQueue[tuple[str, ShardSpec | None, int, Future[Any]]]()

    def add(self) -> str:
        """Ask Ray for one more actor; ``Up`` or ``Down`` says what became of it."""
        self._names += 1
        name = f"replica-{self._names}"
        self._actors[name] = self._make()
        self._call_back(name, None, 0, self._actors[name].ready.remote())
        return name

    def start(self, replica: str, spec: ShardSpec, attempt: int) -> None:
        """Hand a shard to a replica."""
        self._call_back(replica, spec, attempt, self._actors[replica].run.remote(spec, attempt))

    def _call_back(self, name: str, spec: ShardSpec | None, attempt: int, ref: Any) -> None:
        """Put the call into the queue when it has ended; on one of Ray's threads."""
        put = functools.partial(self._put, name, spec, attempt)
        ref.future().add_done_callback(put)

    def _put(self, name: str, spec: ShardSpec | None, attempt: int, call: Future[Any]) -> None:
        self._ended.put((name, spec, attempt, call))

    def wait(self, timeout_s: float) -> list[Event]:
        """What has ended, in order, after at most ``timeout_s`` if nothing has."""
        events: list[Event] = []
        try:
            ended = self._ended.get(timeout=timeout_s)
            while True:
                if ended[0] in self._actors:
                    events.append(self._event(*ended))
                ended = self._ended.get_nowait()
        except queue.Empty:
            return events

    def _event(self, name: str, spec: ShardSpec | None, attempt: int, call: Future[Any]) -> Event:
        error = call.exception()
        if isinstance(error, RayActorError) or (error is not None and spec is None):
            self.kill(name)  # also one that is only unreachable
            reason = _death(error)
            return Down(name, reason, any(words in reason for words in NODE_LOST))
        if spec is None:
            ready: Ready = call.result()
            log.info("%s is process %d on %s", name, ready.pid, ready.node)
            return Up(name, ready.node, ready.megapixels_per_s, ready.rss_bytes)
        if isinstance(error, RayError):  # the call itself failed: it could not be sent or returned
            failure = ShardFailure(spec.shard_id, spec.url, "error", say(error), attempt)
            return Returned(name, failure)
        return Returned(name, call.result())

    def kill(self, replica: str) -> None:
        """End a replica now, whatever it does; one that is gone already stays gone."""
        if (actor := self._actors.pop(replica, None)) is not None:
            ray.kill(actor)

    def describe(self) -> str:
        """For the message that no replica came up."""
        asked = f"{self.resources.cpus_per_replica} CPUs and {self.resources.gpus_per_replica} GPUs"
        has = {
            name: amount
            for name, amount in sorted(ray.cluster_resources().items())
            if name in ("CPU", "GPU", "memory")
        }
        return (
            f"each asks for {asked}, the cluster has {has or 'nothing'} on "
            f"{sum(node['Alive'] for node in ray.nodes())} nodes; give less with "
            "--cpus-per-replica or --gpus-per-replica, or add nodes"
        )

    def close(self) -> None:
        """End every replica."""
        for name in list(self._actors):
            self.kill(name)


def _death(error: BaseException) -> str:
    """What Ray says of a dead actor, without the ids that are in the log."""
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]
    return " ".join(" ".join(lines).split())[:600]
