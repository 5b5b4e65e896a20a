"""How close a run came to what its machines can do, and which part held it.

The limit is what the parts take alone, put on the resources that they need:

    device    encoder, and search and entropy model, one after the other, on every replica
    cores     image decoding, reading, tables, and on a CPU the two above, on all cores together
    storage   what reading waited for, two shards a replica

Each replica measures encoder and entropy model when it comes up, on batches of the run's size; the
others are counted as processor seconds of the threads that do them, so that waiting for each other
is not in it.  The slowest of the three resources is the limit, and its largest part bounds the run.
What to change is in advice.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.driver.fleet import IN_FLIGHT
from pipeline.signals import Alone

NAMES = {
    "read": "reading the shards", "decode": "image decoding", "encode": "the encoder",
    "code": "search and entropy model", "write": "writing the tables",
    "measure": "decoding for --measure",
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What the parts alone would take."""

    share: float  # of the run's time; 1 is the limit
    bound: str  # the part that holds the run, a key of NAMES
    parts: dict[str, float]  # processor or device seconds of each
    resource: str  # the slowest: device, cores or storage
    busy: dict[str, float]  # share of the time of each resource, and what of it is "idle":
    # replicas without a shard, and "machine": all cores of the nodes, used by replicas or not
    on_cpu: bool  # the device is the cores
    replica_s: float  # that replicas were up, added up


@dataclass(frozen=True)
class Spent:
    """Seconds until now."""

    replicas: float = 0.0  # up
    cores: float = 0.0  # that they can use
    machine: float = 0.0  # all cores of their nodes


class Limit:
    """The replicas that are up, and for how long."""

    def __init__(self) -> None:
        self._up: dict[str, tuple[str, Alone]] = {}  # by name: node, and what was measured there
        self._measured: list[Alone] = []
        self._since, self._spent = 0.0, Spent()
        self._idle_s, self._looked = 0.0, (0.0, 0.0)  # when, and how many were idle from then on

    def came(self, name: str, node: str, alone: Alone, now: float) -> None:
        """A replica is up."""
        self._since, self._spent = now, self._until(now)
        self._up[name] = node, alone
        self._measured.append(alone)

    def went(self, name: str, now: float) -> None:
        """A replica is gone."""
        self._since, self._spent = now, self._until(now)
        self._up.pop(name, None)

    def idle(self, replicas: float, now: float) -> None:
        """So many of those up have no shard from now on."""
        then, count = self._looked
        self._idle_s += count * (now - then)
        self._looked = now, replicas

    def _until(self, now: float) -> Spent:
        """What those that are up have spent."""
        seconds, spent = max(now - self._since, 0.0), self._spent
        if not self._up or not seconds:
            return spent
        used, there = self._cores()
        return Spent(
            spent.replicas + len(self._up) * seconds, spent.cores + used * seconds,
            spent.machine + there * seconds,
        )  # fmt: skip

    def _cores(self) -> tuple[int, int]:
        """Cores that the replicas can use, no more than they have threads; all of their nodes."""
        threads: dict[str, int] = {}
        cores: dict[str, int] = {}
        for node, alone in self._up.values():
            threads[node] = threads.get(node, 0) + alone.threads
            cores[node] = alone.cores
        used = sum(min(cores[node], count) for node, count in threads.items())
        return used, sum(cores.values())

    def verdict(
        self, pixels: int, seconds: dict[str, float], cpu: dict[str, float], now: float
    ) -> Verdict | None:
        """Of a run that has encoded so many pixels.

        Args:
            pixels: encoded.
            seconds: by stage, of which reading counts here.
            cpu: processor seconds by stage.
            now: the end of the run, or a time before it.
        """
        spent = self._until(now)
        if not pixels or not self._measured or not spent.replicas:
            return None
        count, size, on_cpu = len(self._measured), pixels / 1e6, self._measured[0].on_cpu
        parts = {name: cpu.get(name, 0.0) for name in ("read", "decode", "write")}
        if cpu.get("measure"):
            parts["measure"] = cpu["measure"]
        for name in ("encode", "code"):
            parts[name] = size * sum(getattr(alone, name) for alone in self._measured) / count
        device = {name: parts[name] for name in ("encode", "code")}
        cores = {k: value for k, value in parts.items() if k not in device or on_cpu}
        needs = {"device": device, "cores": cores, "storage": {"read": seconds.get("read", 0.0)}}
        streams = IN_FLIGHT * spent.replicas
        has = {"device": spent.replicas, "cores": spent.cores, "storage": streams}
        busy = {name: sum(needs[name].values()) / has[name] for name in needs}
        resource = max(busy, key=busy.__getitem__)
        held = max(needs[resource], key=needs[resource].__getitem__)
        idle = {"idle": min(self._idle_s / spent.replicas, 1.0)}
        machine = {"machine": sum(cores.values()) / spent.machine}
        return Verdict(
            busy[resource], held, parts, resource, busy | idle | machine, on_cpu,
            spent.replicas,
        )  # fmt: skip
