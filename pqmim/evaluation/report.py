"""What a measurement says: text tables, JSON in CompressAI's result format, a CSV of every file.

BD-rates are given twice: over qualities that both codecs reach between 0.1 and 0.5 bpp, where
comparisons are usually made, and over all qualities that both reach.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pqmim import metrics
from pqmim.evaluation import bd
from pqmim.evaluation.rd import Curve, Sample

RANGE = (0.1, 0.5)  # bits per pixel
MEASURES = ("psnr", "ms-ssim")


@dataclass(frozen=True)
class Comparison:
    """BD-rates of our codec against one curve."""

    reference: str
    psnr: bd.Rate | None  # within RANGE; None: one of the two has no such figures
    psnr_all: bd.Rate | None
    ms_ssim: bd.Rate | None
    ms_ssim_all: bd.Rate | None


def knots(curve: Curve, measure: str) -> list[tuple[float, float]]:
    """(bpp, dB) of the points of a curve, as far as they are known."""
    if measure == "psnr":
        return [(p.bpp, p.psnr) for p in curve.points]
    return [(p.bpp, metrics.decibels(p.ms_ssim)) for p in curve.points if p.ms_ssim is not None]


def compare(ours: Curve, others: Sequence[Curve]) -> list[Comparison]:
    """BD-rates against each of the others."""
    return [
        Comparison(
            other.name,
            *(
                _rate(ours, other, measure, within)
                for measure in MEASURES
                for within in (RANGE, None)
            ),
        )
        for other in others
    ]


def _rate(
    ours: Curve, other: Curve, measure: str, within: tuple[float, float] | None
) -> bd.Rate | None:
    reference, test = knots(other, measure), knots(ours, measure)
    return bd.bd_rate(reference, test, within) if reference and test else None


def curve_table(curves: Sequence[Curve]) -> str:
    """Every operating point of every codec as text."""
    lines = ["codec   point     bpp    PSNR  MS-SSIM     dB  encode  decode  s/Mpx"]
    for curve in curves:
        for p in curve.points:
            similar = "     -       -" if p.ms_ssim is None else (
                f"{p.ms_ssim:.4f}  {metrics.decibels(p.ms_ssim):6.2f}"
            )  # fmt: skip
            lines.append(
                f"{curve.name:7s} {p.label:>5s}  {p.bpp:.4f}  {p.psnr:.2f}  {similar}"
                f"  {p.encode_s_per_mpx:6.3f}  {p.decode_s_per_mpx:6.3f}"
            )
    return "\n".join(lines) + "\n"


def bd_table(comparisons: Sequence[Comparison]) -> str:
    """BD-rates as text, with the qualities that they were found over."""
    low, high = RANGE
    lines = [
        "BD-rate against (negative: fewer bits than it), over qualities that both reach",
        f"{'':36s}{f'PSNR, {low}..{high} bpp':28s}{'PSNR, all':28s}"
        f"{f'MS-SSIM, {low}..{high} bpp':28s}MS-SSIM, all",
    ]
    for c in comparisons:
        cells = (c.psnr, c.psnr_all, c.ms_ssim, c.ms_ssim_all)
        lines.append(f"{c.reference:36s}" + "".join(f"{describe(r):28s}" for r in cells).rstrip())
    return "\n".join(lines) + "\n"


def describe(rate: bd.Rate | None) -> str:
    """One BD-rate with its range, or that there is none."""
    if rate is None:
        return "-"
    if rate.percent is None:
        return "no common quality"
    return f"{rate.percent:+.1f} % ({rate.low:.2f}..{rate.high:.2f} dB)"


def result(curve: Curve) -> dict[str, object]:
    """A curve in CompressAI's result format; times in seconds an image."""
    return {
        "name": curve.name,
        "description": curve.description,
        "results": {
            "bpp": [p.bpp for p in curve.points],
            "psnr-rgb": [p.psnr for p in curve.points],
            "ms-ssim-rgb": [p.ms_ssim for p in curve.points],
            "encoding_time": [p.encode_s for p in curve.points],
            "decoding_time": [p.decode_s for p in curve.points],
        },
    }


def write(
    folder: Path, curves: Sequence[Curve], comparisons: Sequence[Comparison],
    samples: Sequence[Sample],
) -> None:  # fmt: skip
    """``<codec>.json`` for each codec, ``bd-rates.json`` and ``images.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    for curve in curves:
        _write_json(folder / f"{curve.name}.json", result(curve))
    rates = {
        c.reference: {
            name: {"percent": rate.percent, "low_db": rate.low, "high_db": rate.high}
            for name, rate in vars(c).items()
            if isinstance(rate, bd.Rate)
        }
        for c in comparisons
    }
    _write_json(folder / "bd-rates.json", {"range_bpp": RANGE, "against": rates})
    with (folder / "images.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([
            "codec", "quality", "price", "image", "width", "height", "bytes", "bpp", "psnr",
            "ms_ssim", "encode_s", "decode_s",
        ])  # fmt: skip
        for s in samples:
            writer.writerow([
                s.codec, s.point.quality, s.point.price, s.image, s.width, s.height, s.size,
                f"{s.bpp:.6f}", f"{s.psnr:.4f}", "" if s.ms_ssim is None else f"{s.ms_ssim:.6f}",
                f"{s.encode_s:.6f}", f"{s.decode_s:.6f}",
            ])  # fmt: skip


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
