"""The demo's page, read back with an HTML parser."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from examples.page import Card, ErrorRow, write_page

SUMMARY: dict[str, Any] = {
    "images": 4,
    "rows": {"ok": 3, "decode_error": 1},
    "seconds": {"read": 1.0, "decode": 2.0, "encode": 6.0, "code": 0.5, "write": 0.5},
    "wall_s": 7.5,
    "images_per_s": 12.5,
    "of_limit": 0.926,
    "bound_by": "encode",
    "source_bytes": 4_630_000,
    "code_bytes": 359_000,
    "bpp": 0.251,
    "replicas": 2,
    "device": "cpu",
    "quality": 8,
    "model": "1f0e7a3c",
}
HOSTILE = ["a/b \"quoted\" 'key' & more", "<script>alert(1)</script>", "../../etc/$totals"]
FILES = [("plan.json", 812), ("codes/b.parquet", 2000), ("codes/a<b>.parquet", 1500)]


class Page(HTMLParser):
    """Tags with their attributes, the text outside script and style, and the nesting."""

    VOID = {"meta", "img", "input", "br", "link"}

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def picture(form: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (48, 32), "teal").save(out, form)
    return out.getvalue()


def card(key: str, **changes: Any) -> Card:
    fields: dict[str, Any] = {
        "key": key,
        "width": 48,
        "height": 32,
        "grid": "3 x 2 x 8",
        "bpp": 0.25,
        "psnr": 30.0,
        "source_bytes": 71_800,
        "code_bytes": 48,
        "original": picture("JPEG"),
        "reconstruction": picture("PNG"),
    }
    return Card(**{**fields, **changes})


def written(out: Path, **changes: Any) -> Page:
    arguments: dict[str, Any] = {
        "summary": SUMMARY,
        "cards": [card(key) for key in HOSTILE],
        "errors": [ErrorRow("bad<b>", "decode_error", "<script>steal()</script> & co", "s.tar")],
        "files": FILES,
    }
    index = write_page(out, **{**arguments, **changes})
    assert index == out / "index.html"
    return Page(index.read_text(encoding="utf-8"))


def test_page_parses_and_closes_every_tag(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert page.open == []
    assert len(page.attributes("article")) == len(HOSTILE)


def test_hostile_keys_errors_and_paths_are_shown_as_text(tmp_path: Path) -> None:
    page = written(tmp_path)
    for text in [*HOSTILE, "bad<b>", "<script>steal()</script> & co", "a<b>.parquet"]:
        assert text in page.text
    assert len(page.attributes("script")) == 1
    assert [attrs["alt"] for attrs in page.attributes("img")][::2] == [
        f"{key}, original" for key in HOSTILE
    ]


def test_every_picture_is_a_file_beside_the_page_with_the_given_bytes(tmp_path: Path) -> None:
    page = written(tmp_path)
    sources = [str(attrs["src"]) for attrs in page.attributes("img")]
    assert len(set(sources)) == 2 * len(HOSTILE)
    assert {f"images/{path.name}" for path in (tmp_path / "images").iterdir()} == set(sources)
    assert (tmp_path / sources[0]).read_bytes() == picture("JPEG")
    assert (tmp_path / sources[1]).read_bytes() == picture("PNG")


def test_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    written(tmp_path)
    source = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(|src=\"(?!images/)", source)


def test_totals_and_stage_shares_come_from_the_summary(tmp_path: Path) -> None:
    cards = [card("one", psnr=20.0), card("two", psnr=25.0), card("three", psnr=float("nan"))]
    page = written(tmp_path, cards=cards)
    for text in ["4.63 MB", "359 kB", "12.9 times smaller", "0.251 bpp", "22.50 dB", "12.5 /s"]:
        assert text in page.text
    assert "93 %" in page.text
    assert "1 with an error row" in page.text
    assert "60.0 %, 6.00 s" in page.text
    bar = [attrs["style"] for attrs in page.attributes("span") if "style" in attrs]
    assert bar[2] == "flex:0.6000;background:var(--encode)"


def test_missing_values_are_shown_as_a_dash(tmp_path: Path) -> None:
    page = written(tmp_path, summary={"of_limit": None}, cards=[], errors=[], files=[])
    values = re.findall(r"<dd>(.*?)<small>", (tmp_path / "index.html").read_text())
    assert values == ["-"] * 8
    assert "None." in page.text
    assert "no stage times" in page.text


def test_second_page_leaves_no_picture_of_the_first(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "images" / "mine.txt").write_text("kept")
    written(tmp_path, cards=[card("only")])
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["0000-original.jpg", "0000-reconstruction.png", "mine.txt"]


def test_archive_is_listed_as_a_tree_with_folder_sums(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert "codes/3.50 kB" in page.text
    assert "plan.json812 B" in page.text
    assert "pq.read_table('codes/a<b>.parquet')" in page.text


def test_snippet_on_the_page_reads_a_code_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = written(tmp_path, files=[("codes/it's.parquet", 1)])
    rows = [
        {"status": "decode_error", "grid_h": 0, "grid_w": 0, "codes": None},
        {"status": "ok", "grid_h": 2, "grid_w": 3, "codes": bytes(range(24))},
    ]
    (tmp_path / "codes").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "codes" / "it's.parquet")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(page.text[page.text.index("import numpy") : page.text.rindex("Model ")], names)
    assert names["codes"].shape == (2, 3, 4)
    assert names["codes"][1, 2].tolist() == [20, 21, 22, 23]


def test_bytes_that_are_no_picture_are_refused_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="card 'notes'"):
        written(tmp_path, cards=[card("notes", original=b"field notes")])


def test_what_the_codes_do_not_hold_is_said(tmp_path: Path) -> None:
    words = "12 profiles converted, 3 animations' other frames"
    assert words in written(tmp_path, not_held=words).text
    assert "Not held" not in written(tmp_path).text
