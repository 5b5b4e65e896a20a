"""New images from the entropy model, into code tables: an archive whose shards have no source.

    ShardSpec "generate:seed=7,first=0,count=256,..." -> Codec.complete, nothing known
        -> codes -> codec.entropy_encode -> Row -> write_table -> commit -> ShardResult

A shard's URL describes it, so that plan, listing, ledger and resume are those of any archive.
Image ``n`` has the key ``gen-00000n`` and a seed made of (seed, n), and completion is exact: any
number of replicas, devices and images a shard gives the same codes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.archive.table import BadTable, Row
from pipeline.plan import Facts, Plan, ShardResult, ShardSpec, Status
from pipeline.store.storage import Store
from pipeline.work.replica import Clock, Replica, batch_size
from pipeline.work.shard import payload_bytes, run_shard
from pqmim.completion.rule import TEMPERATURE_ONE, Rule

SCHEME = "generate:"


@dataclass(frozen=True)
class Request:
    """The images of one shard, or of a whole run."""

    seed: int
    first: int
    count: int
    height: int  # pixels
    width: int
    steps: int
    temperature: int  # in units of 1/256

    @property
    def url(self) -> str:
        """The name of the shard, which says all of it."""
        fields = dataclasses.asdict(self).items()
        return SCHEME + ",".join(f"{name}={value}" for name, value in fields)

    @classmethod
    def from_url(cls, url: str) -> Request:
        """Read :attr:`url`.

        Raises:
            BadTable: a shard of another kind.
        """
        try:
            pairs = (field.split("=") for field in url.removeprefix(SCHEME).split(","))
            return cls(**{name: int(value) for name, value in pairs})
        except (ValueError, TypeError) as error:
            raise BadTable(f"{url}: not a shard that jobs.generate described: {error}") from error

    def shards(self, images: int) -> Iterator[ShardSpec]:
        """The run in shards of so many images."""
        end = self.first + self.count
        for first in range(self.first, end, images):
            part = dataclasses.replace(self, first=first, count=min(images, end - first))
            digest = hashlib.sha256(part.url.encode()).hexdigest()[:8]
            size = 3 * part.count * part.height * part.width  # as RGB, for the progress
            yield ShardSpec(f"{key_of(first)}-{digest}", part.url, size, "")


def key_of(number: int) -> str:
    """The key of an image."""
    return f"gen-{number:06d}"


def seed_of(seed: int, number: int) -> int:
    """The seed of an image, of 64 bits."""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def generate_shard(
    spec: ShardSpec, plan: Plan, store: Store, replica: Replica, attempt: int = 1
) -> ShardResult:
    """Sample the images of one shard and commit its table; what is there already is returned.

    Raises:
        BadTable: the shard is not one of jobs.generate.
        pqmim.codec.NoPriorError: the weights hold no entropy model.
        others: see :func:`pipeline.work.shard.run_shard`.
    """
    request = Request.from_url(spec.url)

    def make(clock: Clock) -> tuple[list[Row], Facts]:
        rows = generate_rows(request, plan, replica, clock)
        return rows, Facts(
            {Status.OK.value: len(rows)}, clock.counts.pixels, clock.counts.code_bytes
        )

    return run_shard(spec, plan, store, replica, attempt, make)


def generate_rows(request: Request, plan: Plan, replica: Replica, clock: Clock) -> list[Row]:
    """The rows of new images, in order."""
    codec, rows = replica.codec, list[Row]()
    h, w = codec.grid(request.height, request.width)
    numbers = range(request.first, request.first + request.count)
    size = batch_size(plan.batch_pixels, request.height, request.width)
    temperature = request.temperature / TEMPERATURE_ONE
    for at in range(0, len(numbers), size):
        part = numbers[at : at + size]
        nothing = torch.zeros(len(part), h, w, plan.quality, dtype=torch.uint8)
        seeds = [seed_of(request.seed, number) for number in part]
        with clock.stage("encode"):
            codes = codec.complete(
                nothing, nothing.bool(), steps=request.steps, temperature=temperature, seed=seeds
            ).numpy()
        streams = (
            replica.entropy_encode(codes, plan.coding, clock) if plan.stores_bitstream else None
        )
        for place, number in enumerate(part):
            stream = None if streams is None else streams[place]
            rows.append(_row(number, request, plan, codes[place], stream))
        clock.advance(
            images=len(part), pixels=len(part) * request.height * request.width,
            code_bytes=payload_bytes(rows[-len(part) :]),
        )  # fmt: skip
    return rows


def _row(number: int, request: Request, plan: Plan, codes: np.ndarray, stream: bytes | None) -> Row:
    raw = codes.tobytes()
    return Row(
        key_of(number), Status.OK, None, request.width, request.height,
        grid_w=codes.shape[1], grid_h=codes.shape[0],
        codes=raw if plan.stores_codes else None, bitstream=stream, crc32=zlib.crc32(raw),
    )  # fmt: skip


def check_rule(request: Request) -> None:
    """Raises pqmim.completion.draw.CompletionError for values that cannot be drawn by."""
    Rule(request.steps, request.temperature / TEMPERATURE_ONE, request.seed)
