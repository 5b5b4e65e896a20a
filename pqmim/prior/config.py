"""Frozen description of the masked entropy model, JSON in and out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from pqmim.autoencoder.config import ConfigError

WINDOW = 16  # positions a side that the model sees at once, and the period of the order
MIN_CODEWORDS = 3  # the encoder stands for a table with three columns
MAX_CODEWORDS = 256  # codes are bytes; the mask token is one more
MAX_DIMS = 1024  # exact sums of squares and of products (see pqmim.prior.exact)
MAX_HEAD_DIMS = 64


@dataclass(frozen=True)
class PriorConfig:
    """Shape of the masked transformer over windows of 16 x 16 positions."""

    subcodes: int = 32  # M
    codewords: int = 256  # K
    group: int = 4  # sub-codes that are sent together
    dims: int = 128
    heads: int = 4
    hidden: int = 512  # of the feed-forward layers
    local: tuple[bool, ...] = (True, False, True, False)  # per block: 8 neighbours too
    chain: bool = True  # a sub-code knows those of its group before it, at its own position

    def __post_init__(self) -> None:
        if not MIN_CODEWORDS <= self.codewords <= MAX_CODEWORDS:
            raise ConfigError(
                f"codewords must be {MIN_CODEWORDS}..{MAX_CODEWORDS}, not {self.codewords}"
            )
        if min(self.subcodes, self.group, self.dims, self.heads, self.hidden) < 1 or not self.local:
            raise ConfigError("a prior needs at least one sub-code, head, dimension and block")
        if self.subcodes % self.group:
            raise ConfigError(
                f"{self.subcodes} sub-codes do not divide into groups of {self.group}"
            )
        if self.dims % self.heads or self.dims > MAX_DIMS or self.head_dims > MAX_HEAD_DIMS:
            raise ConfigError(
                f"dims {self.dims} must be at most {MAX_DIMS}, a multiple of heads {self.heads}, "
                f"with at most {MAX_HEAD_DIMS} dims a head"
            )

    @property
    def head_dims(self) -> int:
        """Channels of one attention head."""
        return self.dims // self.heads

    @property
    def groups(self) -> int:
        """Groups of sub-codes."""
        return self.subcodes // self.group

    @property
    def together(self) -> int:
        """Sub-codes whose frequencies come at once: a group, or one where they are chained."""
        return 1 if self.chain else self.group

    def parts(self, span: slice) -> list[tuple[int, slice]]:
        """Sub-codes of one group, or the first of them, as they are coded: head and sub-codes."""
        return [
            (first // self.together, slice(first, min(first + self.together, span.stop)))
            for first in range(span.start, span.stop, self.together)
        ]

    @property
    def mask(self) -> int:
        """The token of a code that is not known yet, or never sent."""
        return self.codewords

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces (it enters the model id).

        Models from before there were chains do not mention them.
        """
        fields = dataclasses.asdict(self)
        if not self.chain:
            del fields["chain"]
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> PriorConfig:
        """Read :meth:`to_json` output.

        Raises:
            ConfigError: not JSON, unknown or missing fields.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            fields["local"] = tuple(fields["local"])
            return cls(**{"chain": False, **fields})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ConfigError(f"not a description of a prior: {error}") from error
