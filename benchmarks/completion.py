"""What completion and 200 bytes look like on photographs, beside WebP and AVIF.

    python -m benchmarks.completion /data/kodak --out report [--images 4] [--docs docs/completion]

Prints two tables and writes ``report/index.html`` with the pictures:

- PSNR and MS-SSIM against the share of codes that was sent, in the order of a stream (coarse groups
  first, every group in five quincunx stages), for four fills of the rest;
- the best file of at most 200 bytes at 256 x 256 and at full size, beside the smallest files that
  WebP and AVIF can make of the same pixels.

``--docs`` writes the tables and a few small pictures into the documentation.  Costs about 10 s an
image on one core for the files, and a minute an image for the curve.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from pqmim.codec import Codec
from pqmim.coding import schedule
from pqmim.completion import filling, masks
from pqmim.completion.filling import Fill
from pqmim.completion.rule import Rule
from pqmim.evaluation.rd import load_folder
from pqmim.files import budget
from pqmim.metrics import LEAST_SIDE, ms_ssim, psnr

log = logging.getLogger("benchmarks.completion")

FILLS: dict[str, Fill] = {
    "absent": "absent",
    "mean": "mean",
    "drawn": Rule(steps=8, temperature=1.0, seed=0),
    "most probable": Rule(steps=1, temperature=0.0),
}
SHARES = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0625, 0.03125)
BYTES = 200
PICTURES = 4  # in the documentation
PICTURE_SIDE = 256  # of those


@dataclass(frozen=True)
class Row:
    """One picture made of one image."""

    image: str
    what: str
    bytes: int
    psnr: float
    ms_ssim: float
    pixels: Tensor


def measure(original: Tensor, shown: Tensor) -> tuple[float, float]:
    """PSNR in dB and MS-SSIM; nan where the image is too small for it."""
    shown = shown.cpu()
    similar = ms_ssim(original, shown) if min(original.shape[1:]) >= LEAST_SIDE else float("nan")
    return psnr(original.numpy(), shown.numpy()), similar


def square(pixels: Tensor) -> Tensor:
    """The middle square at 256 x 256."""
    side = min(pixels.shape[1:])
    top, left = ((n - side) // 2 for n in pixels.shape[1:])
    return filling.resize(pixels[:, top : top + side, left : left + side], 256, 256)


def curve(codec: Codec, name: str, pixels: Tensor) -> Iterator[tuple[float, Row]]:
    """Every share and fill of one image."""
    height, width = pixels.shape[1:]
    codes = codec.encode(pixels[None]).cpu()
    shape = (codes.shape[1], codes.shape[2], codes.shape[3])
    group = codec.needed_prior().config.group
    plan = (schedule.QUINCUNX,) * schedule.groups_of(shape[2], group)
    stages = len(schedule.stage_groups(shape[2], plan, group))
    kept = [masks.first_stages(shape, plan, group, n) for n in range(stages + 1)]
    for share in SHARES:
        known = min(kept, key=lambda mask: abs(mask.mean() - share))
        for label, fill in FILLS.items():
            there = None if known.all() else torch.from_numpy(known)[None]
            shown = filling.picture(codec, codes, there, (height, width), fill).cpu()
            yield share, Row(name, label, 0, *measure(pixels, shown), shown)


def small_files(codec: Codec, name: str, pixels: Tensor) -> Iterator[Row]:
    """200 bytes, and the smallest file of WebP and AVIF."""
    choice = budget.search(codec, pixels, BYTES)
    shown = codec.decompress(choice.data).cpu()
    stream = choice.stream
    label = f"pqmim, {stream.rows} x {stream.columns} x {stream.quality} codes"
    yield Row(name, label, len(choice.data), *measure(pixels, shown), shown)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    formats = [("WebP", "WEBP", {"quality": 0, "method": 6})]
    if features.check("avif"):
        formats.append(("AVIF", "AVIF", {"quality": 0, "speed": 0}))
    for label, kind, options in formats:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        with Image.open(file) as decoded:
            shown = torch.from_numpy(np.array(decoded.convert("RGB"))).permute(2, 0, 1)
        size = len(file.getvalue())
        yield Row(name, f"{label}, quality 0", size, *measure(pixels, shown), shown)


def curve_table(points: Sequence[tuple[float, Row]]) -> str:
    """Means over the images, PSNR in dB / MS-SSIM."""
    lines = ["| codes sent | " + " | ".join(FILLS) + " |", "|---" * (len(FILLS) + 1) + "|"]
    for share in SHARES:
        cells = []
        for label in FILLS:
            rows = [row for at, row in points if at == share and row.what == label]
            dB = float(np.mean([row.psnr for row in rows]))
            cells.append(f"{dB:.2f} / {np.mean([row.ms_ssim for row in rows]):.3f}")
        lines.append(f"| {100 * share:.1f} % | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def files_table(rows: Sequence[Row]) -> str:
    """Means over the images; the size of pqmim's files is the largest."""
    lines = ["| | bytes | PSNR dB | MS-SSIM |", "|---|---|---|---|"]
    for codec in ("pqmim", "WebP", "AVIF"):
        mine = [row for row in rows if row.what.startswith(codec)]
        if not mine:
            continue
        sizes = [row.bytes for row in mine]
        size = f"at most {max(sizes)}" if codec == "pqmim" else f"{np.mean(sizes):.0f}"
        dB, similar = (np.mean([getattr(row, of) for row in mine]) for of in ("psnr", "ms_ssim"))
        lines.append(f"| {codec} | {size} | {dB:.2f} | {similar:.3f} |")
    return "\n".join(lines) + "\n"


def jpeg(pixels: Tensor, side: int | None = None) -> bytes:
    """For a page; at most ``side`` pixels a side."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if side:
        image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()


def figure(row: Row) -> str:
    """One picture of the page."""
    data = base64.b64encode(jpeg(row.pixels)).decode()
    size = f"{row.bytes} bytes, " if row.bytes else ""
    caption = html.escape(f"{row.image} {row.what}: {size}{row.psnr:.2f} dB")
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}"><figcaption>{caption}'
        "</figcaption></figure>\n"
    )


def page(tables: dict[str, str], rows: Sequence[Row]) -> str:
    """One HTML file, nothing to load."""
    style = (
        "figure{display:inline-block;margin:4px}img{max-width:384px}body{font-family:sans-serif}"
    )
    heads = "".join(f"<h2>{html.escape(t)}</h2><pre>{v}</pre>" for t, v in tables.items())
    figures = "".join(figure(row) for row in rows)
    return f"<!doctype html><meta charset=utf-8><style>{style}</style>{heads}{figures}"


def write_docs(folder: Path, tables: dict[str, str], rows: Sequence[Row]) -> None:
    """Figures as Markdown, and small pictures, for the documentation."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"**{title}**\n\n{table}\n" for title, table in tables.items())
    shown = []
    for row in rows:
        name = f"{Path(row.image).stem}-{row.what.split(',')[0].replace(' ', '-').lower()}.jpg"
        (folder / name).write_bytes(jpeg(row.pixels, PICTURE_SIDE))
        shown.append(f"![{row.image}, {row.what}, {row.bytes} bytes]({name})")
    (folder / "figures.md").write_text(text + "\n".join(shown) + "\n")


def run(codec: Codec, folder: Path, images: int | None) -> tuple[dict[str, str], list[Row]]:
    """Tables by title, and the rows at 256 x 256 and at full size."""
    points: list[tuple[float, Row]] = []
    small: list[Row] = []
    full: list[Row] = []
    for name, pixels in list(load_folder(folder))[:images]:
        small += small_files(codec, name, square(pixels))
        full += small_files(codec, name, pixels)
        points += curve(codec, name, pixels)
        log.info("%s done", name)
    tables = {
        "Share of the codes sent, PSNR dB / MS-SSIM": curve_table(points),
        f"{BYTES} bytes, 256 x 256": files_table(small),
        f"{BYTES} bytes, full size": files_table(full),
    }
    return tables, small + full


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page")
    parser.add_argument("--images", type=int, help="only so many")
    parser.add_argument("--docs", type=Path, help="folder for figures.md and small pictures")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tables, rows = run(Codec.load(args.weights, args.device), args.folder, args.images)
    for title, table in tables.items():
        log.info("%s\n%s", title, table)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "index.html").write_text(page(tables, rows))
    if args.docs:
        squares = rows[: len(rows) // 2]
        write_docs(args.docs, tables, squares[: 3 * PICTURES])


if __name__ == "__main__":
    main()
