"""``pqmim eval DIR``: rate, distortion and time of our codec beside others, on a folder of images.

    pqmim eval kodak/ --published default --output rd/     tables, JSON, CSV and a page with plots
    pqmim eval kodak/ --rates                              what the entropy model saves
    pqmim eval kodak/ --perceptual texture                 realism beside others, at equal bytes

The tables go to stdout, progress to stderr.  24 images of 768 x 512 take about a quarter of an hour
on two cores, most of it our codec's and AVIF's encoding.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from pqmim import metrics
from pqmim.codec import Codec
from pqmim.coding import schedule
from pqmim.evaluation import coders, features, perceptual, published, rate, rd, report
from pqmim.evaluation.coders import OperatingPoint
from pqmim.meter import Meter

PAGE = "index.html"


def evaluate(args: argparse.Namespace) -> int:
    """Measure, print the tables, and write the files if they are wanted."""
    names = [name for name in args.codecs.split(",") if name] if args.codecs else None
    others = coders.classical(names)
    asked = [_point(text) for text in args.quality or ()]
    known = published.load(args.published) if args.published else None
    paths = rd.image_paths(args.folder)
    if args.output and not args.perceptual:
        _needs_matplotlib()
    codec = Codec.load(args.weights, args.device)
    plan = schedule.FAST_PLAN if args.fast else schedule.DEFAULT_PLAN
    points = asked or coders.default_points(codec)
    if args.rates:
        rated = asked or rate.default_points(codec)
        results = rate.rates(codec, args.folder, rated, plan)
        sys.stdout.write(rate.table(results))
        return 0
    ours = coders.Model(codec, points, plan)
    if args.perceptual:
        return _perceptual(args, ours, others, paths)
    used: list[coders.Coder] = [ours, *others]
    meter = Meter("eval", None, "files", quiet=args.quiet)
    samples = rd.measure(used, paths, lambda text: meter.show(0, text))
    meter.close()
    curves = [rd.curve(coder, samples) for coder in used]
    references = [*curves[1:], *(known.curves if known else ())]
    comparisons = report.compare(curves[0], references)
    notes = _notes(samples, known)
    sys.stdout.write(_tables(curves, comparisons, notes))
    if args.output:
        from pqmim.evaluation import page

        report.write(args.output, curves, comparisons, samples)
        for name, plot in page.plots(curves, known).items():
            (args.output / f"{name}.svg").write_text(plot, encoding="utf-8")
        shown = page.crops(used, samples, args.folder)
        html = page.render(curves, known, comparisons, shown, notes)
        (args.output / PAGE).write_text(html, encoding="utf-8")
        sys.stdout.write(f"{args.output / PAGE}\n")
    return 0


def _perceptual(
    args: argparse.Namespace, ours: coders.Model, others: Sequence[coders.Pillow],
    paths: Sequence[Path],
) -> int:  # fmt: skip
    """What --perceptual measures, printed and, with --output, written."""
    network = features.Network() if args.perceptual == "features" else None
    meter = Meter("eval", None, "files", quiet=args.quiet)
    both = [ours, coders.Grained(ours)]
    rows = perceptual.measure(both, others, paths, network, lambda text: meter.show(0, text))
    meter.close()
    sys.stdout.write(perceptual.table(rows))
    if args.output:
        sys.stdout.write(f"{perceptual.write(rows, args.output)}\n")
    return 0


def _tables(
    curves: Sequence[rd.Curve], comparisons: Sequence[report.Comparison], notes: Sequence[str]
) -> str:
    parts = [report.curve_table(curves), *(f"{note}\n" for note in notes)]
    if comparisons:
        parts.append(report.bd_table(comparisons))
    return "\n".join(parts)


def _notes(samples: Sequence[rd.Sample], known: published.Published | None) -> list[str]:
    """What a reader of the figures must know."""
    sizes = {s.image: s.pixels for s in samples}
    small = sorted({s.image for s in samples if s.ms_ssim is None})
    notes = [f"{len(sizes)} images, torch on {torch.get_num_threads()} threads, the others on one"]
    if small:
        notes.append(
            f"no MS-SSIM: {len(small)} images have a side below {metrics.LEAST_SIDE} pixels, "
            f"{small[0]} for one"
        )
    if known and (warning := known.warning(len(sizes), set(sizes.values()))):
        notes.append(warning)
    return notes


def _point(text: str) -> OperatingPoint:
    quality, _, price = text.partition(":")
    try:
        return OperatingPoint(int(quality), float(price or 0))
    except ValueError:
        raise ValueError(f"--quality {text}: Q or Q:PRICE, as in 32:0.06") from None


def _needs_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the page of --output needs matplotlib: pip install 'pqmim[eval]'")
