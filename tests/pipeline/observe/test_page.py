"""A run's page: of a real job, of a crafted one with hostile names, and in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.driver.fleet import Fleet
from pipeline.driver.report import Progress
from pipeline.observe import charts, history, page
from pipeline.observe.history import POINTS, SLOWEST, Bad, History, Point
from pipeline.plan import Plan, ShardResult
from pipeline.signals import MOST_STEPS, Counts, Glance
from pipeline.store.storage import Store
from tests.examples.test_page import Page
from tests.infra import tools
from tests.pipeline.driver.test_advice import CASES, plan
from tests.pipeline.driver.test_run import result, spec
from tests.pipeline.observe.test_exporter import job

HOSTILE = '<script>alert(1)</script> "quoted" & $totals {{x}}'


def crafted(**changes: Any) -> tuple[dict[str, Any], History, Plan]:
    """A run of which everything can be shown."""
    summary, *_ = CASES["image decoding, on the cores of a GPU's machine"]
    summary = {**summary, "rows": {"ok": 10, "decode_error": 3, "too_large": 1}, "retries": 7}
    summary |= {"damaged": ["/in/before.tar", f"/in/{HOSTILE}.tar"], "quarantined": ["/in/q.tar"]}
    found = History()
    found.curve = [Point(10.0 * n, 2500 * n * n, 9_000_000 * n, 2) for n in range(11)]
    found.bpp, found.psnr = {2: 5, 3: 40, MOST_STEPS: 1}, {26: 1, 27: 2, 28: 7}
    for number in range(3):
        found.shard(result(spec(f"s{number}")), 90.0 + 1000 * number)
    bad = Bad(HOSTILE, "decode_error", f"no picture: {HOSTILE}", "/in/s0.tar")
    found.bad = {"decode_error": [bad]}
    found.damaged = [(f"/in/{HOSTILE}.tar", "truncated")]
    found.quarantined = [("/in/q.tar", "killed three replicas")]
    return summary | changes, found, plan(measure="psnr")


def rendered(**changes: Any) -> tuple[str, Page]:
    html = page.render(*crafted(**changes), page.About("run-1", f"s3://bucket/{HOSTILE}", ""))
    return html, Page(html)


def test_a_job_leaves_a_page_that_shows_what_it_did(here: None, tmp_path: Path) -> None:
    summary = job(tmp_path, "--measure", "psnr")
    html = Store(str(tmp_path / "out")).get(f"runs/{summary['id']}/report.html").decode()
    shown = Page(html)
    assert shown.open == [] and "3 of 3 shards" in shown.text and summary["id"] in shown.text
    assert "Samples without codes: 2 decode_error" in shown.text and "0-bad" in shown.text
    assert "Shards damaged: 1" in shown.text and "truncated" in shown.text
    assert f"{summary['bpp']:.3f} bpp" in shown.text and summary["advice"] in shown.text
    (rates,) = re.findall(r'id="bpp-says">([^<]*)<', html)
    assert rates.startswith("6 images from ") and 'id="psnr-says">6 images from ' in html
    entries = [json.loads(p.read_text()) for p in (tmp_path / "out").glob("ledger/*.json")]
    assert len(entries) == 3 and not any("glance" in entry for entry in entries)


def test_strangers_text_is_text_and_nothing_comes_from_the_network() -> None:
    html, shown = rendered()
    assert shown.open == [] and shown.attributes("script") == [] and shown.attributes("img") == []
    assert shown.text.count(HOSTILE) == 5  # title, archive, key, error, damaged shard
    assert not re.search(r"https?:|@import|url\(|\bsrc=|<link", html)


def test_the_verdict_the_counts_and_what_went_wrong_are_said() -> None:
    _, shown = rendered()
    for text in [
        "Bound by image decoding, at 88% of what that would allow.", "machines with more cores",
        "4 more could not be encoded", "Samples without codes: 3 decode_error, 1 too_large",
        "Shards damaged: 2", "/in/before.tar", "killed three replicas", "shards tried again7",
        "34 min 50 s", "PSNR, dB",
    ]:  # fmt: skip
        assert text in shown.text.replace("\n", " "), text
    tables = shown.attributes("table")
    assert len(tables) == shown.text.count("As numbers") + 5


def test_a_run_that_did_nothing_has_a_page() -> None:
    progress = Progress(4, done_before=4)
    summary = progress.summary(plan(), "stopped")
    about = page.About("run-1", "/out", "all images are bad; check --image-key")
    shown = Page(page.render(summary, History(), plan(), about))
    assert shown.open == [] and about.message in shown.text and shown.attributes("svg") == []
    for text in ["too short for a curve", "No pictures were encoded", "not measured", "Nothing."]:
        assert text in shown.text


def test_charts_have_words_and_their_numbers() -> None:
    html, shown = rendered()
    svgs = shown.attributes("svg")
    assert len(svgs) == 5 and all(svg["role"] == "img" for svg in svgs)
    for svg in svgs:
        for name in str(svg["aria-labelledby"]).split():
            assert re.search(rf'id="{name}">[^<]+<', html)
    (says,) = re.findall(r'id="speed-says">([^<]*)<', html)
    assert says == (
        "images a second: at most 4,750 at 1 min 30 s, at least 250 at 0 s, 4,750 at the end"
    )
    assert "<tr><th scope=row>4 and more</th><td>1</td></tr>" in html
    assert 'id="psnr-says">10 images from 26 to 29 dB, the median between 28 and 29<' in html


@pytest.mark.parametrize("seconds", [0.5, 7, 60, 3599, 3600, 90_000, 5e6])
def test_axes_have_round_numbers(seconds: float) -> None:
    ticks = charts.times(seconds)
    assert ticks[0] == 0 and 1 <= len(ticks) <= 9 and ticks[-1] <= seconds
    top = charts.nice(seconds)
    assert seconds <= top <= 2 * seconds


def test_durations_and_numbers_are_readable() -> None:
    assert [charts.span(s) for s in (0, 2.5, 59.9, 61, 7200, 90_061, 604_800)] == [
        "0 s", "2.5 s", "1 min", "1 min 1 s", "2 h", "1 d 1 h", "7 d",
    ]  # fmt: skip
    assert [charts.short(n) for n in (0, 0.25, 950, 1500, 25_000, 1e6, 2.5e9)] == [
        "0", "0.25", "950", "1.5k", "25k", "1M", "2.5G",
    ]  # fmt: skip


def test_a_million_shards_take_the_memory_of_a_few_hundred() -> None:
    found, progress, fleet = History(), Progress(10**6, started=0.0), Fleet()
    glance = Glance({3: 9, 4: 1}, {30: 10}, (("k", "decode_error", "bad"), ("l", "too_large", "")))
    shard = result(spec("s"))
    for number in range(100_000):
        now = number * 6.0
        done = ShardResult(**{**vars(shard), "glance": glance, "outcome": "damaged"})
        progress.rows["ok"] = 10 * number
        found.shard(done, float(number % 7919))
        found.given_up(spec("q"), "poison")
        found.look(progress, fleet, 1, now)
    assert POINTS <= len(found.curve) < 2 * POINTS and found.curve[0].at == 0.0
    assert found.curve[-1].at > 0.98 * now
    assert len(found.slowest) == SLOWEST and min(found.slowest).seconds == 7918.0
    assert found.bpp == {3: 900_000, 4: 100_000} and found.psnr == {30: 1_000_000}
    assert {k: len(rows) for k, rows in found.bad.items()} == dict.fromkeys(
        ("decode_error", "too_large"), history.NAMED
    )
    assert len(found.damaged) == len(found.quarantined) == history.NAMED


def test_what_is_in_flight_is_on_the_curve() -> None:
    found, progress = History(), Progress(2, started=100.0)
    progress.moved(Counts(), Counts(5, 0, 500, 50, 900))
    found.look(progress, Fleet(), 1, 101.0)
    progress.moved(Counts(5, 0, 500, 50, 900), Counts())
    progress.shard_done(result(spec("s")), 102.0, 2.0)
    found.end(progress, 103.0)
    assert [(p.at, p.images, p.source_bytes) for p in found.curve] == [(1, 5, 900), (3, 10, 1000)]


PROBE = """<script>
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= .04045 ? c / 12.92
  : ((c + .055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
function ground(element) {
  for (let at = element; at; at = at.parentElement) {
    const color = rgb(getComputedStyle(at).backgroundColor);
    if (color.length < 4 || color[3] > 0) return color;
  }
}
const faint = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!own || element.closest("script, title, desc")) continue;
  const style = getComputedStyle(element);
  const ink = element.closest("svg") ? style.fill : style.color;
  const pair = [light(rgb(ink)), light(ground(element))];
  const contrast = (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
  if (contrast < 4.5) faint.push(element.textContent + " " + contrast.toFixed(2));
}
const cut = [...document.querySelectorAll("svg text")].filter(t => {
  const box = t.getBoundingClientRect(), frame = t.ownerSVGElement.getBoundingClientRect();
  return box.left < frame.left - 1 || box.right > frame.right + 1;
}).map(t => t.textContent);
const columns = [...document.querySelectorAll(".column")].map(c => c.getBBox().height);
document.body.innerHTML = "FOUND" + JSON.stringify({
  faint, cut, fetched: performance.getEntriesByType("resource").length,
  wide: document.documentElement.scrollWidth - innerWidth,
  dark: light(ground(document.body)) < .2, columns: columns.length, tall: Math.max(...columns),
}) + "END";
</script>"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_it_legibly_on_any_screen(tmp_path: Path, scheme: str, width: int) -> None:
    program = tools.command("chromium-headless-shell")
    html, _ = rendered()
    path = tmp_path / "report.html"
    path.write_text(html.replace("</body>", f"{PROBE}</body>"))
    dark = 0 if scheme == "dark" else 1
    done = subprocess.run(
        [program, "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         f"--window-size={width},900", f"--blink-settings=preferredColorScheme={dark}",
         "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = json.loads(re.findall("FOUND(.*)END", done.stdout)[-1].replace("&lt;", "<"))
    assert found["dark"] is (scheme == "dark")
    assert found["faint"] == [] and found["cut"] == [] and found["wide"] <= 0
    assert found["fetched"] == 0 and found["columns"] == 5 and found["tall"] > 80
