"""Charts as SVG inside a page: a curve over time and a histogram, in the page's colours.

Each has a title and a sentence for those who do not see it, and its numbers follow as a table that
can be opened.  Sizes are in units of the drawing, which the page scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDE, NARROW, HEIGHT = 1000, 480, 240  # of a curve, of a histogram
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 34  # margins
BARS = 40  # of a histogram, at most


@dataclass(frozen=True)
class Chart:
    """What a chart is called and says."""

    name: str  # of its ids
    title: str
    says: str  # the sentence
    x: str  # what its axes are
    y: str


def curve(chart: Chart, points: Sequence[tuple[float, float]], end: float) -> str:
    """Steps over time: (seconds, value until the next one), up to the ``end``."""
    top = nice(max((value for _, value in points), default=0.0))
    plot_w, plot_h = WIDE - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(seconds: float, value: float) -> str:
        x = LEFT + plot_w * seconds / max(end, 1e-9)
        return f"{x:.1f},{TOP + plot_h * (1 - value / top):.1f}"

    steps = []
    for (begin, value), after in zip(points, [*(p[0] for p in points[1:]), end], strict=True):
        steps += [at(begin, value), at(after, value)]
    line = " L".join(steps)
    floor = f"L{at(end, 0)} L{at(points[0][0], 0)} Z" if points else ""
    drawn = f'<path class="area" d="M{line} {floor}"/><path class="line" d="M{line}"/>'
    labels = "".join(
        f'<text class="tick" text-anchor="{"end" if s > 0.93 * end else "middle"}" '
        f'x="{at(s, 0).split(",")[0]}" y="{HEIGHT - 14}">{span(s)}</text>'
        for s in times(end)
    )
    rows = [(f"{span(begin)}", number(value)) for begin, value in points]
    return _figure(chart, WIDE, _grid(top, WIDE) + (drawn if points else "") + labels, rows)


def histogram(chart: Chart, counts: dict[int, int], step: float, most: int) -> str:
    """Counts by number of the step; the step ``most`` has everything above, too."""
    first, last = min(counts), max(counts)
    merged = math.ceil((last - first + 1) / BARS)
    first -= first % merged
    bars: dict[int, int] = {}
    for place, count in counts.items():
        bars[(place - first) // merged] = bars.get((place - first) // merged, 0) + count
    slots = max(max(bars) + 1, 8)
    top = nice(max(bars.values()))
    plot_h, slot = HEIGHT - TOP - BOTTOM, (NARROW - LEFT - RIGHT) / slots
    drawn, labels, rows = "", "", []
    for place in range(slots):
        count, low = bars.get(place, 0), (first + place * merged) * step
        after = first + (place + 1) * merged
        high = " and more" if after > most else f" to {after * step:g}"
        tall, x = plot_h * count / top, LEFT + slot * place
        if count:
            drawn += (
                f'<rect class="column" x="{x + 1:.1f}" y="{TOP + plot_h - tall:.1f}" '
                f'width="{slot - 2:.1f}" height="{tall:.1f}"/>'
            )
            rows.append((f"{low:g}{high}", f"{count:,}"))
        if place % math.ceil(slots / 8) == 0:
            labels += (
                f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{HEIGHT - 14}">'
                f"{low:g}</text>"
            )
    return _figure(chart, NARROW, _grid(top, NARROW) + drawn + labels, rows)


def _grid(top: float, width: int) -> str:
    """Lines and labels of the vertical axis."""
    lines = ""
    for part in range(5):
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - part / 4)
        lines += (
            f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" text-anchor="end" x="{LEFT - 8}" y="{y + 4:.1f}">'
            f"{short(top * part / 4)}</text>"
        )
    return lines


def _figure(chart: Chart, width: int, drawn: str, rows: Sequence[tuple[str, str]]) -> str:
    """The drawing, its words and its numbers."""
    table = "".join(f"<tr><th scope=row>{a}</th><td>{b}</td></tr>" for a, b in rows)
    name = chart.name
    return f"""<figure>
<figcaption>{escape(chart.y)} <span class="muted">by {escape(chart.x)}</span></figcaption>
<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-says">
<title id="{name}-title">{escape(chart.title)}</title>
<desc id="{name}-says">{escape(chart.says)}</desc>
{drawn}</svg>
<details><summary>As numbers</summary><div class="scroll"><table>
<caption class="unseen">{escape(chart.title)}</caption>
<thead><tr><th scope="col">{escape(chart.x)}</th><th scope="col">{escape(chart.y)}</th></tr></thead>
<tbody>{table}</tbody></table></div></details>
</figure>"""


def nice(value: float) -> float:
    """The least number that is not below and has four round parts."""
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (power * step for step in (1, 2, 3, 4, 6, 8, 10, 20))
    return next(step for step in steps if value <= step * (1 + 1e-9))


def times(end: float) -> list[float]:
    """About six round times from 0 to the end, in seconds."""
    rounds = (1, 2, 5, 10, 20, 60, 120, 300, 600, 1200, 3600, 7200, 10800, 21600, 43200, 86400)
    step = next((r for r in rounds if end / r <= 7), 86400 * max(1, math.ceil(end / 7 / 86400)))
    return [n * step for n in range(int(end / step) + 1)]


def span(seconds: float) -> str:
    """A duration, in the two largest units that it fills."""
    if seconds < 59.5:
        return f"{number(seconds)} s"
    whole = round(seconds)
    for unit, length, less, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {less}" if rest else "")
    return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")


def short(value: float) -> str:
    """A number of an axis."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{number(value / size)}{unit}"
    return number(value)


def number(value: float) -> str:
    """Three figures, or all before the point."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
