"""Image codecs behind one interface: an image and an operating point to file bytes, and back.

The classical ones come from Pillow at a ladder of qualities that spans 0.05 to 1.5 bpp on
photographs where the format reaches so low (JPEG ends near 0.17).  They get their stronger settings
where those are usual: optimised progressive JPEG, WebP with its slowest method.  Colour is 4:2:0,
AVIF runs at its default speed 6.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from pqmim.codec import Codec
from pqmim.coding import schedule
from pqmim.files import container
from pqmim.realism import grain


@dataclass(frozen=True)
class OperatingPoint:
    """What an encoder is asked for."""

    quality: int
    price: float = 0.0  # squared error that a bit is worth; 0: nearest codewords

    def __str__(self) -> str:
        return f"{self.quality}" + (f":{self.price:g}" if self.price else "")


# Prices of a bit that span 0.05 to 0.5 bpp on photographs, for half of the sub-codes and for all.
COARSE, FINE = (0.8, 0.4, 0.2), (0.12, 0.06, 0.03, 0.012)


def default_points(codec: Codec) -> list[OperatingPoint]:
    """Where our own codec is measured."""
    every = codec.config.subcodes
    coarse = [OperatingPoint(max(1, every // 2), price) for price in COARSE]
    return coarse + [OperatingPoint(every, price) for price in FINE]


class Coder(Protocol):
    """An image codec with its operating points, in the order of their rates."""

    @property
    def name(self) -> str:
        """Short, for tables and file names."""

    @property
    def description(self) -> str:
        """Versions and settings."""

    @property
    def points(self) -> Sequence[OperatingPoint]:
        """What is measured."""

    def encode(self, image: Tensor, point: OperatingPoint) -> bytes:
        """uint8 [3,H,W] -> a whole file."""

    def decode(self, data: bytes) -> Tensor:
        """Undo :meth:`encode`."""


class Model:
    """Our own codec: whole ``.pqm`` files."""

    name = "pqmim"

    def __init__(
        self, codec: Codec, points: Sequence[OperatingPoint],
        plan: Sequence[int] = schedule.DEFAULT_PLAN,
    ) -> None:  # fmt: skip
        self.codec, self.points, self.plan = codec, tuple(points), tuple(plan)
        self.description = f"model {codec.fingerprint[:16]}, stage plan {self.plan}"

    def encode(self, image: Tensor, point: OperatingPoint) -> bytes:
        """uint8 [3,H,W] -> ``.pqm``."""
        return self.codec.compress(image, point.quality, self.plan, price=point.price)

    def decode(self, data: bytes) -> Tensor:
        """``.pqm`` -> uint8 [3,H,W]."""
        return self.codec.decompress(data).cpu()


class Grained(Model):
    """The same files, decoded with grain (:mod:`pqmim.realism.grain`)."""

    name = "pqmim+grain"

    def __init__(self, of: Model, strength: float = grain.STRENGTH) -> None:
        super().__init__(of.codec, of.points, of.plan)
        self.strength = strength
        self.description += f", grain of strength {strength:g}"

    def decode(self, data: bytes) -> Tensor:
        """``.pqm`` -> uint8 [3,H,W]."""
        file, codes = container.parse(data), self.codec.decompress_codes(data)
        shown = self.codec.decode(codes[None], file.height, file.width)[0].cpu().numpy()
        stride = self.codec.config.stride
        return torch.from_numpy(grain.grained(shown, codes.numpy(), stride, self.strength))


@dataclass(frozen=True)
class Pillow:
    """A format that Pillow writes."""

    name: str
    format: str
    qualities: tuple[int, ...]
    options: dict[str, object]
    plugin: str = ""  # module that adds the format to Pillow
    package: str = ""  # that brings the plugin

    @property
    def points(self) -> Sequence[OperatingPoint]:
        """The ladder."""
        return [OperatingPoint(quality) for quality in self.qualities]

    @property
    def description(self) -> str:
        """What wrote the files."""
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"Pillow {Image.__version__}, {self.format}, {options}"

    def missing(self) -> str:
        """Why it cannot be used here, with the way out; empty if it can."""
        if self.plugin and importlib.util.find_spec(self.plugin) is None:
            return f"{self.name} needs a Pillow plugin: pip install {self.package}"
        if self.format in ("WEBP", "AVIF") and not features.check(self.format.lower()):
            return f"Pillow {Image.__version__} was built without {self.name}: install its wheel"
        return ""

    def encode(self, image: Tensor, point: OperatingPoint) -> bytes:
        """uint8 [3,H,W] -> a file of the format."""
        if self.plugin:
            importlib.import_module(self.plugin)
        file = io.BytesIO()
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.save(file, self.format, quality=point.quality, **self.options)
        return file.getvalue()

    def decode(self, data: bytes) -> Tensor:
        """A file of the format -> uint8 [3,H,W]."""
        with Image.open(io.BytesIO(data)) as picture:
            array = np.array(picture.convert("RGB"))
        return torch.from_numpy(array).permute(2, 0, 1).contiguous()


CLASSICAL = {
    coder.name: coder
    for coder in (
        Pillow(
            "jpeg", "JPEG", (1, 5, 10, 15, 20, 30, 40, 50, 60, 70, 78, 85),
            {"subsampling": "4:2:0", "optimize": True, "progressive": True},
        ),
        Pillow("webp", "WEBP", (0, 2, 5, 10, 20, 35, 50, 65, 78, 88), {"method": 6}),
        Pillow(
            "avif", "AVIF", (10, 20, 30, 37, 44, 50, 56, 62, 68),
            {"subsampling": "4:2:0", "speed": 6, "max_threads": 1},
        ),
        Pillow(
            "jxl", "JXL", (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 88, 93),
            {"effort": 7}, "pillow_jxl", "pillow-jxl-plugin",
        ),
    )
}  # fmt: skip


def classical(names: Sequence[str] | None) -> list[Pillow]:
    """The named codecs; None: all that this machine has.

    Raises:
        ValueError: an unknown one, or one that is not installed.
    """
    if names is None:
        return [coder for coder in CLASSICAL.values() if not coder.missing()]
    unknown = [name for name in names if name not in CLASSICAL]
    if unknown:
        raise ValueError(f"no codec {unknown[0]!r}; there are {', '.join(CLASSICAL)}")
    missing = [CLASSICAL[name].missing() for name in names]
    if any(missing):
        raise ValueError("; ".join(filter(None, missing)))
    return [CLASSICAL[name] for name in names]
