"""What a whole job costs, from what some of its shards took and a file of prices.

Everything that was measured is scaled up by bytes of source.  Each measured shard gives a bill of
its own; the middle one is the likely bill, and the range over all of them what is said of it.

    encoding      machine hours, times price: the work, a start of each machine, what lost spot
                  machines do again, and the tail: one shard's time on every machine
    the head      for as long as that takes
    reading       requests, retrieval and transfer of the originals
    verification  the same again, with decoding instead of encoding (jobs.verify --full)
    early         what deleting the originals before their minimum duration costs
    break even    months until the storage saved has paid for all of the above
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.plan import ShardSpec
from pipeline.price.prices import Class, Prices

GB, KB = 1e9, 1e3
HOURS, DAYS = 730.0, 30.4  # of a month
GET_BYTES = 16 << 20  # that one request reads of a shard
IN_FLIGHT = 2  # shards of a lost replica, one of them half done
WRONG = 0.2  # that the forecast may be wrong by


@dataclass(frozen=True)
class Measured:
    """What one shard took; seconds are a replica's."""

    url: str
    source_bytes: int  # that were measured
    encode_s: float
    picture_s: float  # of them: decoding the pictures, which verification does again
    decode_s: float  # from the table to pixels
    tables: dict[str, int]  # bytes by what is stored: bitstream, codes, both


@dataclass(frozen=True)
class Job:
    """What all shards are."""

    sizes: tuple[int, ...]  # bytes
    replicas: int
    store: str

    @classmethod
    def of(cls, specs: Sequence[ShardSpec], replicas: int, store: str) -> Job:
        """The job over a listing."""
        return cls(tuple(spec.size for spec in specs), replicas, store)

    @property
    def gb(self) -> float:
        """Of source."""
        return sum(self.sizes) / GB


@dataclass(frozen=True)
class Bill:
    """One forecast; money but for the hours and months."""

    machine_hours: float
    wall_hours: float
    encode: float  # machines and head
    read: float  # requests, retrieval, transfer, and the requests that write
    verify: float
    early: float
    decode: float  # once, everything, to the machines
    before: float  # a month
    after: dict[str, float]  # a month, by what is stored
    months: float  # to break even

    @property
    def once(self) -> float:
        """Until the originals are gone."""
        return self.encode + self.read + self.verify + self.early


def bill(job: Job, measured: Measured, prices: Prices, slower: float = 1.0,
         larger: float = 1.0) -> Bill:  # fmt: skip
    """The bill if all shards are like the measured one.

    Args:
        job: the shards.
        measured: one of them.
        prices: of everything.
        slower: factor on every time, to see what being wrong costs.
        larger: factor on the tables, for the same.
    """
    scale = sum(job.sizes) / measured.source_bytes
    work, wall = hours(job, scale * measured.encode_s * slower, prices)
    check_s = scale * (measured.picture_s + measured.decode_s) * slower
    checking, checking_wall = hours(job, check_s, prices)
    decoding, decoding_wall = hours(job, scale * measured.decode_s * slower, prices)
    reading = read_originals(job, prices)
    before = sum(stored(size, prices.originals) for size in job.sizes)
    count, after = len(job.sizes), {}
    for store, size in measured.tables.items():
        after[store] = count * stored(larger * scale * size / count, prices.archive)
    tables_gb = larger * scale * measured.tables[job.store] / GB
    read_tables = read_archive(count, tables_gb, prices)
    once = Bill(
        machine_hours=work, wall_hours=wall, encode=cost(work, wall, prices),
        read=reading + write_archive(count, prices),
        verify=cost(checking, checking_wall, prices) + reading + read_tables,
        early=early(before, prices), decode=cost(decoding, decoding_wall, prices) + read_tables,
        before=before, after=after, months=math.inf,
    )  # fmt: skip
    saved = before - after[job.store]
    months = once.once / saved if saved > 0 else math.inf
    return Bill(**{**vars(once), "months": months})


def hours(job: Job, work_s: float, prices: Prices) -> tuple[float, float]:
    """Machine hours and hours on the clock that so many replica seconds take."""
    machine = prices.machine
    machines = math.ceil(job.replicas / machine.replicas)
    work = work_s / machine.replicas / 3600
    shard = work / len(job.sizes) * machine.replicas  # on the clock of its replica
    once = machine.start_s / 3600 + shard  # start and tail of each machine
    redone = 0.0
    if prices.run.spot:
        lost = work * machine.spot_lost_a_month / HOURS
        redone = lost * (machine.start_s / 3600 + shard * IN_FLIGHT / 2)
    total = work + redone + machines * once
    return total, total / machines


def cost(machine_hours: float, wall_hours: float, prices: Prices) -> float:
    """Of machines and the head."""
    return machine_hours * prices.machine_hour + wall_hours * prices.head_hour


def read_originals(job: Job, prices: Prices) -> float:
    """Every shard once: requests, retrieval, transfer."""
    gets = sum(math.ceil(size / GET_BYTES) for size in job.sizes)
    storage = prices.originals
    moved = job.gb * (storage.retrieval_gb + prices.transfer)
    return gets / 1000 * storage.get_1000 + moved


def write_archive(count: int, prices: Prices) -> float:
    """A shard asks for its table once and writes table and ledger entry."""
    return count / 1000 * (prices.archive.get_1000 + 2 * prices.archive.put_1000)


def read_archive(count: int, gb: float, prices: Prices) -> float:
    """Every table once."""
    moved = gb * (prices.archive.retrieval_gb + prices.transfer)
    return count / 1000 * prices.archive.get_1000 + moved


def stored(size: float, storage: Class) -> float:
    """An object for a month."""
    return max(size, storage.minimum_kb * KB) / GB * storage.gb_month


def early(before: float, prices: Prices) -> float:
    """What is still owed for originals that are deleted now."""
    left = prices.originals.minimum_days - prices.run.originals_age_days
    return max(left, 0) / DAYS * before
