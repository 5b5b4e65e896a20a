"""``pqmim eval DIR``: rate, distortion and time of our codec beside others, on a folder of images.

    pqmim eval kodak/ --published default --output rd/     tables, JSON, CSV and a page with plots
    pqmim eval kodak/ --rates                              what the entropy model saves

The tables go to stdout, progress to stderr.  24 images of 768 x 512 take about a quarter of an hour
on two cores, most of it our codec's and AVIF's encoding.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pqmim import metrics
from pqmim.codec import Codec
from pqmim.coding import schedule
from pqmim.evaluation import coders, published, rate, rd, report
from pqmim.evaluation.coders import CLASSICAL, OperatingPoint

PAGE = "index.html"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``pqmim eval``."""
    parser.add_argument("folder", type=Path, help="PNG, JPEG, ... images")
    parser.add_argument(
        "--codecs", type=_names, metavar="NAME,...",
        help=f"to compare with, of {','.join(CLASSICAL)} (all that are installed)",
    )  # fmt: skip
    parser.add_argument(
        "--published", metavar="FILE",
        help="compare with published curves: a JSON file, or 'default' for those of Kodak",
    )  # fmt: skip
    parser.add_argument(
        "--quality", nargs="+", type=_point, metavar="Q[:PRICE]",
        help="operating points: sub-codes, and the price of a bit (a spread over all)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR", help="JSON, CSV and a page go there")
    parser.add_argument("--rates", action="store_true", help="what the entropy model saves instead")
    parser.add_argument(
        "--float-prior", type=Path, metavar="FILE",
        help="with --rates: also the prior in floats, the checkpoint.pt of its training",
    )  # fmt: skip
    parser.add_argument("--fast", action="store_true", help="fewer stages")
    parser.add_argument("--weights", default="default", help="path or name (%(default)s)")
    parser.add_argument("--device", default="cpu", help="%(default)s")
    parser.set_defaults(call=evaluate)


def evaluate(args: argparse.Namespace) -> int:
    """Measure, print the tables, and write the files if they are wanted."""
    others = coders.classical(args.codecs)
    known = published.load(args.published) if args.published else None
    paths = rd.image_paths(args.folder)
    if args.output:
        _needs_matplotlib()
    codec = Codec.load(args.weights, args.device)
    plan = schedule.FAST_PLAN if args.fast else schedule.DEFAULT_PLAN
    points = args.quality or coders.default_points(codec)
    if args.rates:
        rated = args.quality or rate.default_points(codec)
        prior = rate.float_prior(args.float_prior) if args.float_prior else None
        results = rate.rates(codec, args.folder, rated, plan, prior)
        sys.stdout.write(rate.table(results))
        return 0
    ours = coders.Model(codec, points, plan)
    used: list[coders.Coder] = [ours, *others]
    with _Progress() as progress:
        samples = rd.measure(used, paths, progress)
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


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _point(text: str) -> OperatingPoint:
    quality, _, price = text.partition(":")
    return OperatingPoint(int(quality), float(price or 0))


def _needs_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the page of --output needs matplotlib: pip install 'pqmim[eval]'")


class _Progress:
    """One line on a terminal that rewrites itself; nothing elsewhere."""

    def __enter__(self) -> Callable[[str], None]:
        return self._show

    def __exit__(self, *_: object) -> None:
        self._show("")

    def _show(self, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
