"""Replicas as processes of this machine, without Ray: up in two seconds.

Each is spawned, never forked (s3fs deadlocks after a fork), and speaks through a pipe of its own:
shards in, results and how far they are out.  A process that dies, of whatever, is noticed at once
by the end of its pipe; one whose parent dies ends by itself.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

from pipeline.driver.fleet import IN_FLIGHT, Down, Event, Moved, Returned, Up
from pipeline.plan import Counts, Plan, Resources, ShardFailure, ShardResult, ShardSpec
from pipeline.store.storage import Store
from pipeline.work.host import Host, Ready, Work, say

log = logging.getLogger(__name__)
TELL_EVERY_S = 1.0  # how far the shards in flight are
END_S = 5.0  # for a process that was told to end, before it is killed


class LocalPool:
    """Replicas by name; see :class:`pipeline.driver.fleet.Pool`."""

    def __init__(self, store: Store, plan: Plan, resources: Resources, work: Work) -> None:
        self._arguments = store, plan, resources, work
        self._context = multiprocessing.get_context("spawn")
        self._replicas: dict[str, tuple[BaseProcess, connection.Connection]] = {}
        self._names = 0

    def add(self) -> str:
        """Start a process; ``Up`` or ``Down`` says what became of it."""
        self._names += 1
        name = f"replica-{self._names}"
        ours, theirs = self._context.Pipe()
        level = logging.getLogger().getEffectiveLevel()  # what all replicas do alike is said once
        level = level if level <= logging.DEBUG else max(level, logging.WARNING)
        process = self._context.Process(
            target=_serve, args=(theirs, name, self._names - 1, level, *self._arguments),
            name=name, daemon=True,
        )  # fmt: skip
        process.start()
        theirs.close()
        self._replicas[name] = process, ours
        return name

    def start(self, replica: str, spec: ShardSpec, attempt: int) -> None:
        """Hand a shard to a replica."""
        with contextlib.suppress(OSError):  # it has died, which the next wait will say
            self._replicas[replica][1].send((spec, attempt))

    def kill(self, replica: str) -> None:
        """End a process now, whatever it does."""
        process, pipe = self._replicas.pop(replica)
        process.kill()
        process.join(END_S)
        pipe.close()

    def wait(self, timeout_s: float) -> list[Event]:
        """What the replicas have said, after at most ``timeout_s`` if nothing."""
        names = {pipe: name for name, (_, pipe) in self._replicas.items()}
        events: list[Event] = []
        for pipe in connection.wait(list(names), timeout_s):
            assert isinstance(pipe, connection.Connection)
            events += self._read(names[pipe], pipe)
        return events

    def _read(self, name: str, pipe: connection.Connection) -> list[Event]:
        """All that one replica has said."""
        events: list[Event] = []
        try:
            while pipe.poll():
                events += _events(name, pipe.recv())
        except (EOFError, OSError):
            process, _ = self._replicas[name]
            process.join(END_S)
            code = process.exitcode
            signalled = code is not None and code < 0
            reason = f"killed by {signal.Signals(-code).name}" if signalled else f"exit code {code}"  # type: ignore[operator]
            events.append(Down(name, f"process {process.pid}: {reason}"))
        for event in events:
            if isinstance(event, Down) and name in self._replicas:
                self.kill(name)
        return events

    def describe(self) -> str:
        """For the message that no replica came up."""
        return f"each is a process of this machine, which has {os.cpu_count()} CPUs"

    def close(self) -> None:
        """End every process."""
        for name in list(self._replicas):
            self.kill(name)


def _events(name: str, said: Any) -> list[Event]:
    """What a message of a replica means to the driver."""
    if isinstance(said, Ready):
        return [Up(name, said.node, said.alone, said.rss_bytes)]
    if isinstance(said, ShardResult | ShardFailure):
        return [Returned(name, said)]
    if isinstance(said, str):
        return [Down(name, said)]
    moved: dict[str, Counts] = said
    return [Moved(name, shard_id, counts) for shard_id, counts in moved.items()]


# In the process of a replica ---------------------------------------------------------------------


def _serve(
    pipe: connection.Connection, name: str, number: int, level: int,
    store: Store, plan: Plan, resources: Resources, work: Work,
) -> None:  # fmt: skip
    """Load the model, then do what comes through the pipe until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    logging.basicConfig(level=level, format=f"{name}: %(levelname)s %(name)s: %(message)s")
    if resources.device == "cuda":
        _take_a_gpu(number)
    lock = threading.Lock()

    def tell(message: object) -> None:
        with lock:
            pipe.send(message)

    try:
        host = Host(store, plan, resources, work)
        tell(host.warm_up("this machine"))
    except Exception as error:  # everything that can go wrong in a start; the driver tries again
        log.debug("%s could not start", name, exc_info=True)
        tell(say(error))
        return
    done = threading.Event()
    threading.Thread(target=_tell_how_far, args=(host, tell, done), daemon=True).start()
    with contextlib.suppress(EOFError, OSError), ThreadPoolExecutor(IN_FLIGHT) as pool:
        while True:
            spec, attempt = pipe.recv()
            pool.submit(lambda *shard: tell(host.run(*shard)), spec, attempt)
    done.set()
    sys.stdout.flush()
    os._exit(0)  # the parent has gone: what is still running has nobody to tell


def _take_a_gpu(number: int) -> None:
    """Replicas share the GPUs of the machine in turn."""
    import torch

    torch.cuda.set_device(number % torch.cuda.device_count())


def _tell_how_far(host: Host, tell: Any, done: threading.Event) -> None:
    """Send how far the shards in flight are, when that has changed."""
    last: dict[str, Counts] = {}
    while not done.wait(TELL_EVERY_S):
        now = host.moved()
        if now != last:
            with contextlib.suppress(OSError):
                tell(now)
            last = now
