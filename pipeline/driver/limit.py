"""How close a run came to what its machines can do, and which part held it.

The limit is what the parts take alone, put on the resources that they need:

    device    encoder, and search and entropy model, one after the other, on every replica
    cores     image decoding, reading, tables, and on a CPU the two above, on all cores together
    storage   what reading waited for, two shards a replica

Each replica measures encoder and entropy model when it comes up, on batches of the run's size; the
others are counted as processor seconds of the threads that do them, so that waiting for each other
is not in it.  The slowest of the three resources is the limit, and its largest part bounds the run.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.driver.fleet import IN_FLIGHT
from pipeline.signals import Alone

NAMES = {
    "read": "reading the shards", "decode": "image decoding", "encode": "the encoder",
    "code": "search and entropy model", "write": "writing the tables",
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What the parts alone would take."""

    share: float  # of the run's time; 1 is the limit
    bound: str  # the part that holds the run, a key of NAMES
    parts: dict[str, float]  # processor or device seconds of each


class Limit:
    """The replicas that are up, and for how long."""

    def __init__(self) -> None:
        self._up: dict[str, tuple[str, Alone]] = {}  # by name: node, and what was measured there
        self._measured: list[Alone] = []
        self._since = self._replica_s = self._core_s = 0.0

    def came(self, name: str, node: str, alone: Alone, now: float) -> None:
        """A replica is up."""
        self._since, self._replica_s, self._core_s = self._passed(now)
        self._up[name] = node, alone
        self._measured.append(alone)

    def went(self, name: str, now: float) -> None:
        """A replica is gone."""
        self._since, self._replica_s, self._core_s = self._passed(now)
        self._up.pop(name, None)

    def _passed(self, now: float) -> tuple[float, float, float]:
        """Now, and the seconds of replicas and of cores until then."""
        seconds = max(now - self._since, 0.0) if self._up else 0.0
        return (
            now, self._replica_s + len(self._up) * seconds, self._core_s + self._cores() * seconds
        )  # fmt: skip

    def _cores(self) -> int:
        """Cores that the replicas can use: those of their nodes, no more than they have threads."""
        threads: dict[str, int] = {}
        cores: dict[str, int] = {}
        for node, alone in self._up.values():
            threads[node] = threads.get(node, 0) + alone.threads
            cores[node] = alone.cores
        return sum(min(cores[node], count) for node, count in threads.items())

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
        _, replica_s, core_s = self._passed(now)
        if not pixels or not self._measured or not replica_s:
            return None
        count, size = len(self._measured), pixels / 1e6
        parts = {name: cpu.get(name, 0.0) for name in ("read", "decode", "write")}
        for name in ("encode", "code"):
            parts[name] = size * sum(getattr(alone, name) for alone in self._measured) / count
        device = {name: parts[name] for name in ("encode", "code")}
        cores = {
            name: value for name, value in parts.items()
            if name not in device or self._measured[0].on_cpu
        }  # fmt: skip
        limits = {
            "device": (sum(device.values()) / replica_s, device),
            "cores": (sum(cores.values()) / core_s, cores),
            "storage": (
                seconds.get("read", 0.0) / (IN_FLIGHT * replica_s), {"read": 1.0}
            ),
        }  # fmt: skip
        share, needs = max(limits.values(), key=lambda pair: pair[0])
        return Verdict(share, max(needs, key=needs.__getitem__), parts)
