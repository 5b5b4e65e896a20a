"""What a replica says of its work and of itself, and nobody keeps: Counts while a shard is under
way, a Glance with its result, Alone at the replica's beginning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

K = TypeVar("K")
N = TypeVar("N", int, float)

BPP_STEP, PSNR_STEP, MOST_STEPS = 0.05, 1.0, 80  # of the histograms; the last step has the rest


@dataclass(frozen=True)
class Counts:
    """How far a shard has got: what its rows hold, and how much of its source was read."""

    images: int = 0  # that are in rows with status ok
    bad: int = 0  # rows with another status
    pixels: int = 0  # of the images
    code_bytes: int = 0
    source_bytes: int = 0  # read


@dataclass(frozen=True)
class Alone:
    """What a replica measured of its parts, each alone, when it came up."""

    encode: float = 0.0  # seconds a megapixel
    code: float = 0.0  # the same, of search and entropy model; 0 where there are no bitstreams
    cores: int = 1  # of its node
    threads: int = 1  # that it can keep busy
    on_cpu: bool = True


@dataclass(frozen=True)
class Glance:
    """What a person is shown of a shard, beside what its ledger entry says."""

    bpp: dict[int, int] = field(default_factory=dict)  # images by steps of bits a pixel
    psnr: dict[int, int] = field(default_factory=dict)  # the same of dB, where it was measured
    errors: tuple[tuple[str, str, str], ...] = ()  # key, status, error of the first bad rows


def add(totals: dict[K, N], more: Mapping[K, N]) -> None:
    """Add up by name."""
    for name, count in more.items():
        totals[name] = totals.get(name, 0) + count
