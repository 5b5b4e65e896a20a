"""What a replica says of itself while it works: Counts, and at its beginning Alone."""

from __future__ import annotations

from dataclasses import dataclass


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
