"""A run as a page to look at, ``runs/<id>/report.html``: one file, nothing from the network.

Layout and colours, light and dark, are in ``report.html``; charts in charts.py; this file fills
them.  Every text that comes from data (keys, errors, URLs) is escaped: strangers write keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from pipeline.driver.limit import NAMES
from pipeline.observe import charts
from pipeline.observe.charts import Chart, number, span
from pipeline.observe.history import NAMED, History
from pipeline.plan import Plan
from pipeline.signals import BPP_STEP, MOST_STEPS, PSNR_STEP

TEMPLATE = Path(__file__).with_name("report.html")
STEPS, LEAST_S = 60, 5.0  # of a curve over time, and the shortest one: replicas tell every 5 s
RESOURCES = {
    "device": "Encoder and entropy model, on every replica", "cores": "Cores that replicas can use",
    "machine": "All cores of the machines", "storage": "Reading, two shards a replica",
    "idle": "Replicas without a shard",
}  # fmt: skip
EVENTS = {
    "retries": "shards tried again", "storage_retries": "storage requests repeated",
    "second_copies": "second copies of late shards", "replicas_lost": "replicas lost",
    "skipped": "AppleDouble members (._*, of macOS) skipped",
}  # fmt: skip


@dataclass(frozen=True)
class About:
    """What a run is called, and why it ended if not at its end."""

    run: str
    archive: str
    message: str = ""


def render(summary: Mapping[str, Any], history: History, plan: Plan, about: About) -> str:
    """The page of a run, from its summary.json and what was gathered beside it."""
    state = str(summary["state"])
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{state}: {about.archive}, run {about.run}"),
        heading=f"{summary['shards_done']:,} of {summary['shards']:,} shards", state=escape(state),
        about=_about(history, about), totals=_totals(summary), verdict=_verdict(summary),
        curves=_curves(history), stages=_stages(summary), histograms=_histograms(history, plan),
        slowest=_slowest(history), wrong=_wrong(summary, history), footer=_footer(summary, plan),
    )  # fmt: skip


def _about(history: History, about: About) -> str:
    """Below the headline."""
    began = f"{history.began:%Y-%m-%d %H:%M:%S} UTC"
    text = f"<p>{escape(about.archive)}, run <code>{escape(about.run)}</code>, begun {began}</p>"
    return text + (f'<p class="message">{escape(about.message)}</p>' if about.message else "")


def _totals(summary: Mapping[str, Any]) -> str:
    """The figures: name, value, remark."""
    bad = sum(summary["rows"].values()) - summary["images"]
    source, codes = summary["source_bytes"], summary["code_bytes"]
    held = summary.get("of_limit")
    tiles = [
        ("images", f"{summary['images']:,}", f"{bad:,} more could not be encoded" if bad else ""),
        ("speed", f"{number(summary['images_per_s'])} /s",
         f"{number(summary['megapixels_per_s'])} megapixels/s"),
        ("took", span(summary["work_s"]), f"{summary['replicas']:,} replicas on {summary['device']}"
         + (f", {span(up)} in all" if (up := summary.get("replica_s")) else "")),
        ("rate", f"{summary['bpp']:.3f} bpp", "bits per pixel"),
        ("codes", size(codes),
         f"from {size(source)} of source, tables {size(summary['table_bytes'])}"),
        ("of the limit", "-" if held is None else f"{held:.0%}",
         NAMES.get(str(summary.get("bound_by")), "not known for this run")),
    ]  # fmt: skip
    return "\n".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{escape(remark)}</small></dd></div>"
        for name, value, remark in tiles
    )


def size(count: float) -> str:
    """Bytes, in decimal units."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{number(count / length)} {unit}"
    return f"{count:.0f} B"


def _verdict(summary: Mapping[str, Any]) -> str:
    """What bounds the run, how far it is from that, what to change."""
    held = summary.get("of_limit")
    if held is None:
        return _note("No pictures were encoded, so that there is no limit to compare with.")
    bound = NAMES[str(summary["bound_by"])]
    meters = "".join(
        f'<li><span>{RESOURCES[name]}</span><span class="track" aria-hidden="true"><i '
        f'style="width:{min(share, 1.0):.1%}"></i></span><span>{share:.0%}</span></li>'
        for name, share in summary["busy"].items()
    )
    return f"""<div class="panel">
<p class="lead">Bound by <b>{bound}</b>, at {held:.0%} of what that would allow.</p>
<p>To go faster: {escape(summary["advice"])}.</p>
<ul class="meters" aria-label="Shares of the time that they were busy">{meters}</ul></div>"""


def _curves(history: History) -> str:
    """Images and bytes a second, and the replicas."""
    points = history.curve
    if len(points) < 2 or points[-1].at <= points[0].at:
        return _note("The run was too short for a curve.")
    end = points[-1].at
    step = max(min(LEAST_S, end / 4), end / STEPS)
    kept = [points[0]]
    for point in points[1:]:
        if point.at - kept[-1].at >= step or point is points[-1]:
            kept.append(point)
    pairs = list(zip(kept, kept[1:], strict=False))
    speed = [(a.at, max(b.images - a.images, 0) / (b.at - a.at)) for a, b in pairs if b.at > a.at]
    read = [
        (a.at, max(b.source_bytes - a.source_bytes, 0) / 1e6 / (b.at - a.at))
        for a, b in pairs if b.at > a.at
    ]  # fmt: skip
    replicas = [(a.at, float(b.replicas)) for a, b in pairs]
    drawn = [
        ("speed", "images a second", speed), ("read", "megabytes of source a second", read),
        ("replicas", "replicas up", replicas),
    ]  # fmt: skip
    return "".join(
        charts.curve(
            Chart(name, f"{what} over the run", _says(what, values), "time", what), values, end
        )
        for name, what, values in drawn
    )


def _says(what: str, values: Sequence[tuple[float, float]]) -> str:
    """A curve in a sentence."""
    high, low = max(values, key=lambda p: p[1]), min(values, key=lambda p: p[1])
    return (
        f"{what}: at most {number(high[1])} at {span(high[0])}, at least {number(low[1])} at "
        f"{span(low[0])}, {number(values[-1][1])} at the end"
    )


def _stages(summary: Mapping[str, Any]) -> str:
    """The bar of stage times and its legend."""
    seconds: Mapping[str, float] = summary["seconds"]
    total = sum(seconds.values())
    if not total:
        return _note("The run has no stage times.")
    bar = "".join(
        f'<span style="flex:{value / total:.4f};background:var(--{escape(stage)})"></span>'
        for stage, value in seconds.items() if value
    )  # fmt: skip
    legend = "".join(
        f'<li><i style="background:var(--{escape(stage)})"></i>{escape(stage)}'
        f"<span>{value / total:.1%}, {span(value)}</span></li>"
        for stage, value in seconds.items()
    )
    return f"""<div class="panel"><div class="bar" aria-hidden="true">{bar}</div>
<ul class="legend">{legend}</ul></div>
{_note("Added up over threads and replicas, waiting included.")}"""


def _histograms(history: History, plan: Plan) -> str:
    """Rates and qualities of the images."""
    drawn = ""
    if history.bpp:
        chart = Chart("bpp", "images by bits per pixel", _spread(history.bpp, BPP_STEP, "bpp"),
                      "bits per pixel", "images")  # fmt: skip
        drawn += charts.histogram(chart, history.bpp, BPP_STEP, MOST_STEPS)
    if history.psnr:
        chart = Chart("psnr", "images by PSNR in dB", _spread(history.psnr, PSNR_STEP, "dB"),
                      "PSNR, dB", "images")  # fmt: skip
        drawn += charts.histogram(chart, history.psnr, PSNR_STEP, MOST_STEPS)
    note = "" if plan.measure == "psnr" else _note("PSNR was not measured (--measure psnr).")
    return (f'<div class="pair">{drawn}</div>' if drawn else "") + note


def _spread(counts: Mapping[int, int], step: float, unit: str) -> str:
    """A histogram in a sentence."""
    total, passed, middle = sum(counts.values()), 0, 0
    for place in sorted(counts):
        middle, passed = place, passed + counts[place]
        if 2 * passed >= total:
            break
    return (
        f"{total:,} images from {min(counts) * step:g} to {(max(counts) + 1) * step:g} {unit}, the "
        f"median between {middle * step:g} and {(middle + 1) * step:g}"
    )


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of escaped cells; a heading that ends in ``#`` has numbers below it."""
    classes = [' class="number"' if name.endswith("#") else "" for name in head]
    names = "".join(
        f'<th scope="col"{c}>{name.removesuffix("#")}</th>'
        for name, c in zip(head, classes, strict=True)
    )
    cells = [
        "".join(f"<td{c}>{escape(cell)}</td>" for cell, c in zip(row, classes, strict=True))
        for row in rows
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in cells)
    return f"""<div class="scroll" tabindex="0"><table class="wide">
<caption class="unseen">{escape(caption)}</caption>
<thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>"""


def _slowest(history: History) -> str:
    """The shards that took longest, from hand-out to return."""
    if not history.slowest:
        return _note("No shard came back.")
    rows = [
        (slow.url, span(slow.seconds), f"{slow.images:,}", f"{slow.stage} {slow.share:.0%}",
         f"{slow.attempt}")
        for slow in sorted(history.slowest, reverse=True)
    ]  # fmt: skip
    head = ("shard", "took#", "samples#", "most of it", "attempt#")
    return _table("The slowest shards", head, rows)


def _wrong(summary: Mapping[str, Any], history: History) -> str:
    """Rows without codes, shards, retries."""
    parts = []
    bad = {status: count for status, count in summary["rows"].items() if status != "ok"}
    if bad:
        counts = ", ".join(f"{count:,} {status}" for status, count in sorted(bad.items()))
        rows = [(b.key, b.status, b.error, b.url) for some in history.bad.values() for b in some]
        parts.append(f"<h3>Samples without codes: {escape(counts)}</h3>")
        parts.append(_table("The first of each", ("key", "status", "error", "shard"), rows))
    for name, found in (("damaged", history.damaged), ("quarantined", history.quarantined)):
        if summary[name]:
            parts.append(f"<h3>Shards {name}: {len(summary[name]):,}</h3>")
            left = [(url, "") for url in summary[name] if url not in dict(found)]
            named = [*found, *left][:NAMED]
            parts.append(_table(f"The first shards {name}", ("shard", "reason"), named))
    events = [(what, f"{summary[name]:,}") for name, what in EVENTS.items() if summary.get(name)]
    if events:
        parts.append("<h3>On the way</h3>" + _table("On the way", ("what", "times#"), events))
    return "".join(parts) or _note("Nothing.")


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'


def _footer(summary: Mapping[str, Any], plan: Plan) -> str:
    price = f", price {plan.price:g}" if plan.price else ""
    memory = summary["rss_bytes"]
    grown = f", at most {size(memory)} of memory a replica" if memory else ""
    model = escape(plan.model[:16])
    return f"Model <code>{model}</code>, quality {plan.quality}, {plan.store}{price}{grown}."
