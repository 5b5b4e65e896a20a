"""The numbers that a run has for Prometheus: their names, labels, and what labels can say.

Every name is of the driver alone, which counts for all replicas: a counter of a process that has
died would stay, one series for each.  In Prometheus the names begin with ``ray_``, as Ray puts that
before what its programs count, and end as its kinds of metrics do (``Metric.series``).  The alerts
and the dashboard in ``infra/monitoring`` ask for these.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.plan import Status

PREFIX = "ray_"
STATUSES = tuple(status.value for status in Status)
STAGES = ("read", "decode", "encode", "measure", "code", "write")
OUTCOMES = ("done", "damaged", "quarantined")
RETRIES = ("transient", "error", "lost")
LOSSES = ("died", "hung", "node")
STATES = ("wanted", "coming", "up")
BUCKETS_S = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
_ENDS = {"counter": "_total", "gauge": "", "histogram": "_bucket"}


@dataclass(frozen=True)
class Metric:
    """One number of a run, or one for each value of a label beside ``run``."""

    name: str
    kind: str  # counter, gauge or histogram
    help: str
    label: str = ""
    values: tuple[str, ...] = ()  # of the label

    @property
    def series(self) -> str:
        """What a query asks for; of a histogram its buckets."""
        return PREFIX + self.name + _ENDS[self.kind]


IMAGES = Metric("pqmim_images", "counter", "Images with a row, by status", "status", STATUSES)
SOURCE = Metric("pqmim_source_bytes", "counter", "Bytes of the shards that are committed")
TABLES = Metric("pqmim_table_bytes", "counter", "Bytes of the tables written")
CODES = Metric("pqmim_code_bytes", "counter", "Bytes of payload in them")
PIXELS = Metric("pqmim_pixels", "counter", "Pixels encoded")
STAGE = Metric(
    "pqmim_stage_seconds", "counter", "Seconds of all threads and replicas", "stage", STAGES
)
SHARDS = Metric("pqmim_shards", "counter", "Shards that have their end", "outcome", OUTCOMES)
RETRIED = Metric("pqmim_shard_retries", "counter", "Shards tried again", "kind", RETRIES)
STORAGE = Metric("pqmim_storage_retries", "counter", "Storage requests repeated")
COPIES = Metric("pqmim_second_copies", "counter", "Second copies of late shards")
LOST = Metric("pqmim_replicas_lost", "counter", "Replicas lost", "reason", LOSSES)
SHARDS_LEFT = Metric("pqmim_shards_left", "gauge", "Shards that have no end yet")
BYTES_LEFT = Metric("pqmim_bytes_left", "gauge", "Bytes of them that are not read yet")
REPLICAS = Metric("pqmim_replicas", "gauge", "Replicas", "state", STATES)
IN_FLIGHT = Metric("pqmim_in_flight", "gauge", "Shards on replicas, second copies included")
OLDEST = Metric("pqmim_oldest_flight_seconds", "gauge", "Since the oldest of them was handed out")
OF_LIMIT = Metric("pqmim_of_limit", "gauge", "Share of what the parts alone would do")
STARVED = Metric("pqmim_starved_share", "gauge", "Share of the replicas up that have no shard")
SHARD = Metric("pqmim_shard_seconds", "histogram", "Seconds of a shard, hand-out to return")

ALL = (
    IMAGES, SOURCE, TABLES, CODES, PIXELS, STAGE, SHARDS, RETRIED, STORAGE, COPIES, LOST,
    SHARDS_LEFT, BYTES_LEFT, REPLICAS, IN_FLIGHT, OLDEST, OF_LIMIT, STARVED, SHARD,
)  # fmt: skip
