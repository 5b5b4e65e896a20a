"""``pqmim eval DIR --perceptual``: realism and texture beside other codecs, at equal bytes.

At each of our operating points every other codec gets, image by image, the bytes that our file has:
the best quality whose file is not larger.  A codec whose smallest files are larger is left out of
that point.  So a row says what a viewer would see of the same bytes.

    pqmim eval kodak/ --perceptual texture       what needs no network (pqmim.evaluation.texture)
    pqmim eval kodak/ --perceptual features      also network features (pqmim.evaluation.features)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from pqmim import metrics
from pqmim.evaluation import features, texture
from pqmim.evaluation.coders import Model, OperatingPoint, Pillow
from pqmim.evaluation.features import Features, Network
from pqmim.evaluation.rd import load_image

KINDS = ("texture", "features")
FILE = "perceptual.json"


@dataclass(frozen=True)
class Row:
    """One codec at the bytes of one of our operating points: means over the images."""

    point: str
    codec: str
    bpp: float
    psnr: float  # dB
    gradients: float  # this and the next three: texture.Texture
    wavelets: float
    spectra: float
    detail: float
    colour: float  # levels: the largest mean error of a channel over an image, with its sign
    layers: float | None = None
    fd: float | None = None  # FD-EffLite
    kd: float | None = None


@dataclass
class _Found:
    """What is gathered of one codec at one point."""

    bpps: list[float] = dataclasses.field(default_factory=list)
    psnrs: list[float] = dataclasses.field(default_factory=list)
    textures: list[texture.Texture] = dataclasses.field(default_factory=list)
    colours: list[float] = dataclasses.field(default_factory=list)
    layers: list[float] = dataclasses.field(default_factory=list)
    pooled: list[Features] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class _Seen:
    """An original, as the network sees it: once, for all that is compared with it."""

    network: Network
    maps: list[Tensor]


def measure(
    ours: Sequence[Model], others: Sequence[Pillow], paths: Sequence[Path],
    network: Network | None, progress: Callable[[str], None],
) -> list[Row]:  # fmt: skip
    """Every codec on every image at the bytes of every operating point of ours.

    Args:
        ours: the first one's files give the bytes; the others decode them in other ways.

    Raises:
        ValueError: an image that cannot be read, or with a side below 32 pixels.
    """
    found: dict[tuple[str, str], _Found] = {}
    pooled = []
    for number, path in enumerate(paths, 1):
        image, seen = load_image(path), None
        if network is not None:
            pooled.append(features.gathered(network, [image]))
            seen = _Seen(network, network.maps(image[None]))
        for point in ours[0].points:
            progress(f"{number}/{len(paths)} {path.name} {point}")
            data = ours[0].encode(image, point)
            for model in ours:
                own = found.setdefault((str(point), model.name), _Found())
                _note(own, image, model.decode(data), len(data), seen)
            for coder in others:
                own = found.setdefault((str(point), coder.name), _Found())
                if (file := at_most(coder, image, len(data))) is not None:
                    _note(own, image, coder.decode(file), len(file), seen)
    original = np.concatenate(pooled) if pooled else None
    whole = {key: own for key, own in found.items() if len(own.bpps) == len(paths)}
    return [_row(*key, own, original) for key, own in whole.items()]


def at_most(coder: Pillow, image: Tensor, size: int) -> bytes | None:
    """The file of the highest quality, 0 to 100, of so many bytes at most; None if there is none.

    By bisection: sizes grow with quality.
    """
    low, high, best = 0, 100, None
    while low <= high:
        quality = (low + high) // 2
        data = coder.encode(image, OperatingPoint(quality))
        if len(data) <= size:
            best, low = data, quality + 1
        else:
            high = quality - 1
    return best


def _note(own: _Found, image: Tensor, shown: Tensor, size: int, seen: _Seen | None) -> None:
    a, b = image.numpy(), shown.numpy()
    own.bpps.append(8 * size / image[0].numel())
    own.psnrs.append(metrics.psnr(a, b))
    own.textures.append(texture.texture(a, b))
    errors = (b.astype(np.float64) - a).mean((1, 2))
    own.colours.append(float(errors[np.abs(errors).argmax()]))
    if seen is not None:
        own.layers.append(seen.network.layers(seen.maps, shown))
        own.pooled.append(features.gathered(seen.network, [shown]))


def _row(point: str, codec: str, own: _Found, original: Features | None) -> Row:
    mean = {
        field.name: float(np.mean([getattr(t, field.name) for t in own.textures]))
        for field in dataclasses.fields(texture.Texture)
    }
    row = Row(
        point, codec, float(np.mean(own.bpps)), float(np.mean(own.psnrs)), **mean,
        colour=float(own.colours[int(np.abs(own.colours).argmax())]),
    )  # fmt: skip
    if original is None:
        return row
    shown = np.concatenate(own.pooled)
    enough = len(original) >= 2
    return dataclasses.replace(
        row, layers=float(np.mean(own.layers)),
        fd=features.frechet(original, shown) if enough else None,
        kd=features.kernel(original, shown) if enough else None,
    )  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """For a person; distances are better the smaller they are."""
    head = ("point    codec          bpp   PSNR  gradients  wavelets  spectra  detail  colour  "
            "layers  FD-EffLite  KD-EffLite")  # fmt: skip
    lines = [head]
    for r in rows:
        shown = [(r.layers, "6.4f"), (r.fd, "10.3f"), (r.kd, "10.5f")]
        network = [f"{v:{form}}" if v is not None else f"{'-':>{form[:-3]}s}" for v, form in shown]
        lines.append(
            f"{r.point:8s} {r.codec:12s} {r.bpp:.4f}  {r.psnr:5.2f}  {r.gradients:9.3f}  "
            f"{r.wavelets:8.2f}  {r.spectra:7.2f}  {r.detail:6.2f}  {r.colour:6.2f}  "
            + "  ".join(network)
        )
    return "\n".join(lines) + "\n"


def write(rows: Sequence[Row], folder: Path) -> Path:
    """The rows as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    path.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    return path
