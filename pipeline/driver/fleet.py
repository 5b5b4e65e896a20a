"""The replicas as the driver sees them: what runs where, and which one is next.

A replica is pending until it is up, then open for shards, reserved (it drains, then runs suspects
one at a time) or draining (it is replaced when empty).  Open ones are kept by load, so that the
choice of the least busy costs the same for 10 replicas and for 10,000.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.plan import ShardFailure, ShardResult, ShardSpec
from pipeline.signals import Alone, Counts

IN_FLIGHT = 2  # shards a replica: one opens while the other computes


@dataclass(frozen=True)
class Up:
    """A replica is ready for shards."""

    replica: str
    node: str
    alone: Alone = Alone()
    rss_bytes: int = 0


@dataclass(frozen=True)
class Down:
    """A replica has died, or could not start; what it was working on is lost."""

    replica: str
    reason: str
    node_lost: bool = False  # the whole node went, so that no shard is to blame
    hung: bool = False  # it was killed, as it stood still

    @property
    def cause(self) -> str:
        """In a word."""
        return "node" if self.node_lost else "hung" if self.hung else "died"


@dataclass(frozen=True)
class Returned:
    """A shard came back from a replica."""

    replica: str
    outcome: ShardResult | ShardFailure


@dataclass(frozen=True)
class Moved:
    """A shard in flight has got further; told every few seconds."""

    replica: str
    shard_id: str
    counts: Counts


Event = Up | Down | Returned | Moved


class Pool(Protocol):
    """What the driver needs of the machinery that runs replicas."""

    def add(self) -> str:
        """Ask for one more replica, without waiting; its name."""

    def start(self, replica: str, spec: ShardSpec, attempt: int) -> None:
        """Hand a shard to a replica."""

    def kill(self, replica: str) -> None:
        """End a replica now.  No event of it comes after this."""

    def wait(self, timeout_s: float) -> list[Event]:
        """What has happened, in order, after at most ``timeout_s`` if nothing has."""

    def describe(self) -> str:
        """What a replica asks for and what there is, for the message that none came up."""


@dataclass(eq=False)
class Job:
    """A shard that has no end yet."""

    spec: ShardSpec
    attempts: int = 0
    strikes: int = 0  # failures that are certainly its own
    losses: int = 0  # times that its node went
    hangs: int = 0
    copies: int = 0  # running now
    counts: Counts = Counts()  # of the copy that is furthest
    doubled: bool = False  # it has had its second copy
    over: bool = False


@dataclass(eq=False)
class Flight:
    """One copy of a shard on a replica."""

    job: Job
    member: Member
    started: float
    alone: bool  # on a replica of its own, because it is a suspect
    moved: float  # when it last got further
    counts: Counts = Counts()


@dataclass(eq=False)
class Member:
    """One replica."""

    name: str
    node: str = ""
    state: str = "pending"  # or open, reserved, draining
    rss_bytes: int = 0  # when it came up
    shards: int = 0  # since it came up
    flights: dict[str, Flight] = field(default_factory=dict)  # by shard id

    def __str__(self) -> str:
        return f"{self.name} on {self.node}" if self.node else self.name


class Fleet:
    """All replicas, and what is in flight, oldest first."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.up = 0
        self.reserved: list[Member] = []
        # Ordered dictionaries, because the first item of a plain one costs more the more were
        # taken from its front.
        self.flights: OrderedDict[Flight, None] = OrderedDict()
        self.still: OrderedDict[Flight, None] = OrderedDict()  # the same, by when they last moved
        self._open = [OrderedDict[Member, None]() for _ in range(IN_FLIGHT)]  # by load

    def ask(self, name: str) -> None:
        """A replica that is not up yet."""
        self.members[name] = Member(name)

    def come_up(self, event: Up) -> Member:
        """A replica that can be used from now on."""
        member = self.members[event.replica]
        member.node, member.rss_bytes = event.node, event.rss_bytes
        self.up += 1
        self._move(member, "open")
        return member

    def remove(self, name: str) -> Member | None:
        """Forget a replica; it still has the flights that are lost with it."""
        member = self.members.pop(name, None)
        if member is None:
            return None
        if member.state != "pending":
            self.up -= 1
        self._leave(member)
        if member.state == "reserved":
            self.reserved.remove(member)
        for flight in member.flights.values():
            self._ended(flight)
        return member

    def least_busy(self) -> Member | None:
        """An open replica that can take a shard."""
        return next((next(iter(members)) for members in self._open if members), None)

    def idle(self) -> Member | None:
        """An open replica with nothing to do."""
        return next(iter(self._open[0]), None)

    @property
    def starved(self) -> int:
        """Replicas up that have no shard."""
        return len(self._open[0]) + sum(not member.flights for member in self.reserved)

    @property
    def coming(self) -> int:
        """Replicas that are not up yet."""
        return len(self.members) - self.up

    def take_off(self, member: Member, job: Job, now: float) -> None:
        """A shard starts on a replica."""
        flight = Flight(job, member, now, member.state == "reserved", now)
        self._leave(member)
        member.flights[job.spec.shard_id] = flight
        self._enter(member)
        self.flights[flight] = self.still[flight] = None
        job.copies += 1

    def move(self, name: str, shard_id: str, counts: Counts, now: float) -> Flight | None:
        """Note how far a shard is; its flight, if that is further than before."""
        member = self.members.get(name)
        flight = member.flights.get(shard_id) if member else None
        if flight is None or flight.counts == counts:
            return None
        flight.counts, flight.moved = counts, now
        self.still.move_to_end(flight)
        return flight

    def _ended(self, flight: Flight) -> None:
        del self.flights[flight], self.still[flight]
        flight.job.copies -= 1

    def land(self, name: str, shard_id: str) -> Flight | None:
        """A shard has come back; None if it was not expected."""
        member = self.members.get(name)
        if member is None or shard_id not in member.flights:
            return None
        self._leave(member)
        flight = member.flights.pop(shard_id)
        self._enter(member)
        self._ended(flight)
        return flight

    def reserve(self, count: int) -> None:
        """Take open replicas out of the common service until that many are reserved for suspects;
        the least busy ones, as they are empty first."""
        while len(self.reserved) < count and (member := self._least_loaded()):
            self._move(member, "reserved")

    def release(self) -> None:
        """Give reserved replicas that are empty back."""
        for member in [m for m in self.reserved if not m.flights]:
            self._move(member, "open")

    def drain(self, member: Member) -> None:
        """Give a replica no more shards."""
        self._move(member, "draining")

    def _least_loaded(self) -> Member | None:
        full = (m for m in self.members.values() if m.state == "open")
        return self.least_busy() or next(full, None)

    def _move(self, member: Member, state: str) -> None:
        self._leave(member)
        if member.state == "reserved":
            self.reserved.remove(member)
        member.state = state
        if state == "reserved":
            self.reserved.append(member)
        self._enter(member)

    def _leave(self, member: Member) -> None:
        if member.state == "open" and len(member.flights) < IN_FLIGHT:
            del self._open[len(member.flights)][member]

    def _enter(self, member: Member) -> None:
        if member.state == "open" and len(member.flights) < IN_FLIGHT:
            self._open[len(member.flights)][member] = None
