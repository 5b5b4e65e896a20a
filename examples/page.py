"""The demo's page: one run of the pipeline as something to look at.

Writes ``<out>/index.html`` and the pictures it shows under ``<out>/images/``.  The page is static
and asks the network for nothing: style and script stand in it, so the folder can be opened from
disk, mailed, or put on any web server.  Without JavaScript a pair stands side by side; with it,
the pair is one picture with a dividing line that follows the pointer or the arrow keys.

Layout, style and script are in ``page.html``; this file fills it.  Every text that comes from data
(keys, error messages, paths) is escaped: strangers write keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from pipeline.driver.limit import NAMES

TEMPLATE = Path(__file__).with_name("page.html")
STAGES = ("read", "decode", "encode", "measure", "code", "write")
MISSING = "-"
UNITS = ("B", "kB", "MB", "GB", "TB")
TINY = 100  # pixels of width below which a picture is enlarged without smoothing
SUFFIXES = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"RIFF": ".webp",
}  # by first bytes


@dataclass(frozen=True)
class Card:
    """One image, before and after."""

    key: str
    width: int
    height: int
    grid: str
    bpp: float
    psnr: float  # dB
    source_bytes: int
    code_bytes: int
    original: bytes  # the source file, as it was in the shard
    reconstruction: bytes  # PNG, or JPEG of high quality


@dataclass(frozen=True)
class ErrorRow:
    """One sample that has a row but no codes."""

    key: str
    status: str
    error: str
    shard: str


def write_page(
    out: Path,
    summary: Mapping[str, Any],
    cards: Sequence[Card],
    errors: Sequence[ErrorRow],
    files: Sequence[tuple[str, int]],
    not_held: str = "",
) -> Path:
    """Write the page of one run into the folder ``out`` and return the path of its index.html.

    ``summary`` is the run's summary.json, ``files`` the archive's objects as (relative path,
    bytes), ``not_held`` what the sources had and the codes have not.  A missing or null entry of
    the summary is shown as "-".  Pictures that an earlier page left in the same folder are removed.

    Raises:
        ValueError: the bytes of a card are neither PNG, JPEG nor WebP.
    """
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    for stale in images.glob("[0-9][0-9][0-9][0-9]-*"):
        stale.unlink()
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        totals=_totals(summary, cards),
        stages=_stages(summary),
        gallery="\n".join(_card(images, number, card) for number, card in enumerate(cards)),
        errors=_errors(errors) + _not_held(not_held),
        tree=f"<div>{_tree(files)}</div>",
        snippet=escape(_snippet(files)),
        footer=_footer(summary),
    )
    index = out / "index.html"
    index.write_text(page, encoding="utf-8")
    return index


def _number(value: float | None, digits: int = 0, unit: str = "") -> str:
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:,.{digits}f}{unit}"


def _size(count: float | None) -> str:
    """Bytes in decimal units, three figures."""
    if count is None:
        return MISSING
    if count < 1000:
        return f"{count:.0f} B"
    power = min(4, int(math.log10(count) // 3))
    scaled = count / 1000**power
    digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
    return f"{scaled:,.{digits}f} {UNITS[power]}"


def _ratio(larger: float | None, smaller: float | None) -> str:
    return f"{larger / smaller:.3g} times smaller" if larger and smaller else ""


def _totals(summary: Mapping[str, Any], cards: Sequence[Card]) -> str:
    """The figures under the headline: (name, value, remark)."""
    rows: Mapping[str, int] = summary.get("rows") or {}
    failed = sum(count for status, count in rows.items() if status != "ok")
    psnrs = [card.psnr for card in cards if math.isfinite(card.psnr)]
    mean = sum(psnrs) / len(psnrs) if psnrs else None
    of_limit, source, codes = (summary.get(k) for k in ("of_limit", "source_bytes", "code_bytes"))
    bound = NAMES.get(summary.get("bound_by") or "")
    tiles = [
        (
            "images",
            _number(summary.get("images")),
            f"{failed} with an error row" if rows else "",
        ),
        ("source", _size(source), "as JPEG and PNG files"),
        ("codes", _size(codes), _ratio(source, codes)),
        ("rate", _number(summary.get("bpp"), 3, " bpp"), "bits per pixel"),
        ("mean PSNR", _number(mean, 2, " dB"), f"of the {len(psnrs)} images below"),
        ("speed", _number(summary.get("images_per_s"), 1, " /s"), "images per second"),
        (
            "of the limit",
            _number(None if of_limit is None else 100 * of_limit, 0, " %"),
            "" if bound is None else f"which is {bound}",
        ),
        (
            "replicas",
            _number(summary.get("replicas")),
            f"on {summary.get('device') or MISSING}",
        ),
    ]
    return "\n".join(
        f"<div{' class=hero' if name == 'codes' else ''}><dt>{name}</dt>"
        f"<dd>{escape(value)}<small>{escape(remark)}</small></dd></div>"
        for name, value, remark in tiles
    )


def _stages(summary: Mapping[str, Any]) -> str:
    """The bar of stage times and its legend."""
    given: Mapping[str, float | None] = summary.get("seconds") or {}
    seconds = {stage: given.get(stage) for stage in STAGES}
    total = sum(value or 0.0 for value in seconds.values())
    if not total:
        return '<p class="note">The run has no stage times.</p>'
    bar = "".join(
        f'<span style="flex:{value / total:.4f};background:var(--{stage})"></span>'
        for stage, value in seconds.items()
        if value
    )
    legend = "".join(
        f'<li><i style="background:var(--{stage})"></i>{stage}'
        f"<span>{_number(value and 100 * value / total, 1, ' %')}, {_number(value, 2, ' s')}</span>"
        "</li>"
        for stage, value in seconds.items()
    )
    return f'<div class="bar" aria-hidden="true">{bar}</div>\n<ul class="legend">{legend}</ul>'


def _card(images: Path, number: int, card: Card) -> str:
    """Write the two pictures of a card and return its HTML.

    Files are named by position, never by key: a key may hold any character.
    """
    tags = []
    pictures = (("original", card.original), ("reconstruction", card.reconstruction))
    for role, data in pictures:
        path = images / f"{number:04d}-{role}{_suffix(data, card.key)}"
        path.write_bytes(data)
        tags.append(
            f'<img src="images/{path.name}" alt="{escape(card.key)}, {role}"'
            f' width="{card.width}" height="{card.height}" loading="lazy">'
        )
    tiny = " tiny" if card.width < TINY else ""
    return f"""<article class="card">
<div class="pair{tiny}" style="--shape:{card.width}/{card.height}">
{"".join(tags)}
<span class="tag first">original</span><span class="tag second">decoded</span>
<input type="range" min="0" max="100" value="50" aria-label="Compare {escape(card.key)}">
</div>
<div class="facts">
<h3>{escape(card.key)}</h3>
<dl><dt>bpp</dt><dd>{_number(card.bpp, 3)}</dd><dt>PSNR</dt><dd>{_number(card.psnr, 1, " dB")}</dd>
<dt>codes</dt><dd>{_size(card.code_bytes)}</dd></dl>
<p>{card.width} x {card.height}, grid {escape(card.grid)}, from {_size(card.source_bytes)}</p>
</div>
</article>"""


def _suffix(data: bytes, key: str) -> str:
    for magic, suffix in SUFFIXES.items():
        if data.startswith(magic):
            return suffix
    raise ValueError(f"card {key!r}: a picture begins with {data[:4]!r}; give PNG, JPEG or WebP")


def _not_held(words: str) -> str:
    return f'<p class="note">Not held by the codes: {escape(words)}.</p>' if words else ""


def _errors(errors: Sequence[ErrorRow]) -> str:
    if not errors:
        return '<p class="note"><b>None.</b> Every sample of this run was encoded.</p>'
    rows = "\n".join(
        f'<tr><td>{escape(row.key)}</td><td class="status">{escape(row.status)}</td>'
        f"<td><code>{escape(row.error)}</code></td><td>{escape(row.shard)}</td></tr>"
        for row in errors
    )
    head = "<tr><th>key</th><th>status</th><th>error</th><th>shard</th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead>\n<tbody>{rows}</tbody></table></div>'


def _tree(files: Sequence[tuple[str, int]]) -> str:
    """Nested lists, folders before the files beside them, each folder with the sum of its files."""
    folders: dict[str, list[tuple[str, int]]] = {}
    here = []
    for path, size in sorted(files):
        folder, slash, rest = path.partition("/")
        if slash:
            folders.setdefault(folder, []).append((rest, size))
        else:
            here.append((path, size))
    items = [
        _line(f"{folder}/", sum(size for _, size in inside), _tree(inside))
        for folder, inside in folders.items()
    ]
    items += [_line(name, size) for name, size in here]
    return f"<ul>{''.join(items)}</ul>"


def _line(name: str, size: int, inside: str = "") -> str:
    head = f"<div><code>{escape(name)}</code><span>{_size(size)}</span></div>"
    return f"<li>{head}{inside}</li>"


def _snippet(files: Sequence[tuple[str, int]]) -> str:
    """How to read the first code table, in five lines of pyarrow, run in the archive's folder."""
    tables = (path for path, _ in sorted(files) if path.startswith("codes/"))
    table = next(tables, "codes/SHARD.parquet")
    return f"""import numpy as np, pyarrow.parquet as pq
table = pq.read_table({table!r})
ok = [row for row in table.to_pylist() if row["status"] == "ok"]
codes = np.frombuffer(ok[0]["codes"], np.uint8)
codes = codes.reshape(ok[0]["grid_h"], ok[0]["grid_w"], -1)"""


def _footer(summary: Mapping[str, Any]) -> str:
    model, quality = (escape(str(summary.get(k) or MISSING)) for k in ("model", "quality"))
    wall = _number(summary.get("wall_s"), 1, " s")
    return f"Model <code>{model}</code>, quality {quality}, wall time {wall}."
