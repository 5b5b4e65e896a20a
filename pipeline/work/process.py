"""A replica's own process on this machine: what LocalPool starts.

    python -m pipeline.work.process FD

FD is one end of a socket pair.  An Order comes first; then Ready goes back, and for every
(ShardSpec, attempt) that comes a ShardResult or a ShardFailure.  Every two seconds goes how far the
shards in flight are, if they have moved.  A text is the last thing that is sent: why the process
gives up.  The pool's end is closed when its process ends, however it ends, and so this one ends.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from pipeline import logs
from pipeline.plan import Plan, Resources, ShardSpec
from pipeline.signals import Counts
from pipeline.store.storage import Store
from pipeline.work.host import Host, Work, say

MOVED_S = 2.0  # between two reports of how far the shards are


@dataclass(frozen=True)
class Order:
    """What a replica is made of: the arguments of a Host, and how many shards it does at once."""

    store: Store
    plan: Plan
    resources: Resources
    work: Work
    in_flight: int
    log_level: int  # of the driver


class Process:
    """The replica behind a connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Until the other end is closed; then the process ends at once, whatever its threads do."""
        try:
            order: bytes = self.connection.recv_bytes()
            self._submit(ThreadPoolExecutor(1), self._begin, order)
            while True:
                spec, attempt = self.connection.recv()
                self._submit(self.threads, self._work, spec, attempt)
        except (EOFError, OSError):
            os._exit(0)

    def _submit(self, threads: ThreadPoolExecutor, *call: Any) -> None:
        threads.submit(*call).add_done_callback(self._ended)

    def _ended(self, call: Future[None]) -> None:
        """What a thread raises ends the process: it is nothing that a shard could have caused."""
        if (error := call.exception()) is not None:
            self._send(say(error))
            os._exit(1)

    def _begin(self, data: bytes) -> None:
        order: Order = pickle.loads(data)  # here, so that what cannot be loaded is told
        logging.getLogger().setLevel(order.log_level)
        self.threads = ThreadPoolExecutor(order.in_flight, thread_name_prefix="shard")
        self.host = Host(order.store, order.plan, order.resources, order.work)
        self._send(self.host.warm_up(socket.gethostname()))
        threading.Thread(target=self._tell, daemon=True).start()

    def _work(self, spec: ShardSpec, attempt: int) -> None:
        self._send(self.host.run(spec, attempt))

    def _tell(self) -> None:
        """Say how far the shards are; under the lock, so that nothing follows a shard's result."""
        told: dict[str, Counts] = {}
        while True:
            time.sleep(MOVED_S)
            with self._sending:
                moved = self.host.moved()
                new = {shard: far for shard, far in moved.items() if told.get(shard) != far}
                if new:
                    self._put(new)
            told = moved

    def _send(self, message: object) -> None:
        with self._sending:
            self._put(message)

    def _put(self, message: object) -> None:
        try:
            self.connection.send(message)
        except OSError:  # nobody reads any more
            os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.set_up(logging.INFO, logging.StreamHandler())
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)  # else a process that this one starts would keep it open
    Process(Connection(descriptor)).serve()
