"""Frozen descriptions of a model, JSON in and out.

A config travels in the metadata of the checkpoint, so that a weights file is complete by itself.
Unknown fields are refused: a newer checkpoint must not be read as an older one.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from typing import Any

LATER = ("layers", "channels", "prices")


class ConfigError(ValueError):
    """A model description that is unknown or contradicts itself."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of the PQ-VAE (El-Nouby et al. 2023, section 3).

    The stride is ``stem * 2 ** (len(widths) - 1)``; raw rate ``m * log2(codewords) / stride**2``
    bpp at quality m.  ``subcodes=1`` is plain VQ, ``subcode_dims=1`` is scalar quantisation.

    The fields behind ``subcode_dims`` came later: JSON has them only where they say something, so
    that the fingerprints of older weights stay.
    """

    stem: int = 8  # side of the patch that one position of the first level sees
    widths: tuple[int, ...] = (192, 256)  # channels at strides stem, 2 stem, ...
    encoder_blocks: tuple[int, ...] = (2, 3)
    decoder_blocks: tuple[int, ...] = (4, 5)
    subcodes: int = 32  # M
    codewords: int = 256  # K
    subcode_dims: int = 8  # d: one layer of sub-codes shares out M * d channels of the latent
    layers: tuple[int, ...] = ()  # sub-codes of each; the next one codes what the last ones left
    channels: int = 0  # C of the latent, where layers share it; 0: M * d
    prices: tuple[float, ...] = ()  # of a bit, rising, that there are static code lengths for

    def __post_init__(self) -> None:
        levels = len(self.widths)
        if levels < 1 or {len(self.encoder_blocks), len(self.decoder_blocks)} != {levels}:
            raise ConfigError(
                f"widths {self.widths}, encoder_blocks {self.encoder_blocks} and decoder_blocks "
                f"{self.decoder_blocks} must have one entry a level"
            )
        if not 2 <= self.codewords <= 65536:
            raise ConfigError(f"codewords must be 2..65536, not {self.codewords}")
        if min(self.stem, self.subcodes, self.subcode_dims, *self.widths) < 1:
            raise ConfigError("stem, widths, subcodes and subcode_dims must be positive")
        if self.layers and (min(self.layers) < 1 or sum(self.layers) != self.subcodes):
            raise ConfigError(f"layers {self.layers} are not {self.subcodes} sub-codes in all")
        if bool(self.layers) != bool(self.channels) or not 0 <= self.channels < 2**15:
            raise ConfigError(f"layers {self.layers} and channels {self.channels}: both or none")
        if list(self.prices) != sorted({p for p in self.prices if p > 0}):
            raise ConfigError(f"prices {self.prices} must be above 0, and rise")

    @property
    def stride(self) -> int:
        """Pixels a side that one position of the code grid stands for (f)."""
        return int(self.stem * 2 ** (len(self.widths) - 1))

    @property
    def latent_dims(self) -> int:
        """Channels C of the latent."""
        return self.channels or self.subcodes * self.subcode_dims

    @property
    def spans(self) -> list[slice]:
        """The sub-codes of each layer."""
        ends = list(itertools.accumulate(self.layers or (self.subcodes,)))
        return [slice(first, end) for first, end in zip([0, *ends], ends, strict=False)]

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces (it enters the fingerprint)."""
        fields = dataclasses.asdict(self)
        fields = {k: v for k, v in fields.items() if v or k not in LATER}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> AutoencoderConfig:
        """Read :meth:`to_json` output.

        Raises:
            ConfigError: not JSON, unknown or missing fields.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            return cls(**fields)
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ConfigError(f"not an autoencoder description: {error}") from error
