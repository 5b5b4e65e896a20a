"""Hand out shards, wait, retry, quarantine.  Plain Python over a pool; Ray is in ray_pool.py.

The driver owns every retry and the life of every replica.  What to do about a failure is a pure
function, ``policy.decide``; what must survive the driver is in the archive's ledger, so that the
same command again resumes.  A shard may run twice at once, and a replica that was given up may
still write: commits are create-only, so the first table stands and the driver counts it once.

    failure                             answer
    the shard's own exception           a strike; again, elsewhere
    replica died with one shard         a strike; again, alone on a replica
    replica died with two shards        suspects: both again, each alone, so that blame is certain
    node lost                           again; from the third time on as if the replica had died
    three strikes                       quarantine, with the reason and the replica
    late (Pace.late_s), nothing to do   a second copy on an idle replica; the first result counts
    no further (Limits.still_s)         the replica is killed
    replica lost                        asked for again; the others go on

A replica holds two shards, so that one opens while the other computes.  But it gets its second one
only while more than ENOUGH shards wait for every other replica, those that are coming up included:
at the end a shard that waits on a busy replica could be done by another (benchmarks/driver.py).
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable

from pipeline.archive import commit
from pipeline.driver import policy
from pipeline.driver.fleet import (
    Down,
    Event,
    Fleet,
    Flight,
    Job,
    Member,
    Moved,
    Pool,
    Returned,
    Up,
)  # fmt: skip
from pipeline.driver.missing import Missing
from pipeline.driver.pace import Limits, Pace
from pipeline.driver.policy import Action, Stopped
from pipeline.driver.report import Progress
from pipeline.driver.waiting import Waiting
from pipeline.plan import ShardFailure, ShardResult, ShardSpec
from pipeline.signals import Counts, add
from pipeline.store.storage import Store

log = logging.getLogger(__name__)
TICK_S = 1.0  # how often the limits are looked at
SHOWN = 20  # stuck shards named at once
ENOUGH = 6  # at 2 and 4, 11 and 4 of 1,152 drawn jobs took over 1.1 times list scheduling


def run(
    specs: Iterable[ShardSpec], pool: Pool, store: Store, progress: Progress,
    max_bad_images: float, replicas: int, limits: Limits = Limits(),  # noqa: B008, frozen
    clock: Callable[[], float] = time.monotonic,
) -> None:  # fmt: skip
    """Drive every shard to its end: committed, or quarantined with a reason.

    Raises:
        Stopped: a failure that concerns the whole run; nothing committed is lost.
    """
    Driver(specs, pool, store, progress, max_bad_images, replicas, limits, clock).run()


class Driver:
    """One run: the shards that have no end yet, the replicas, and the pace."""

    def __init__(
        self, specs: Iterable[ShardSpec], pool: Pool, store: Store, progress: Progress,
        max_bad_images: float, replicas: int, limits: Limits, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.pool, self.store, self.progress, self.clock = pool, store, progress, clock
        self.max_bad_images, self.limits = max_bad_images, limits
        self.pace, self.fleet, self.waiting = Pace(limits), Fleet(), Waiting(specs)
        self.missing = Missing(replicas, limits, clock())
        self.heard = self.complained = clock()

    def run(self) -> None:
        """Until every shard has its end."""
        while not self.waiting.over:
            self._look_after(self.clock())
            self._hand_out(self.clock())
            self.progress.look(self.fleet, self.missing.replicas, self.clock())
            for event in self.pool.wait(TICK_S):
                self._take(event, self.clock())
            self.progress.show(self.clock(), self.fleet.up, len(self.fleet.flights))

    # Handing out ---------------------------------------------------------------------------------

    def _hand_out(self, now: float) -> None:
        if self.waiting.suspects or self.fleet.reserved:
            self._hand_out_suspects(now)
        while (member := self.fleet.least_busy()) and self._may_take(member):
            job = self.waiting.next()
            if job is None:
                break
            self._start(member, job, now)
        if not self.waiting.more_than(0):
            self._double(now)

    def _may_take(self, member: Member) -> bool:
        """Any replica may take its first shard; its second one only while those that are left are
        ENOUGH for every other replica, up or coming."""
        others = self.fleet.up + self.fleet.coming - 1
        return not member.flights or self.waiting.more_than(ENOUGH * others)

    def _hand_out_suspects(self, now: float) -> None:
        """Each on a replica of its own; a quarter of them at most while there is other work."""
        suspects, up = self.waiting.suspects, self.fleet.up
        quota = max(1, up // 4) if self.waiting.more_than(0) else up
        testing = sum(any(f.alone for f in m.flights.values()) for m in self.fleet.reserved)
        self.fleet.reserve(min(quota, testing + len(suspects)))
        for member in self.fleet.reserved:
            if suspects and not member.flights:
                self._start(member, suspects.popleft(), now)
        if not suspects:
            self.fleet.release()

    def _double(self, now: float) -> None:
        """A second copy of each late shard, while a replica has nothing to do."""
        too_old = now - self.pace.late_s
        late = itertools.takewhile(lambda flight: flight.started < too_old, self.fleet.flights)
        for flight in list(late):
            job = flight.job
            if job.over or job.doubled or flight.alone:
                continue
            member = self.fleet.idle()
            if member is None:
                return
            log.info("%s: late on %s, second copy on %s", job.spec.url, flight.member, member)
            job.doubled = True
            self.progress.second_copies += 1
            self._start(member, job, now)

    def _start(self, member: Member, job: Job, now: float) -> None:
        job.attempts += 1
        if not self.fleet.flights:
            self.heard = self.complained = now
        self.fleet.take_off(member, job, now)
        self.pool.start(member.name, job.spec, job.attempts)

    # What came back ------------------------------------------------------------------------------

    def _take(self, event: Event, now: float) -> None:
        if isinstance(event, Returned):
            self._returned(event, now)
        elif isinstance(event, Down):
            self._down(event, now)
        elif isinstance(event, Moved):
            self._moved(event, now)
        else:
            self._up(event, now)

    def _up(self, event: Up, now: float) -> None:
        member = self.fleet.come_up(event)
        log.info("%s is up", member)
        self.missing.came()
        if self.progress.first_work is None:
            self.progress.first_work = now
        self.progress.limit.came(member.name, member.node, event.alone, now)

    def _moved(self, event: Moved, now: float) -> None:
        flight = self.fleet.move(event.replica, event.shard_id, event.counts, now)
        if flight is None:
            return
        self.heard = self.complained = now
        job, counts = flight.job, event.counts
        if not job.over and counts.source_bytes + counts.images > (
            job.counts.source_bytes + job.counts.images
        ):
            self._count(job, counts)

    def _count(self, job: Job, counts: Counts) -> None:
        """Show how far a shard is, once however many copies of it run."""
        self.progress.moved(job.counts, counts)
        job.counts = counts

    def _returned(self, event: Returned, now: float) -> None:
        outcome = event.outcome
        flight = self.fleet.land(event.replica, outcome.shard_id)
        if flight is None:
            return
        self.heard = self.complained = now
        if not flight.job.over and isinstance(outcome, ShardResult):
            self._done(flight, outcome, now)
        elif not flight.job.over and isinstance(outcome, ShardFailure):
            self._failed(flight.job, outcome.kind, outcome.message, flight.member)
        self._recycle(flight.member, outcome, now)

    def _done(self, flight: Flight, result: ShardResult, now: float) -> None:
        self.pace.add(seconds := now - flight.started)
        self._count(flight.job, Counts())
        self.waiting.end(flight.job)
        self.progress.shard_done(result, now, seconds)
        policy.check_bad_images(self.progress, self.max_bad_images)

    def _failed(self, job: Job, kind: str, message: str, member: Member) -> None:
        """A failure that is certainly this shard's own, or concerns the whole run."""
        job.strikes += 1
        action, url = policy.decide(kind, job.strikes), job.spec.url
        message = f"{message} ({member})"
        log.warning("%s, failure %d: %s: %s", url, job.strikes, action.value, message)
        if action is Action.STOP:
            raise Stopped(message)
        if job.copies:
            return  # the other copy may still do it
        self._count(job, Counts())
        if action is Action.RETRY:
            return self._try_again(job, kind, alone=kind == "lost")
        commit.quarantine(self.store, job.spec, message, job.strikes)
        self.progress.given_up(job.spec, message)
        self.waiting.end(job)

    def _try_again(self, job: Job, kind: str, alone: bool) -> None:
        add(self.progress.retried, {kind: 1})
        self._count(job, Counts())
        self.waiting.again(job, alone)

    # Replicas ------------------------------------------------------------------------------------

    def _down(self, event: Down, now: float) -> None:
        """A replica is gone: see to its shards, and ask for another one."""
        member = self.fleet.remove(event.replica)
        if member is None:
            return
        log.warning("%s lost with %d shards: %s", member, len(member.flights), event.reason)
        if started := member.state != "pending":
            add(self.progress.lost, {event.cause: 1})
        self.missing.lost(event.reason, now, started=started)
        self.progress.limit.went(member.name, now)
        for flight in member.flights.values():
            if not flight.job.over:
                self._lost(flight.job, event, member)

    def _lost(self, job: Job, event: Down, member: Member) -> None:
        job.losses += event.node_lost
        if event.node_lost and job.losses < policy.MAX_ATTEMPTS:
            if not job.copies:
                self._try_again(job, "lost", alone=False)
        elif len(member.flights) == 1:
            self._failed(job, "lost", f"its replica was lost: {event.reason}", member)
        elif not job.copies:
            log.warning("%s: was not alone on %s, tried again alone", job.spec.url, member)
            self._try_again(job, "lost", alone=True)

    def _recycle(self, member: Member, outcome: ShardResult | ShardFailure, now: float) -> None:
        """Replace a replica that has grown or aged, once it is empty."""
        member.shards += 1
        rss = outcome.rss_bytes if isinstance(outcome, ShardResult) else 0
        grown = rss - member.rss_bytes > self.limits.rss_growth_bytes
        if member.state == "open" and (grown or member.shards >= self.limits.max_shards):
            log.info("%s is replaced after %d shards, at %d MiB", member, member.shards, rss >> 20)
            self.fleet.drain(member)
        if member.state == "draining" and not member.flights:
            self.pool.kill(member.name)
            self.fleet.remove(member.name)
            self.missing.ask(now)
            self.progress.limit.went(member.name, now)

    def _look_after(self, now: float) -> None:
        """Ask for missing replicas; find out what is hung or stalled, and whether any is left."""
        for _ in range(self.missing.due(now)):
            self.fleet.ask(self.pool.add())
        self.missing.check(self.fleet.up, now, self.pool.describe)
        self._kill_hung(now)
        if self.fleet.flights and now - self.complained > self.pace.stall_s:
            self.complained = now
            self._name_stuck(now)

    def _kill_hung(self, now: float) -> None:
        hung: dict[str, Flight] = {}
        for flight in self.fleet.still:
            if now - flight.moved <= min(self.limits.still_s, self.pace.hang_s):
                break
            known = flight.counts != Counts()  # else the replica may not be able to say
            limit = self.limits.still_s if known else self.pace.hang_s
            if now - flight.moved > limit * 2**flight.job.hangs:
                hung.setdefault(flight.member.name, flight)
        for name, flight in hung.items():
            flight.job.hangs += 1
            self.pool.kill(name)
            reason = f"hung: {flight.job.spec.url} got no further in {now - flight.moved:.0f} s"
            self._down(Down(name, reason, hung=True), now)

    def _name_stuck(self, now: float) -> None:
        """Say what runs where since when."""
        log.warning(
            "nothing came back for %.0f s; %d shards in flight, a shard usually takes %.0f s",
            now - self.heard, len(self.fleet.flights), self.pace.median,
        )  # fmt: skip
        for flight in list(self.fleet.flights)[:SHOWN]:
            url, seconds = flight.job.spec.url, now - flight.started
            log.warning("stuck: %s on %s for %.0f s", url, flight.member, seconds)
