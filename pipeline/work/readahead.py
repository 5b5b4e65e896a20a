"""Ordered read-ahead: one thread reads, a pool prepares, the caller takes results in order.

    source --reader thread--> pool.submit(prepare) --queue, bounded in bytes--> for item in ...

The bound counts an item from before its preparation, with all that the preparation will need,
until the caller asks for the next one; an item that is larger than the limit is prepared alone.  So
memory is at most the limit, or one item where that is larger, however many threads the pool has.
What is being read is not in it: a source hands over what it has read already.  Leaving the loop
early, or an error anywhere, ends the reader thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class ByteBudget:
    """A counter of bytes in flight; an item larger than the limit passes when it is alone."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.closed = limit, 0, False
        self._changed = threading.Condition()

    def acquire(self, count: int) -> bool:
        """Wait for room; False when the budget was closed meanwhile."""
        with self._changed:
            while self.used and self.used + count > self.limit and not self.closed:
                self._changed.wait()
            self.used += count
            return not self.closed

    def add(self, count: int) -> None:
        """Count bytes (negative: free them) without waiting."""
        with self._changed:
            self.used += count
            self._changed.notify_all()

    def close(self) -> None:
        """Let every waiter go."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()


def read_ahead(
    source: Iterable[T],
    prepare: Callable[[T], R],
    pool: Executor,
    budget: ByteBudget,
    size_before: Callable[[T], int],
    size_after: Callable[[R], int],
) -> Iterator[R]:
    """Yield ``prepare(item)`` for each item of ``source``, in order.

    ``size_before`` is of the item and of what ``prepare`` takes meanwhile, ``size_after`` of the
    result.  No reference to an item or a result is kept once the caller asks for the next one.

    Raises:
        Whatever ``source`` or ``prepare`` raises, at the place of the item.
    """
    done: queue.SimpleQueue[Future[tuple[R, int]] | BaseException | None] = queue.SimpleQueue()

    def work(item: T, before: int) -> tuple[R, int]:
        result = prepare(item)
        after = size_after(result)
        budget.add(after - before)
        return result, after

    def read() -> None:
        try:
            for item in source:
                before = size_before(item)
                if not budget.acquire(before):
                    return
                done.put(pool.submit(work, item, before))
                del item  # not to be held while the next one is read
            done.put(None)
        except BaseException as error:  # handed to the caller, who raises it
            done.put(error)

    reader = threading.Thread(target=read, daemon=True, name="shard-reader")
    reader.start()
    try:
        while (entry := done.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            result, size = entry.result()
            del entry
            yield result
            del result
            budget.add(-size)
    finally:
        budget.close()
        reader.join()
