"""The records that cross process and file borders: Plan, ShardSpec, ShardResult, Status.

A Plan is everything that decides the bytes of the output, frozen when the archive is begun and kept
in ``<out>/plan.json``.  Resources (replicas, threads, device) are not in it: they may change
between two submissions of the same job, the output may not.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from pipeline import keep
from pipeline.keep import Kept
from pipeline.signals import Glance
from pqmim.coding import schedule

STORES, ICC = ("bitstream", "codes", "both"), ("convert", "ignore", "refuse")
LATER_FIELDS = {"price": 0.0}  # added within a format version, with what earlier plans meant
# Added with format version 2, with what plans of version 1 meant; their tables have no `dropped`.
SECOND_FIELDS: dict[str, Any] = {"icc": "ignore", "strict_images": False}
FORMAT_VERSION = 3  # of the archive: plan, code table, ledger; see CHANGELOG, Format


class Status(enum.StrEnum):
    """What became of one image.  Exactly one row a sample, whatever the status."""

    OK = "ok"
    DECODE_ERROR = "decode_error"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    MISSING_IMAGE = "missing_image"
    DUPLICATE_KEY = "duplicate_key"


class PlanMismatch(Exception):
    """The output prefix belongs to a run with other options, model or input."""


@dataclass(frozen=True)
class ShardSpec:
    """One input shard: all that a replica is sent."""

    shard_id: str
    url: str
    size: int  # bytes
    etag: str


@dataclass(frozen=True)
class Facts:
    """What the work on a shard found: a ShardResult without its table and its cost."""

    rows: dict[str, int]  # by status
    pixels: int = 0  # of ok images, as encoded
    code_bytes: int = 0  # payload of ok images; with both columns that of the bitstreams
    damage: tuple[str, ...] = ()  # what is wrong with the tar
    dropped: dict[str, int] = field(default_factory=dict)  # images by what their codes do not hold
    skipped: int = 0  # AppleDouble members
    filled: dict[str, int] = field(default_factory=dict)  # kept column -> rows that have a value
    outcome: str = "done"  # or "damaged": readable rows are committed, the shard counts as failed


@dataclass(frozen=True)
class ShardResult:
    """One processed shard: all that a replica sends back, and the body of its ledger entry."""

    shard_id: str
    url: str
    source_size: int
    source_etag: str
    outcome: str  # this and the next three, and damage: see Facts
    rows: dict[str, int]
    pixels: int
    code_bytes: int
    table_bytes: int = 0  # this and the next two are known once it is in the store
    table_sha256: str = ""
    table_etag: str = ""
    damage: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)  # read, decode, encode, code, write
    wall_s: float = 0.0
    rss_bytes: int = 0
    attempt: int = 1
    adopted: bool = False  # the table was already there, from an attempt whose ledger was lost
    retries: int = 0  # storage requests repeated; absent in entries of older versions
    cpu: dict[str, float] = field(default_factory=dict)  # processor seconds, as seconds; the same
    dropped: dict[str, int] = field(default_factory=dict)  # kind -> images; see pictures.Picture
    skipped: int = 0  # this and the next: see Facts
    filled: dict[str, int] = field(default_factory=dict)
    glance: Glance = field(default=Glance(), compare=False)  # not in the ledger  # noqa: RUF009

    @classmethod
    def of(cls, spec: ShardSpec, facts: Facts, **cost: Any) -> ShardResult:
        """What the work on a shard found, and what it cost."""
        named: dict[str, Any] = {"shard_id": spec.shard_id, "url": spec.url}
        named |= {"source_size": spec.size, "source_etag": spec.etag}
        return cls(**named, **vars(facts), **cost)

    def to_json(self) -> bytes:
        """The ledger entry."""
        fields = dataclasses.asdict(dataclasses.replace(self, glance=Glance()))
        sparse = ("dropped", "skipped", "filled")  # absent where empty, as older versions wrote it
        fields = {k: v for k, v in fields.items() if k != "glance" and (v or k not in sparse)}
        return (json.dumps(fields, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> ShardResult:
        """Read :meth:`to_json` output."""
        fields = json.loads(data)
        return cls(**{**fields, "damage": tuple(fields["damage"])})


@dataclass(frozen=True)
class Pictures:
    """Of a plan, how an image file becomes pixels."""

    image_keys: tuple[str, ...]
    resize: int | None
    crop: int | None
    min_side: int
    max_pixels: int
    icc: str
    strict_images: bool


@dataclass(frozen=True)
class Coding:
    """Of a plan, how pixels become codes and bitstreams."""

    quality: int
    stages: tuple[int, ...]
    price: float


@dataclass(frozen=True)
class Plan:
    """The frozen description of a run."""

    model: str  # fingerprint of the codec
    quality: int  # sub-codes kept, 1..M
    stride: int
    codewords: int
    inputs: int  # shards in the listing
    inputs_digest: str  # sha256 over (url, size, etag) of the sorted listing
    store: str = "bitstream"  # payload columns: one of STORES
    stages: tuple[int, ...] = schedule.FAST_PLAN  # of the bitstreams: 2.5 % larger, 1.2 x faster
    price: float = 0.0  # squared error that a bit is worth (pqmim.coding); 0: nearest codewords
    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    keep: tuple[str, ...] = ()  # passthrough columns, "txt" or "json.label:int32"
    resize: int | None = None  # shorter side, pixels
    crop: int | None = None  # centre square, pixels
    min_side: int = 16
    max_pixels: int = 100_000_000
    icc: str = "convert"  # embedded colour profiles: one of ICC
    strict_images: bool = False  # a decoder's warning is an error, not a note in the row
    hash: bool = False  # source_sha256 column
    measure: str = "none"  # or "psnr"
    batch_pixels: int = 1 << 20  # pixels of one batch, which fixes its shape
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.store not in STORES:
            raise ValueError(f"store {self.store!r}: one of {', '.join(map(repr, STORES))}")
        if self.icc not in ICC:
            raise ValueError(f"icc {self.icc!r}: one of {', '.join(map(repr, ICC))}")
        keep.check_names(self.keep, self.exact)
        if self.has_dropped and any(column.name == "dropped" for column in self.kept):
            raise ValueError("--keep dropped: the code table has a column of that name")
        sides = [side for side in (self.resize, self.crop) if side is not None]
        if min(*sides, self.min_side, self.max_pixels) < 1:
            raise ValueError("resize, crop, min_side and max_pixels must be 1 or more")
        if not 0 <= self.price < math.inf:
            raise ValueError(f"price {self.price}: must be 0 or more")
        if self.batch_pixels < 1:
            raise ValueError(f"batch_pixels {self.batch_pixels}: must be 1 or more")
        if self.measure not in ("none", "psnr"):
            raise ValueError(f"measure {self.measure!r}: 'none' or 'psnr'")

    @functools.cached_property
    def pictures(self) -> Pictures:
        """What reading an image file takes of the plan."""
        return Pictures(*(getattr(self, field.name) for field in dataclasses.fields(Pictures)))

    @functools.cached_property
    def coding(self) -> Coding:
        """What search and entropy model take of it."""
        return Coding(self.quality, self.stages, self.price)

    @property
    def stores_codes(self) -> bool:
        """Whether the tables have raw codes."""
        return self.store != "bitstream"

    @property
    def stores_bitstream(self) -> bool:
        """Whether the tables have entropy-coded codes."""
        return self.store != "codes"

    @property
    def kept(self) -> list[Kept]:
        """The passthrough columns."""
        return [keep.parse(column, self.exact) for column in self.keep]

    @property
    def has_dropped(self) -> bool:
        """Whether the tables say what a source had and the codes do not hold."""
        return self.format_version >= 2

    @property
    def exact(self) -> bool:
        """Whether numbers are kept exactly and AppleDouble members are skipped; before, an id above
        2**53 became null and 1e300 an infinite float32."""
        return self.format_version >= 3

    def as_begun(self, there: Plan) -> Plan:
        """This plan, or, if it asks for nothing that an archive of an older format version does
        not know, as that goes on: by the rules of its version."""
        if there.format_version >= self.format_version:
            return self
        if there.has_dropped:
            return dataclasses.replace(self, format_version=there.format_version)
        if self.icc == "refuse" or self.strict_images:
            return self
        return dataclasses.replace(self, format_version=1, **SECOND_FIELDS)

    def to_json(self) -> bytes:
        """``plan.json``.  Later fields are left out at their default: older archives keep their
        digest."""
        fields = dataclasses.asdict(self)
        fields = {k: v for k, v in fields.items() if k not in LATER_FIELDS or v != LATER_FIELDS[k]}
        if self.format_version < 2:
            fields = {k: v for k, v in fields.items() if k not in SECOND_FIELDS}
        return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Plan:
        """Read :meth:`to_json` output.

        Raises:
            PlanMismatch: written by a newer version of this software.
        """
        fields: dict[str, Any] = json.loads(data)
        if fields.get("format_version", 0) > FORMAT_VERSION:
            raise PlanMismatch(
                f"archive format {fields['format_version']} is newer than this software "
                f"(format {FORMAT_VERSION}): update it"
            )
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        if fields.get("format_version", 1) < 2:
            fields = {**SECOND_FIELDS, "format_version": 1, **fields}
        return cls(**fields)

    @property
    def digest(self) -> str:
        """sha256 of the plan, in every table's footer."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def differences(self, other: Plan) -> list[str]:
        """``field: mine, theirs`` for each field that differs."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [f"{k}: {mine[k]!r}, there {theirs[k]!r}" for k in mine if mine[k] != theirs[k]]


def listing_digest(specs: list[ShardSpec]) -> str:
    """sha256 over the sorted listing; what 'the same input' means."""
    digest = hashlib.sha256()
    for spec in sorted(specs, key=lambda s: s.url):
        digest.update(f"{spec.url}\0{spec.size}\0{spec.etag}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class ShardFailure:
    """What a replica sends back instead of a result."""

    shard_id: str
    url: str
    kind: str  # "transient", "fatal", "error" or "lost": see driver.decide
    message: str
    attempt: int


@dataclass(frozen=True)
class Resources:
    """What a run is given; none of it changes a byte of the output."""

    replicas: int = 1
    device: str = "cpu"
    gpus_per_replica: float | None = None  # None: one, if the device is a GPU
    local: bool = False  # processes of this machine instead of Ray's actors
    cpus_per_replica: float = 1.0
    threads: int = 1  # torch threads of a replica
    decode_threads: int = 2
    queue_bytes: int = 256 << 20
