"""What a picture does not hold, from the row to the verdict; archives of format version 1 go on."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import common, encode, status
from jobs.common import work
from pipeline.archive import commit, losses, table
from pipeline.archive.table import Row
from pipeline.plan import (
    FORMAT_VERSION,
    SECOND_FIELDS,
    Plan,
    PlanMismatch,
    ShardResult,
    ShardSpec,
    Status,
)
from pipeline.proof import prover, tables
from pipeline.proof.prover import Prover
from pipeline.proof.verdict import Report
from pipeline.work import images
from pipeline.work.encoder import encode_shard
from pipeline.work.transcoder import Transcoder
from tests.archives import Archive, begin, encoded
from tests.corpus import jpeg, make_tar, picture
from tests.models import tiny_codec
from tests.picture_files import P3, icc, ramp

PROFILE = icc(b"RGB ", P3)


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    frames = [picture(40, 30, seed=i) for i in range(12)]
    alpha = Image.fromarray(ramp(30, 40, 4, 8).astype(np.uint8))
    deep = Image.fromarray((ramp(30, 40, 1, 16)[..., 0]).astype(np.uint16))
    odd = jpeg(40, 30)
    return {
        "plain.jpg": jpeg(40, 30, seed=1),
        "p3.jpg": saved(picture(40, 30), "JPEG", icc_profile=PROFILE),
        "p3-alpha.png": saved(alpha, "PNG", icc_profile=PROFILE),
        "animation.webp": saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "deep.png": saved(deep, "PNG"),
        "turned.jpg": jpeg(40, 30, exif_orientation=6),
        "odd.jpg": odd[:-2] + b"\x12\x34" * 30 + b"\xff\xd9",
        "broken.jpg": odd[:300] + b"\xff\xd9",
        "profile.png": saved(picture(40, 30), "PNG", icc_profile=b"x" * 300),
    }


DROPPED = {"p3": ("icc",), "p3-alpha": ("icc", "alpha"), "animation": ("frames:12",),
           "deep": ("bits:16",), "turned": ("rotated",)}  # fmt: skip
COUNTS = {"icc": 2, "alpha": 1, "frames": 1, "bits": 1, "rotated": 1, "noted": 2}


def tar(tmp_path: Path, name: str = "in") -> Path:
    path = tmp_path / name / "shard.tar"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(make_tar([*files().items()]))
    return path


def rows(archive: Archive) -> dict[str, Row]:
    return {row.key: row for row in table.read_rows(archive.table().read_bytes())}


def result(archive: Archive) -> ShardResult:
    return ShardResult.from_json(archive.ledger().read_bytes())


def report(archive: Archive) -> Report:
    """verify --full, without Ray."""
    work, plan = Prover("test", full=True, fraction=1.0, sources=True, min_psnr=0.0), archive.plan
    found = Report(plan, len(archive.specs), True, accept_failed=True)
    found.archive += tables.check_archive(archive.store, plan, archive.specs)
    for spec in archive.specs:
        work(spec, plan, archive.store, archive.replica)
        verdict = prover.read_record(archive.store, plan, spec, work)
        assert verdict is not None
        found.add(spec, verdict)
    return found


def test_rows_ledger_verdict_and_status_say_what_the_codes_do_not_hold(tmp_path, capsys):
    archive = encoded(tmp_path / "archive", [tar(tmp_path)])
    there = rows(archive)
    assert {key: row.dropped for key, row in there.items() if row.dropped} == DROPPED
    assert there["broken"].status is Status.DECODE_ERROR and there["broken"].dropped is None
    assert {key for key, row in there.items() if row.noted} == {"odd", "profile"}
    assert "extraneous bytes before marker 0xd9" in (there["odd"].error or "")
    assert result(archive).dropped == COUNTS
    found = report(archive)
    words = (
        "not held: 2 profiles converted, 1 image's bits beyond 8, 1 transparency (over white), "
        "1 animation's other frames, 1 orientation (turned upright), 2 images whose pixels may be "
        "wrong (their rows say why)"
    )
    assert found.safe and found.verdict.endswith(words) and words in found.text()
    assert found.record()["not_held"] == COUNTS
    assert status.main(["--archive", archive.store.root]) == common.OK
    assert words in capsys.readouterr().out


def test_a_ledger_that_counts_other_losses_is_a_problem(tmp_path):
    archive = encoded(tmp_path / "archive", [tar(tmp_path)])
    entry = replace(result(archive), dropped={"icc": 1})
    archive.ledger().write_bytes(entry.to_json())
    assert any(
        "what the codes do not hold" in problem for problem in report(archive).total.problems
    )


def test_a_row_that_hides_a_loss_is_found_by_its_source(tmp_path):
    archive = encoded(tmp_path / "archive", [tar(tmp_path)])
    spec, entry = archive.specs[0], replace(result(archive), dropped={**COUNTS, "icc": 1})
    forged = [replace(r, dropped=None) if r.key == "p3" else r for r in rows(archive).values()]
    data = table.write_table(forged, archive.plan, spec, entry)
    archive.table().write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    archive.ledger().write_bytes(
        replace(entry, table_bytes=len(data), table_sha256=digest).to_json()
    )
    found = report(archive)
    assert not found.safe and "key 'p3': the row has dropped None" in found.total.problems[0]


def test_a_lost_ledger_entry_is_rebuilt_with_its_losses(tmp_path):
    archive = encoded(tmp_path / "archive", [tar(tmp_path)])
    archive.ledger().unlink()
    again = encode_shard(archive.specs[0], archive.plan, archive.store, archive.replica)
    assert again.adopted and again.dropped == COUNTS


def test_another_payload_keeps_the_losses(tmp_path):
    source = [tar(tmp_path)]
    archive = encoded(tmp_path / "archive", source, store="bitstream")
    other = begin(tmp_path / "other", source, store="both")
    work = Transcoder(archive.store, archive.plan)
    assert work(other.specs[0], other.plan, other.store, other.replica).dropped == COUNTS
    assert {k: r.dropped for k, r in rows(other).items()} == {
        k: r.dropped for k, r in rows(archive).items()
    }


@pytest.mark.parametrize("icc_rule", ["ignore", "refuse"])
def test_the_rule_for_profiles_is_in_the_plan(tmp_path, icc_rule):
    archive = encoded(tmp_path / "archive", [tar(tmp_path)], icc=icc_rule)
    assert Plan.from_json((archive.root / "plan.json").read_bytes()).icc == icc_rule
    there = rows(archive)
    if icc_rule == "refuse":
        assert there["p3"].status is Status.DECODE_ERROR and "ICC profile" in there["p3"].error
    else:
        assert there["p3"].dropped == ("icc",)
        assert "2 profiles ignored" in report(archive).verdict


def test_strict_images_refuses_what_may_be_wrong(tmp_path):
    archive = encoded(tmp_path / "archive", [tar(tmp_path)], strict_images=True)
    there = rows(archive)
    assert there["odd"].status is Status.DECODE_ERROR and "--strict-images" in there["odd"].error
    assert there["profile"].status is Status.OK


def test_an_archive_of_format_version_1_goes_on_by_its_own_rules(tmp_path):
    source = tar(tmp_path)
    old = begin(tmp_path / "archive", [source], format_version=1, **SECOND_FIELDS)
    written = json.loads((old.root / "plan.json").read_bytes())
    assert written["format_version"] == 1 and not {"icc", "strict_images"} & {*written}
    assert Plan.from_json((old.root / "plan.json").read_bytes()) == old.plan
    todays = replace(old.plan, format_version=FORMAT_VERSION, icc="convert")
    assert commit.begin(old.store, todays) == old.plan
    for asked in ({"icc": "refuse"}, {"strict_images": True}):
        with pytest.raises(PlanMismatch):
            commit.begin(old.store, replace(todays, **asked))
    encode_shard(old.specs[0], old.plan, old.store, old.replica)
    there = rows(old)
    assert "dropped" not in table.read_footer(old.table().read_bytes())
    assert all(row.dropped is None for row in there.values())
    names = table.schema(old.plan).names
    assert "dropped" not in names and names[-1] == "source_sha256"
    entry = json.loads(old.ledger().read_bytes())
    assert "dropped" not in entry
    ignored = images.decode(files()["p3.jpg"], old.plan.pictures).pixels
    assert not np.array_equal(ignored, images.decode(files()["p3.jpg"], todays.pictures).pixels)
    assert report(old).safe


def test_a_column_called_dropped_may_be_kept_where_there_is_no_other():
    fields = {"model": "m", "quality": 1, "stride": 16, "codewords": 256, "inputs": 0,
              "inputs_digest": "d", "keep": ("dropped",)}  # fmt: skip
    with pytest.raises(ValueError, match="--keep dropped"):
        Plan(**fields)
    old = Plan(**fields, format_version=1, **SECOND_FIELDS)
    spec = ShardSpec("s", "/s.tar", 1, "e")
    kept = Row("a", Status.OK, None, 16, 16, 1, 1, b"x", kept={"dropped": "text"})
    counted = ShardResult("s", "/s.tar", 1, "e", "done", {"ok": 1}, 256, 1, 0, "", "")
    data = table.write_table([kept], replace(old, store="codes"), spec, counted)
    assert [row.kept for row in table.read_rows(data)] == [{"dropped": "text"}]


def test_counts_in_words():
    plan = Plan("m", 1, 16, 256, 0, "d")
    assert losses.in_words({}, plan.icc) == ""
    assert losses.in_words({"icc": 12, "frames": 3}, plan.icc) == (
        "12 profiles converted, 3 animations' other frames"
    )
    assert losses.in_words({"gain_map": 1}, plan.icc) == "1 gain map"
    found = losses.in_words({"video": 2, "colour": 1}, plan.icc)
    assert found == "1 colour space taken as sRGB, 2 motion photos' videos"
    assert losses.count([Row("a", Status.OK, dropped=("bits:16", "bits:10"))]) == {"bits": 1}


def test_the_flags_are_in_the_plan():
    codec = tiny_codec()
    for flags, wanted in (([], ("convert", False)), (["--icc", "refuse"], ("refuse", False)),
                          (["--strict-images"], ("convert", True))):  # fmt: skip
        argv = ["--input", "x", "--output", "y", "--quality", "2", "--store", "codes", *flags]
        plan = work.plan_of(encode.parse(argv), [], codec)
        assert (plan.icc, plan.strict_images, plan.format_version) == (*wanted, FORMAT_VERSION)
