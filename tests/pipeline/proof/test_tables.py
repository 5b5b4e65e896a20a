"""Verify names every kind of damage, and finds nothing wrong with a healthy archive."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.archive import commit, table
from pipeline.archive.table import Row
from pipeline.plan import Status
from pipeline.proof import sampled
from pipeline.proof import tables as verify
from pipeline.proof.verdict import MAX_SHARD_PROBLEMS, Report, Verdict
from tests.archives import Archive, committed, encoded, shard
from tests.corpus import jpeg, make_tar

SHARDS, IMAGES, ROWS = 3, 5, 8  # images and rows of one shard


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    inputs = [shard(tmp_path / f"in/{i}.tar", 10 * i) for i in range(SHARDS)]
    return encoded(tmp_path / "archive", inputs)


def check(archive: Archive, sources: bool = True, sample: int = 6) -> Report:
    """All of it, with a model so bad that any PSNR will do."""
    arguments = archive.store, archive.plan, archive.specs
    report = Report(archive.plan, len(archive.specs), full=False)
    report.archive += verify.check_archive(*arguments)
    good = []
    verdicts = verify.check_tables(*arguments, sources, threads=2)
    for spec, found in zip(archive.specs, verdicts, strict=True):
        report.add(spec, found)
        good.append(0 if found.problems else found.proved["images"])
    if sources:
        report.total.add(compare(archive, sampled.spread(good, sample), 0))
    return report


def compare(
    archive: Archive, chosen: dict[int, list[int]], min_psnr: float, sources: bool = True
) -> Verdict:
    """The verdicts of a sample, added up."""
    arguments = archive.store, archive.plan, archive.specs, chosen, archive.replica
    found = Verdict()
    for one in sampled.compare_sample(*arguments, min_psnr, sources):
        found.add(one)
    return found


def tables(archive: Archive) -> Verdict:
    """What the tables prove alone."""
    found = Verdict()
    for one in verify.check_tables(archive.store, archive.plan, archive.specs, False, 2):
        found.add(one)
    return found


def all_problems(report: Report) -> list[str]:
    return report.archive + report.total.problems


def edit_ledger(archive: Archive, number: int = 0, **changes: object) -> None:
    fields = json.loads(archive.ledger(number).read_bytes())
    archive.ledger(number).write_text(json.dumps({**fields, **changes}))


def rewrite(
    archive: Archive, change: Callable[[list[Row]], list[Row]], counts: bool = False
) -> None:
    """Another table with its own sha256 in the ledger, and its own counts if asked for."""
    spec, rows = archive.specs[0], list(table.read_rows(archive.table().read_bytes()))
    result = committed(archive.store)[spec.shard_id]
    rows = change(rows)
    if counts:
        found = {s.value: sum(row.status is s for row in rows) for s in Status}
        found = {status: count for status, count in found.items() if count}
        result = replace(result, rows=found)
    data = table.write_table(rows, archive.plan, spec, result)
    archive.table().write_bytes(data)
    edit_ledger(archive, table_sha256=sha256(data).hexdigest(), table_bytes=len(data),
                rows=result.rows)  # fmt: skip


def test_a_healthy_archive_has_no_problem_and_says_what_was_proved(archive: Archive) -> None:
    report = check(archive)
    assert all_problems(report) == [] and report.total.not_proved == [] and report.complete
    assert report.total.proved == {
        "shards": SHARDS, "tables": SHARDS, "rows": SHARDS * ROWS, "images": SHARDS * IMAGES,
        "codes": SHARDS * IMAGES, "bitstreams": 0, "pictures": 6, "sources": SHARDS, "whole": 0,
        "samples": 0, "compared": 6,
    }  # fmt: skip
    assert report.total.psnr.count == 6 and 0 < report.total.psnr.lowest < 40
    assert json.loads(json.dumps(report.record()))["complete"] is True


def test_tables_alone_never_say_that_originals_may_go(archive: Archive) -> None:
    report = check(archive, sample=1000)
    assert report.complete and not report.safe and report.safe_shards == 0
    assert report.text().splitlines()[-1].startswith("DO NOT DELETE on this: only --full")


def test_without_sources_they_are_not_touched_and_it_says_so(
    archive: Archive, tmp_path: Path
) -> None:
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    report = check(archive, sources=False)
    proved = report.total.proved
    assert report.complete and proved["sources"] == proved["compared"] == 0
    assert any("sources" in what for what in report.total.not_proved)


def test_every_flipped_byte_of_a_table_is_noticed(archive: Archive) -> None:
    good = archive.table().read_bytes()
    spec = archive.specs[0]
    for place in range(0, len(good), 331):
        archive.table().write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        found, _ = verify.check_shard(archive.store, archive.plan, spec, False)
        assert "sha256 is not the ledger's" in found.problems[0], place
        assert found.problems[0].startswith(f"{spec.shard_id}: ")


def swap_tables(archive: Archive) -> None:
    first, second = archive.table(0).read_bytes(), archive.table(1).read_bytes()
    archive.table(0).write_bytes(second)
    archive.table(1).write_bytes(first)


def swap_with_ledger(archive: Archive) -> None:
    """As somebody who knows the ledger would swap them."""
    swap_tables(archive)
    entries = [json.loads(archive.ledger(n).read_bytes()) for n in (0, 1)]
    for n in (0, 1):
        kept = {k: entries[n][k] for k in ("shard_id", "url", "source_size", "source_etag")}
        archive.ledger(n).write_text(json.dumps({**entries[1 - n], **kept}))


def drop_row(archive: Archive) -> None:
    rewrite(archive, lambda rows: rows[1:])


def drop_row_with_counts(archive: Archive) -> None:
    rewrite(archive, lambda rows: rows[1:], counts=True)


def repeat_row(archive: Archive) -> None:
    rewrite(archive, lambda rows: [*rows, rows[0]], counts=True)


def rename_duplicate(archive: Archive) -> None:
    def change(rows: list[Row]) -> list[Row]:
        return [replace(r, key="new") if r.status is Status.DUPLICATE_KEY else r for r in rows]

    rewrite(archive, change)


def wrong_codes(archive: Archive) -> None:
    rewrite(archive, lambda rows: [replace(rows[0], codes=bytes(36)), *rows[1:]])


def short_codes(archive: Archive) -> None:
    short = {"codes": bytes(35), "crc32": zlib.crc32(bytes(35))}
    rewrite(archive, lambda rows: [replace(rows[0], **short), *rows[1:]])  # type: ignore[arg-type]


def codes_of_a_bad_row(archive: Archive) -> None:
    rewrite(archive, lambda rows: [
        replace(r, codes=b"x") if r.status is Status.DECODE_ERROR else r for r in rows
    ])  # fmt: skip


def other_plan(archive: Archive) -> None:
    spec = archive.specs[0]
    rows = list(table.read_rows(archive.table().read_bytes()))
    result = committed(archive.store)[spec.shard_id]
    data = table.write_table(rows, replace(archive.plan, min_side=8), spec, result)
    archive.table().write_bytes(data)
    edit_ledger(archive, table_sha256=sha256(data).hexdigest(), table_bytes=len(data))


def no_code_table(archive: Archive) -> None:
    pq.write_table(pa.table({"key": ["a"]}), archive.table())


def replace_source(archive: Archive) -> None:
    shard(Path(archive.specs[0].url), seed=99)


def uncommitted(archive: Archive) -> None:
    archive.ledger().unlink()
    archive.table().unlink()


def given_up(archive: Archive) -> None:
    uncommitted(archive)
    commit.quarantine(archive.store, archive.specs[0], "killed three replicas", 3)


DAMAGE: list[tuple[Callable[[Archive], object], str]] = [
    (lambda a: a.table().write_bytes(a.table().read_bytes()[:-100]), "not a readable Parquet"),
    (lambda a: a.table().write_bytes(b""), "not a readable Parquet"),
    (lambda a: a.table().unlink(), "the table is gone"),
    (lambda a: a.ledger().unlink(), "table without ledger entry"),
    (lambda a: a.ledger().write_text('{"shard_id": '), "damaged ledger entry"),
    (lambda a: a.ledger().write_text('{"shard_id": "x"}'), "damaged ledger entry"),
    (lambda a: edit_ledger(a, table_sha256="0" * 64), "sha256 is not the ledger's"),
    (lambda a: edit_ledger(a, table_bytes=1), "the ledger says 1"),
    (lambda a: edit_ledger(a, rows={"ok": ROWS}), "rows by status"),
    (lambda a: edit_ledger(a, pixels=1), "encoded pixels"),
    (lambda a: edit_ledger(a, code_bytes=1), "bytes of payload"),
    (lambda a: edit_ledger(a, source_etag="x"), "the ledger entry is of"),
    (lambda a: edit_ledger(a, shard_id="x"), "the ledger entry is of"),
    (lambda a: edit_ledger(a, outcome="damaged", damage=["truncated"]), "damaged: truncated"),
    (swap_tables, "sha256 is not the ledger's|the ledger says"),
    (swap_with_ledger, "the table's footer has source_url"),
    (drop_row, "rows by status"),
    (drop_row_with_counts, "encoded pixels"),
    (repeat_row, "status ok, but the key occurs before"),
    (rename_duplicate, "status duplicate_key, but the key does not occur before"),
    (wrong_codes, "crc32"),
    (short_codes, "35 bytes of codes"),
    (codes_of_a_bad_row, "status decode_error, but it has codes"),
    (other_plan, "footer has plan_digest"),
    (no_code_table, "not a code table"),
    (replace_source, "source: .*replaced"),
    (lambda a: Path(a.specs[0].url).unlink(), "source: .*0.tar"),
    (uncommitted, "not encoded yet"),
    (given_up, "quarantined after 3 attempts: killed three replicas"),
]


@pytest.mark.parametrize(
    ("harm", "message"), DAMAGE, ids=lambda value: getattr(value, "__name__", "")
)
def test_damage_to_a_shard_is_named_with_the_shard(
    archive: Archive, harm: Callable[[Archive], object], message: str
) -> None:
    harm(archive)
    report = check(archive)
    named = [p for p in all_problems(report) if p.startswith(f"{archive.specs[0].shard_id}: ")]
    assert any(re.search(message, problem) for problem in named), all_problems(report)
    assert not report.complete
    assert "problem: " in report.text()


@pytest.fixture(params=["bitstream", "both"])
def coded(tmp_path: Path, request: pytest.FixtureRequest) -> Archive:
    inputs = [shard(tmp_path / f"in/{i}.tar", 10 * i) for i in range(2)]
    return encoded(tmp_path / "archive", inputs, store=request.param)


def sample(archive: Archive, sources: bool) -> Verdict:
    return compare(archive, {0: [0, 1, 2, 3, 4], 1: [2]}, 0, sources)


def test_of_bitstreams_it_says_which_were_decoded(coded: Archive) -> None:
    verdict = tables(coded)
    assert verdict.problems == [] and verdict.proved["bitstreams"] == 0
    assert verdict.proved["images"] == 2 * IMAGES
    assert verdict.proved["codes"] == (2 * IMAGES if coded.plan.stores_codes else 0)
    assert any("outside the sample were not decoded" in what for what in verdict.not_proved)
    for sources in (True, False):
        found = sample(coded, sources)
        assert found.problems == [] and found.proved["bitstreams"] == 6
        assert found.proved["compared"] == (6 if sources else 0)


def test_a_bitstream_that_decodes_to_other_codes_is_found_by_the_sample(coded: Archive) -> None:
    def change(rows: list[Row]) -> list[Row]:
        stream = rows[3].bitstream or b""
        return [*rows[:3], replace(rows[3], bitstream=bytes([stream[0] ^ 1]) + stream[1:]),
                *rows[4:]]  # fmt: skip

    rewrite(coded, change)
    assert tables(coded).problems == []  # opaque without the model
    for sources in (True, False):
        (problem,) = sample(coded, sources).problems
        assert problem.startswith(coded.specs[0].shard_id) and "'wide'" in problem
        assert "bitstream" in problem


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"bitstream": None}, "no bitstream"), ({"crc32": None}, "no crc32"),
     ({"width": 200}, "not of a source")],
)  # fmt: skip
def test_rows_of_a_bitstream_archive_are_held_against_the_plan(
    coded: Archive, changes: dict[str, object], message: str
) -> None:
    rewrite(coded, lambda rows: [replace(rows[0], **changes), *rows[1:]])  # type: ignore[arg-type]
    assert any(message in problem for problem in tables(coded).problems)


def test_a_payload_column_that_the_plan_does_not_have_is_a_problem(archive: Archive) -> None:
    rewrite(archive, lambda rows: [replace(rows[0], bitstream=b"1234"), *rows[1:]])
    assert any("has a bitstream column" in what for what in all_problems(check(archive)))


def test_a_foreign_table_and_ledger_entry_are_named(archive: Archive) -> None:
    (archive.root / "codes/foreign.parquet").write_bytes(archive.table().read_bytes())
    (archive.root / "ledger/foreign.json").write_bytes(archive.ledger().read_bytes())
    problems = all_problems(check(archive))
    assert [p.split(":")[0] for p in problems] == ["codes/foreign.parquet", "ledger/foreign.json"]


def test_a_listing_that_is_not_the_plans_is_named(archive: Archive) -> None:
    del archive.specs[1]
    assert any("inputs.parquet" in problem for problem in check(archive).archive)


def test_a_truncated_shard_is_a_problem_though_its_table_is_sound(tmp_path: Path) -> None:
    path = shard(tmp_path / "in/0.tar")
    path.write_bytes(path.read_bytes()[:6000])
    archive = encoded(tmp_path / "archive", [path])
    verdict = check(archive).total
    assert verdict.proved["shards"] == 0 and verdict.proved["images"] >= 1
    assert [p for p in verdict.problems if "damaged: " in p and "truncated" in p]


def test_a_picture_that_does_not_look_like_its_source_is_a_problem(archive: Archive) -> None:
    verdict = compare(archive, {0: [0, 3], 2: [1]}, min_psnr=60)
    assert verdict.proved["compared"] == 3
    assert sorted(p.split("PSNR")[0] for p in verdict.problems) == [
        f"{archive.specs[0].shard_id}: key 'a/first': ",
        f"{archive.specs[0].shard_id}: key 'second': ",
        f"{archive.specs[2].shard_id}: key 'tall': ",
    ]


def test_codes_under_the_wrong_key_are_found_by_the_comparison(tmp_path: Path) -> None:
    """The bytes are sound and the crc32 fits: only the source tells."""
    entries = [("a.jpg", jpeg(50, 40, 1)), ("b.jpg", jpeg(50, 40, 2))]
    (tmp_path / "0.tar").write_bytes(make_tar(entries))
    archive = encoded(tmp_path / "archive", [tmp_path / "0.tar"])
    before = compare(archive, {0: [0, 1]}, 0).psnr
    rewrite(archive, lambda rows: [replace(rows[1], key="a"), replace(rows[0], key="b")])
    assert tables(archive).problems == []
    after = compare(archive, {0: [0, 1]}, 0).psnr
    assert before != after


def test_many_problems_of_one_shard_are_cut_short(tmp_path: Path) -> None:
    entries = [(f"{i}.jpg", jpeg(16, 16, i)) for i in range(40)]
    (tmp_path / "0.tar").write_bytes(make_tar(entries))
    archive = encoded(tmp_path / "archive", [tmp_path / "0.tar"])
    rewrite(archive, lambda rows: [replace(row, crc32=0) for row in rows])
    problems = check(archive).total.problems
    assert len(problems) == MAX_SHARD_PROBLEMS + 1 and "more problems" in problems[-1]


def test_the_sample_is_spread_evenly_and_always_the_same() -> None:
    assert sampled.spread([5, 0, 5], 2) == {0: [2], 2: [2]}
    assert sampled.spread([10, 10, 10, 10], 4) == {0: [5], 1: [5], 2: [5], 3: [5]}
    assert sampled.spread([2, 1], 32) == {0: [0, 1], 1: [0]}
    assert sampled.spread([0, 0], 32) == {} and sampled.spread([3], 0) == {}
    for good, count in (([7, 1, 0, 30], 11), ([1] * 50, 20)):
        chosen = sampled.spread(good, count)
        places = [(s, p) for s, ps in chosen.items() for p in ps]
        assert len(set(places)) == count
        assert all(0 <= p < good[s] for s, p in places)
