"""The thin Ray side: an actor around a replica, and the pool of them that the driver talks to.

An actor is sent a ShardSpec and sends back a ShardResult or a ShardFailure; nothing else crosses.
Ray is told never to restart or retry: the driver owns that.

Ray calls back when a call has ended, into one queue, so that collecting costs the same for one
replica and for thousands; ``ray.wait`` looks at every call that is in flight each time.  Nothing
here waits for an actor to come up: one that cannot be placed yet stays pending in Ray, is what an
autoscaler sees as demand, and reports itself when a node has room for it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from pipeline import logs
from pipeline.driver.fleet import IN_FLIGHT, Down, Event, Moved, Returned, Up
from pipeline.plan import Plan, Resources, ShardFailure, ShardSpec
from pipeline.store import storage
from pipeline.work.encoder import encode_shard
from pipeline.work.host import Host, Ready, Work, say

log = logging.getLogger(__name__)
ASK_EVERY_S, ASKS_PER_S = 5.0, 200.0
NODE_LOST = ("node has died", "node was terminated", "node is dead", "node died")  # Ray's words


class ReplicaActor(Host):
    """One replica in one Ray actor."""

    def __init__(self, store: storage.Store, plan: Plan, resources: Resources, work: Work) -> None:
        if logs.inherited():  # else Ray's own way, which is warnings alone
            logs.set_up(logging.INFO, logging.StreamHandler())
        super().__init__(store, plan, resources, work)

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
            max_restarts=0, max_task_retries=0, max_concurrency=IN_FLIGHT + 1,  # and moved()
            **({"runtime_env": {"env_vars": found}} if (found := logs.inherited()) else {}),
        )  # fmt: skip
        self._make: Callable[[], Any] = lambda: actor.remote(store, plan, resources, work)
        self.resources = resources
        self._actors: dict[str, Any] = {}
        self._names = 0
        self._ended = queue.SimpleQueue[tuple[str, ShardSpec | None, int, Future[Any]]]()
        self._heard = queue.SimpleQueue[tuple[str, Future[Any]]]()
        self._to_ask = deque[str]()  # the replicas that are up, in the order to be asked
        self._asked_at = time.monotonic()

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

    def _ask(self) -> None:
        """Ask some replicas how far they are: each every ASK_EVERY_S, of many only so many a
        second.  One that does not answer is not asked again."""
        now = time.monotonic()
        share = min(1.0, (now - self._asked_at) / ASK_EVERY_S)
        count = min(round(share * len(self._to_ask)), round(ASKS_PER_S * (now - self._asked_at)))
        if not count:
            return
        self._asked_at = now
        for _ in range(count):
            name = self._to_ask.popleft()
            if name in self._actors:
                put = functools.partial(lambda name, call: self._heard.put((name, call)), name)
                self._actors[name].moved.remote().future().add_done_callback(put)

    def _moves(self) -> Iterator[Event]:
        """What replicas have said of how far they are."""
        with contextlib.suppress(queue.Empty):
            while True:
                name, call = self._heard.get_nowait()
                if name in self._actors and call.exception() is None:
                    self._to_ask.append(name)
                    for shard_id, counts in call.result().items():
                        yield Moved(name, shard_id, counts)

    def wait(self, timeout_s: float) -> list[Event]:
        """What has ended, in order, after at most ``timeout_s`` if nothing has."""
        self._ask()
        events: list[Event] = list(self._moves())
        try:
            ended = self._ended.get(timeout=0.0 if events else timeout_s)
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
            self._to_ask.append(name)
            return Up(name, ready.node, ready.alone, ready.rss_bytes)
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
