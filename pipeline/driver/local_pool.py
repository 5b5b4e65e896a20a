"""Replicas as processes of this machine, without Ray; see :class:`pipeline.driver.fleet.Pool`.

Each is a new interpreter: a fork would copy the locks of s3fs's threads, and the first request
would wait for ever.  A socket pair joins it to the pool.  Its closing says that a process is dead,
here at once and there as well: no replica outlives its driver.  Processes stand in sessions of
their own, so that Ctrl-C reaches the driver alone.

Costs 2 to 3 s until a replica is up, where Ray takes 10 to 15, and ends at this machine: nothing
is placed, and ``cpus_per_replica`` and ``gpus_per_replica`` mean nothing here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing import connection

import torch

from pipeline.driver.fleet import IN_FLIGHT, Down, Event, Moved, Returned, Up
from pipeline.plan import Plan, Resources, ShardFailure, ShardResult, ShardSpec
from pipeline.store import storage
from pipeline.work.host import Ready, Work
from pipeline.work.process import Order

log = logging.getLogger(__name__)
END_S = 10.0  # that a killed process may take to go


@dataclass(frozen=True, eq=False)
class Child:
    """The process of one replica."""

    process: subprocess.Popen[bytes]
    messages: connection.Connection
    gpu: str | None  # its CUDA_VISIBLE_DEVICES, if it was given one


class LocalPool:
    """Processes by name."""

    def __init__(self, store: storage.Store, plan: Plan, resources: Resources, work: Work) -> None:
        level = logging.getLogger().getEffectiveLevel()  # what all replicas do alike is not said
        level = level if level <= logging.DEBUG else max(level, logging.WARNING)
        self.order = Order(store, plan, resources, work, IN_FLIGHT, level)
        self.gpus = visible_gpus() if resources.device == "cuda" else []
        self._children: dict[str, Child] = {}
        self._names = 0

    def add(self) -> str:
        """Start one more process; ``Up`` or ``Down`` says what became of it."""
        self._names += 1
        name = f"replica-{self._names}"
        self._children[name] = child = self._spawn()
        self._send(child, self.order)
        return name

    def _spawn(self) -> Child:
        taken = [child.gpu for child in self._children.values()]
        gpu = min(self.gpus, key=taken.count, default=None)
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.work.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], start_new_session=True, env=self._environment(gpu),
                stdin=subprocess.DEVNULL, stdout=2,
            )  # fmt: skip
        return Child(process, connection.Connection(ours.detach()), gpu)

    def _environment(self, gpu: str | None) -> dict[str, str]:
        """Ours, and what has to be known before torch is imported."""
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        threads = str(self.order.resources.threads)
        own = {"PYTHONPATH": path, "OMP_NUM_THREADS": threads}
        return {**os.environ, **own, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})}

    def start(self, replica: str, spec: ShardSpec, attempt: int) -> None:
        """Hand a shard to a replica."""
        self._send(self._children[replica], (spec, attempt))

    def _send(self, child: Child, message: object) -> None:
        with contextlib.suppress(OSError):  # it is dead, as wait() will find
            child.messages.send(message)

    def wait(self, timeout_s: float) -> list[Event]:
        """What has come, a message of each replica, after at most ``timeout_s`` if nothing has."""
        names = {child.messages: name for name, child in self._children.items()}
        events = list[Event]()
        for ready in connection.wait(list(names), timeout_s):
            assert isinstance(ready, connection.Connection)
            events += self._receive(names[ready])
        return events

    def _receive(self, name: str) -> list[Event]:
        child = self._children[name]
        try:
            message = child.messages.recv()
        except (EOFError, OSError):
            self._end(name)
            return [Down(name, death(child.process))]
        if isinstance(message, Ready):
            log.info("%s is process %d on %s", name, message.pid, message.node)
            return [Up(name, message.node, message.alone, message.rss_bytes)]
        if isinstance(message, ShardResult | ShardFailure):
            return [Returned(name, message)]
        if isinstance(message, dict):
            return [Moved(name, shard, counts) for shard, counts in message.items()]
        self.kill(name)
        return [Down(name, str(message))]

    def kill(self, replica: str) -> None:
        """End a replica now, whatever it does; one that is gone already stays gone."""
        if (child := self._children.get(replica)) is not None:
            child.process.kill()
            self._end(replica)

    def _end(self, name: str) -> None:
        """Forget a process that is dead or dying, once its exit code is known."""
        child = self._children.pop(name)
        child.messages.close()
        try:
            child.process.wait(END_S)
        except subprocess.TimeoutExpired:
            child.process.kill()  # else the system collects it later: it waits for a disk or a GPU

    def describe(self) -> str:
        """For the message that no replica came up."""
        where = f"{len(self.gpus)} GPUs" if self.gpus else f"{os.cpu_count()} CPUs"
        return (
            f"each is a process of this machine, which has {where}; what they wrote is above, "
            "PQMIM_LOG=DEBUG has them write more"
        )

    def close(self) -> None:
        """End every replica."""
        for name in list(self._children):
            self.kill(name)


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES can be set to for one replica, one for each GPU."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu]
    return [str(number) for number in range(torch.cuda.device_count())]


def death(process: subprocess.Popen[bytes]) -> str:
    """How a process has ended."""
    code = process.returncode
    if code is None or code >= 0:
        return f"process {process.pid} ended with exit code {code}; what it wrote is in the log"
    why = "; the system does that when memory runs out" if -code == signal.SIGKILL else ""
    return f"process {process.pid} was ended by signal {-code}, {signal.strsignal(-code)}{why}"
