"""Published curves to compare with, as their authors give them, never measured here.

The file that ships holds Kodak (24 images) with the source and licence of every row.  A file may
also be one result in CompressAI's format, or a plain mapping from names to curves.  A published
curve says something only about the images that it was measured on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pqmim.evaluation.rd import Curve, Point

DEFAULT = "default"


@dataclass(frozen=True)
class Published:
    """Curves and what they were measured on, as far as the file says."""

    curves: tuple[Curve, ...]
    plotted: frozenset[str]  # names worth a line in a plot; empty: all
    dataset: str = ""
    images: int = 0
    pixels: int = 0  # of each image

    def warning(self, images: int, pixels: set[int]) -> str:
        """Why these curves do not speak of such a folder; empty if they may."""
        if not self.images or (images == self.images and pixels == {self.pixels}):
            return ""
        return f"published curves are of another set of images ({self.dataset})"


def load(name: str) -> Published:
    """Curves of a file, or those that ship.

    Raises:
        ValueError: not such a file, with what is wrong.
        OSError: it cannot be opened.
    """
    if name == DEFAULT:
        source = resources.files("pqmim.evaluation") / "anchors" / "kodak.json"
        return parse(source.read_text(encoding="utf-8"), name)
    return parse(Path(name).read_text(encoding="utf-8"), name)


def parse(text: str, name: str) -> Published:
    """Curves of the text of a file.

    Raises:
        ValueError: not such a file, with what is wrong.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{name} must hold an object that maps names to curves")
    if "results" in data:
        rows = {str(data.get("name", Path(name).stem)): data["results"]}
    else:
        rows = data.get("curves", data)
    curves = tuple(_curve(label, row, name) for label, row in rows.items())
    return Published(
        curves, frozenset(data.get("plotted", ())), str(data.get("dataset", "")),
        int(data.get("images", 0)), int(data.get("pixels", 0)),
    )  # fmt: skip


def _curve(label: str, row: object, name: str) -> Curve:
    if not isinstance(row, Mapping):
        raise ValueError(f"{name}: curve {label!r} is not an object")
    bpp = _numbers(row, ("bpp",), label, name)
    psnr = _numbers(row, ("psnr-rgb", "psnr_rgb", "psnr"), label, name)
    similar: list[float | None] = [None] * len(bpp)
    if any(key in row for key in ("ms-ssim-rgb", "ms_ssim_rgb")):
        similar = list(_numbers(row, ("ms-ssim-rgb", "ms_ssim_rgb"), label, name))
    if not len(bpp) == len(psnr) == len(similar):
        raise ValueError(f"{name}: the lists of curve {label!r} differ in length")
    points = (Point("", *values) for values in zip(bpp, psnr, similar, strict=True))
    return Curve(label, str(row.get("source", "")), tuple(points))


def _numbers(row: Mapping[str, Any], keys: tuple[str, ...], label: str, name: str) -> list[float]:
    found = next((row[key] for key in keys if key in row), None)
    if not isinstance(found, list) or not all(isinstance(v, int | float) for v in found):
        raise ValueError(f"{name}: curve {label!r} has no list of numbers {keys[0]!r}")
    return [float(v) for v in found]
