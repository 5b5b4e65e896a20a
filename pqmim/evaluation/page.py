"""One HTML page of a measurement: curves, BD-rates, crops at equal size, the worst images.

Everything is inside the file: plots as SVG, pictures as WebP.  Crops are lossless, the whole
pictures of the worst images are WebP of quality 95 (a page of Kodak has about 10 MB).  The page is
a pure function of the measurement.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from pqmim.evaluation import report
from pqmim.evaluation.coders import Coder, OperatingPoint
from pqmim.evaluation.published import Published
from pqmim.evaluation.rd import Curve, Sample, load_image

CROP = 256  # pixels a side
CROPPED_IMAGES, WORST_IMAGES = 4, 8
CROP_BPP = (0.15, 0.3)  # the nearest operating points of our codec are shown
RATES = (0.025, 1.6)  # bits per pixel, of the plots
LABELS = {"psnr": "PSNR, dB", "ms-ssim": "MS-SSIM, dB"}


@dataclass(frozen=True)
class Picture:
    """A picture and the line below it."""

    caption: str
    webp: bytes
    width: int


@dataclass(frozen=True)
class Row:
    """Pictures of one image side by side."""

    title: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """What the page shows of the images."""

    crops: tuple[Row, ...]
    worst: tuple[Row, ...]


def crops(coders: Sequence[Coder], samples: Sequence[Sample], folder: Path) -> Gallery:
    """Code the shown images once more; ``coders`` begins with ours."""
    ours = [s for s in samples if s.codec == coders[0].name]
    names = sorted({s.image for s in ours})
    step = max(1, len(names) // CROPPED_IMAGES)
    chosen = _points(ours)
    rows = [
        _crop_row(coders, samples, point, load_image(folder / name), name)
        for name in names[::step][:CROPPED_IMAGES]
        for point in chosen
    ]
    middle = {s.image: s.psnr for s in ours if s.point == chosen[-1]}
    worst = sorted(middle, key=lambda name: (middle[name], name))[:WORST_IMAGES]
    return Gallery(
        tuple(rows), tuple(_worst_row(coders[0], ours, load_image(folder / n), n) for n in worst)
    )


def render(
    curves: Sequence[Curve], known: Published | None, comparisons: Sequence[report.Comparison],
    gallery: Gallery, notes: Sequence[str],
) -> str:  # fmt: skip
    """The page."""
    drawn = "".join(plots(curves, known).values())
    listed = "".join(f"<li>{escape(c.name)}: {escape(c.description)}</li>" for c in curves)
    sections = [
        f"<h1>Rate and distortion</h1><p>{escape('; '.join(notes))}.</p><ul>{listed}</ul>{drawn}",
        f"<h2>BD-rate</h2><pre>{escape(report.bd_table(comparisons))}</pre>" if comparisons else "",
        f"<h2>Operating points</h2><pre>{escape(report.curve_table(curves))}</pre>",
        "<h2>At equal size</h2><p>Each codec with the file nearest to ours in bytes.</p>"
        + "".join(map(_row, gallery.crops)),
        "<h2>Worst images by PSNR</h2>" + "".join(map(_row, gallery.worst)),
    ]
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Rate and distortion</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1500px; margin: 2em auto; padding: 0 1em }}
pre {{ overflow-x: auto; font-size: 12px }}
svg {{ max-width: 49%; height: auto }}
.row {{ display: flex; flex-wrap: wrap; gap: 8px }}
figure {{ margin: 0 }} figcaption {{ font-size: 12px }}
img {{ max-width: 100%; height: auto }}
</style>
{"".join(sections)}
</html>
"""


def plots(curves: Sequence[Curve], known: Published | None) -> dict[str, str]:
    """An SVG by the name of each measure."""
    lines = list(curves)
    if known:
        lines += [c for c in known.curves if not known.plotted or c.name in known.plotted]
    return {measure: _plot(lines, len(curves), measure) for measure in report.MEASURES}


def _points(ours: Sequence[Sample]) -> list[OperatingPoint]:
    """Our operating points nearest to the rates of the crops, each once."""
    rates: dict[OperatingPoint, list[float]] = {}
    for s in ours:
        rates.setdefault(s.point, []).append(s.bpp)
    means = {point: float(np.mean(values)) for point, values in rates.items()}
    found = [min(means, key=lambda p: abs(np.log(means[p] / bpp))) for bpp in CROP_BPP]
    return list(dict.fromkeys(found))


def _crop_row(
    coders: Sequence[Coder], samples: Sequence[Sample], point: OperatingPoint, image: Tensor,
    name: str,
) -> Row:  # fmt: skip
    """One crop through all codecs at about the size of ours."""
    here = [s for s in samples if s.image == name]
    size = next(s.size for s in here if s.codec == coders[0].name and s.point == point)
    top, left = _busiest(image)
    pictures = [_picture("original", _cut(image, top, left))]
    for coder in coders:
        nearest = min(
            (s for s in here if s.codec == coder.name), key=lambda s: (abs(s.size - size), s.size)
        )
        decoded = coder.decode(coder.encode(image, nearest.point))
        caption = f"{coder.name} {nearest.bpp:.3f} bpp, {nearest.psnr:.2f} dB"
        pictures.append(_picture(caption, _cut(decoded, top, left)))
    return Row(f"{name}, near {8 * size / image[0].numel():.3f} bpp", tuple(pictures))


def _worst_row(coder: Coder, ours: Sequence[Sample], image: Tensor, name: str) -> Row:
    """One whole image at the lowest, the middle and the highest operating point."""
    points = [coder.points[i] for i in sorted({0, len(coder.points) // 2, len(coder.points) - 1})]
    pictures = [_picture("original", image, lossless=False)]
    for point in points:
        sample = next(s for s in ours if s.image == name and s.point == point)
        decoded = coder.decode(coder.encode(image, point))
        caption = f"{coder.name} {point}: {sample.bpp:.3f} bpp, {sample.psnr:.2f} dB"
        pictures.append(_picture(caption, decoded, lossless=False))
    return Row(name, tuple(pictures))


def _busiest(image: Tensor) -> tuple[int, int]:
    """Corner of the crop with the largest variance, on a grid of half crops."""
    height, width = image.shape[1:]
    corners = [
        (top, left)
        for top in range(0, max(1, height - CROP + 1), CROP // 2)
        for left in range(0, max(1, width - CROP + 1), CROP // 2)
    ]
    return max(corners, key=lambda c: float(_cut(image, *c).double().var()))


def _cut(image: Tensor, top: int, left: int) -> Tensor:
    return image[:, top : top + CROP, left : left + CROP]


def _picture(caption: str, image: Tensor, *, lossless: bool = True) -> Picture:
    file = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.save(file, "WEBP", lossless=lossless, quality=75 if lossless else 95)
    return Picture(caption, file.getvalue(), image.shape[2])


def _row(row: Row) -> str:
    figures = "".join(
        f'<figure style="width:{p.width if p.width <= CROP else 350}px">'
        f'<img src="data:image/webp;base64,{base64.b64encode(p.webp).decode()}" '
        f'alt="{escape(p.caption)}"><figcaption>{escape(p.caption)}</figcaption></figure>'
        for p in row.pictures
    )
    return f'<h3>{escape(row.title)}</h3><div class="row">{figures}</div>'


def _plot(curves: Sequence[Curve], measured: int, measure: str) -> str:
    """One SVG: measured curves solid, published ones dashed."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "pqmim", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.5, 5.5))
        axes = figure.subplots()
        for number, curve in enumerate(curves):
            points = sorted(p for p in report.knots(curve, measure) if RATES[0] < p[0] < RATES[1])
            if points:
                style = ("o-" if number else "o-k") if number < measured else "--"
                bpp, quality = zip(*points, strict=True)
                axes.plot(bpp, quality, style, label=curve.name, markersize=3, linewidth=1.2)
        axes.set(xscale="log", xlim=RATES, xlabel="bits per pixel", ylabel=LABELS[measure])
        axes.set_xticks([0.05, 0.1, 0.2, 0.3, 0.5, 1.0], ["0.05", "0.1", "0.2", "0.3", "0.5", "1"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = file.getvalue()
    return text[text.index("<svg") :]
