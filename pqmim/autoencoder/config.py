"""Frozen descriptions of a model, JSON in and out.

A config travels in the metadata of the checkpoint, so that a weights file is complete by itself.
Unknown fields are refused: a newer checkpoint must not be read as an older one.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


class ConfigError(ValueError):
    """A model description that is unknown or contradicts itself."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of the PQ-VAE (El-Nouby et al. 2023, section 3).

    The stride is ``stem * 2 ** (len(widths) - 1)``; raw rate ``m * log2(codewords) / stride**2``
    bpp at quality m.  ``subcodes=1`` is plain VQ, ``subcode_dims=1`` is scalar quantisation.
    """

    stem: int = 8  # side of the patch that one position of the first level sees
    widths: tuple[int, ...] = (192, 256)  # channels at strides stem, 2 stem, ...
    encoder_blocks: tuple[int, ...] = (2, 3)
    decoder_blocks: tuple[int, ...] = (4, 5)
    subcodes: int = 32  # M
    codewords: int = 256  # K
    subcode_dims: int = 8  # d: the latent has M * d channels

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

    @property
    def stride(self) -> int:
        """Pixels a side that one position of the code grid stands for (f)."""
        return int(self.stem * 2 ** (len(self.widths) - 1))

    @property
    def latent_dims(self) -> int:
        """Channels of the latent."""
        return self.subcodes * self.subcode_dims

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces (it enters the fingerprint)."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

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
