"""The loss ledger: what the sources had and the codes do not hold, counted and in words.

A row's ``dropped`` names it for one image (pqmim/pictures); a ledger entry has the sums of its
shard; verify, status and the demo's page say them, so that a person knows before the originals go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.archive.table import Row
from pipeline.plan import Status
from pipeline.signals import add

NOTED = "noted"
_WORDS = {  # kind -> one, many
    "icc": ("profile {icc}", "profiles {icc}"),
    "colour": ("colour space taken as sRGB", "colour spaces taken as sRGB"),
    "bits": ("image's bits beyond 8", "images' bits beyond 8"),
    "alpha": ("transparency (over white)", "transparencies (over white)"),
    "frames": ("animation's other frames", "animations' other frames"),
    "video": ("motion photo's video", "motion photos' videos"),
    "gain_map": ("gain map", "gain maps"),
    "rotated": ("orientation (turned upright)", "orientations (turned upright)"),
    NOTED: ("image whose pixels may be wrong (its row says why)",
            "images whose pixels may be wrong (their rows say why)"),
}  # fmt: skip


def count(rows: Iterable[Row]) -> dict[str, int]:
    """Encoded images by kind of loss; ``bits:16`` and ``bits:10`` are both ``bits``.

    Images with a note are counted as ``noted``.
    """
    counts: dict[str, int] = {}
    for row in rows:
        if row.status is Status.OK:
            add(counts, dict.fromkeys((kind.partition(":")[0] for kind in row.dropped or ()), 1))
            add(counts, {NOTED: 1} if row.noted else {})
    return counts


def in_words(counts: Mapping[str, int], icc: str) -> str:
    """``12 profiles converted, 3 animations' other frames``; empty where nothing is missing."""
    done = "ignored" if icc == "ignore" else "converted"
    return ", ".join(
        f"{counts[kind]} {words[counts[kind] != 1].format(icc=done)}"
        for kind, words in _WORDS.items()
        if counts.get(kind)
    )
