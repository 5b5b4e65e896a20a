"""The gate before originals are deleted: an intact archive passes with exact counts, and every kind
of damage to archive or source turns the verdict and is named."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pipeline.archive import commit, layout, table
from pipeline.archive.table import Row
from pipeline.plan import Status
from pipeline.proof import pictures, prover, sampled, tables
from pipeline.proof.prover import Prover
from pipeline.proof.verdict import Quality, Report, Verdict
from pipeline.store import storage
from pipeline.store.storage import AccessDenied, Store, TransientStorage
from pipeline.work import images
from pqmim import checkpoint
from tests.archives import Archive, committed, encoded, shard
from tests.corpus import header_offsets, jpeg, make_tar, png

EXAMPLES = Path(__file__).parents[3] / "examples/shards"
KEEP = ("txt", "json.label:float32", "json.name")
SHARDS, IMAGES = 3, 4


def good_shard(path: Path, seed: int) -> Path:
    """Four images of two sizes, with text, labels and a member that nobody keeps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = [(40, 33), (33, 40), (40, 33), (64, 16)]
    entries = []
    for i, (w, h) in enumerate(sizes):
        picture = png(w, h, seed + i) if i == 1 else jpeg(w, h, seed + i)
        entries += [
            (f"{i}.{'png' if i == 1 else 'jpg'}", picture),
            (f"{i}.txt", b"number %d" % i),
            (f"{i}.json", json.dumps({"label": i + 0.1, "name": f"n{i}"}).encode()),
        ]
    path.write_bytes(make_tar([*entries, ("3.cls", b"7")]))
    return path


def build(folder: Path, **changes: Any) -> Archive:
    inputs = [good_shard(folder / f"in/{i}.tar", 10 * i) for i in range(SHARDS)]
    return encoded(folder / "archive", inputs, keep=KEEP, **changes)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Archive, Path]:
    """An archive, and a copy of its folder and sources with their times."""
    folder = tmp_path_factory.mktemp("intact")
    archive = build(folder / "work", store="bitstream", hash=True)
    shutil.copytree(folder / "work", folder / "copy")
    return archive, folder / "copy"


@pytest.fixture
def archive(built: tuple[Archive, Path]) -> Iterator[Archive]:
    """The intact archive, to be damaged; put right after the test."""
    archive, copy = built
    yield replace(archive, specs=list(archive.specs))
    shutil.rmtree(archive.root.parent)
    shutil.copytree(copy, archive.root.parent)


def prove(archive: Archive, accept: bool = False, **changes: Any) -> Report:
    """As the job does, without Ray."""
    checks = {"full": True, "fraction": 1.0, "sources": True, "min_psnr": 0.0, **changes}
    work = Prover("test", **checks)
    arguments = archive.store, archive.plan
    report = Report(
        archive.plan, len(archive.specs), bool(checks["full"] and checks["sources"]), accept
    )
    report.archive += tables.check_archive(*arguments, archive.specs)
    for spec in archive.specs:
        work(spec, archive.plan, archive.store, archive.replica)
        found = prover.read_record(*arguments, spec, work)
        assert found is not None
        report.add(spec, found)
    return report


def forge(archive: Archive, change: Callable[[list[Row]], list[Row]], number: int = 0) -> None:
    """Another table, with which ledger and footer agree in everything."""
    spec, rows = archive.specs[number], change(read(archive, number))
    counts = {s.value: sum(row.status is s for row in rows) for s in Status}
    sizes = [images.encoded_size(r.width, r.height, archive.plan.pictures) for r in rows if r.crc32]
    result = replace(
        committed(archive.store)[spec.shard_id],
        rows={status: count for status, count in counts.items() if count},
        pixels=sum(w * h for w, h in sizes), code_bytes=sum(row.payload_bytes for row in rows),
    )  # fmt: skip
    data = table.write_table(rows, archive.plan, spec, result)
    result = replace(result, table_bytes=len(data), table_sha256=sha256(data).hexdigest())
    archive.table(number).write_bytes(data)
    archive.ledger(number).write_bytes(result.to_json())


def read(archive: Archive, number: int = 0) -> list[Row]:
    return list(table.read_rows(archive.table(number).read_bytes()))


def edit_source(archive: Archive, change: Callable[[bytes], bytes]) -> None:
    """Bit rot: another content of the same size, age and name."""
    path = Path(archive.specs[0].url)
    before, data = path.stat(), path.read_bytes()
    changed = change(data)
    assert len(changed) == len(data) and changed != data
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    storage.open_read(
        str(path), storage.ObjectInfo(str(path), archive.specs[0].size, archive.specs[0].etag)
    ).close()  # not seen from outside


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


# An intact archive --------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["codes", "bitstream", "both"])
def test_an_intact_archive_passes_with_exact_counts(tmp_path: Path, store: str) -> None:
    archive = build(tmp_path, store=store, hash=True)
    report = prove(archive)
    count = SHARDS * IMAGES
    assert report.archive + report.total.problems == [] and report.total.not_proved == []
    assert report.total.proved == {
        "shards": SHARDS, "tables": SHARDS, "rows": count, "images": count,
        "codes": 0 if store == "bitstream" else count,
        "bitstreams": 0 if store == "codes" else count, "pictures": count,
        "sources": SHARDS, "whole": SHARDS, "samples": count, "compared": count,
    }  # fmt: skip
    assert report.safe and report.total.psnr.count == count
    assert sum(report.total.psnr.bins.values()) == count
    last = report.text().splitlines()[-1]
    assert last.startswith(f"SAFE TO DELETE the originals of {SHARDS} shards ({count} images); not")
    assert "byte for byte" in last and f"({SHARDS} .cls, {count} .json)" in last
    assert json.loads(json.dumps(report.record()))["safe_to_delete"] is True


def test_the_line_of_a_shard_says_what_was_proved_of_which_bytes(archive: Archive) -> None:
    prove(archive)
    work = Prover("test", True, 1.0, True, 0.0)
    found = prover.read_record(archive.store, archive.plan, archive.specs[0], work)
    assert found is not None
    line = json.loads(Report(archive.plan, SHARDS, True).add(archive.specs[0], found))
    assert line["safe_to_delete"] and line["why_not"] == "" and line["problems"] == []
    assert line["source_sha256"] == sha256(Path(line["url"]).read_bytes()).hexdigest()
    assert line["proved"]["compared"] == line["proved"]["samples"] == IMAGES
    assert line["etag"] == archive.specs[0].etag


def test_without_hashes_it_says_so_and_passes(tmp_path: Path) -> None:
    report = prove(build(tmp_path))
    assert report.safe and any("--hash was not given" in what for what in report.total.not_proved)


def test_a_resized_archive_says_that_pixels_before_are_not_covered(tmp_path: Path) -> None:
    report = prove(build(tmp_path, resize=20, crop=16))
    assert report.safe and "pixels before resize 20 and crop 16" in report.verdict


def test_s3_and_batches_smaller_than_the_shard(tmp_path: Path, s3: str) -> None:
    local = [good_shard(tmp_path / f"{i}.tar", i) for i in range(2)]
    inputs = Store(f"{s3}/in")
    for path in local:
        inputs.put(path.name, path.read_bytes())
    archive = encoded(f"{s3}/archive", [f"{s3}/in"], batch_pixels=2000)  # type: ignore[list-item]
    assert prove(archive).safe
    inputs.put("0.tar", local[1].read_bytes())
    report = prove(archive)
    assert not report.safe and "was replaced" in report.verdict and report.safe_shards == 1


# Failed images ------------------------------------------------------------------------------------


def test_originals_of_failed_images_are_named_and_must_stay(tmp_path: Path) -> None:
    bad = shard(tmp_path / "in/bad.tar")
    archive = encoded(tmp_path / "archive", [bad, good_shard(tmp_path / "in/good.tar", 1)])
    report = prove(archive)
    assert report.complete and not report.safe and report.safe_shards == 1
    assert report.verdict.startswith("DO NOT DELETE: the originals of 1 of 2 shards must stay: bad")
    assert "3 of its samples (1 decode_error, 1 duplicate_key, 1 too_small)" in report.verdict
    text = report.text()
    for key in ("broken", "tiny", "tall"):
        assert f"not in the archive: {archive.specs[0].shard_id}: key {key!r}: " in text
    assert len(report.record()["not_in_archive_keys"]) == 3  # type: ignore[arg-type]

    accepted = prove(archive, accept=True)
    assert accepted.safe and accepted.total.proved["samples"] == 8 + IMAGES
    assert "3 failed samples (1 decode_error, 1 duplicate_key, 1 too_small)" in accepted.verdict


# Damage, each kind --------------------------------------------------------------------------------


def swap_tables(archive: Archive) -> None:
    first, second = archive.table(0).read_bytes(), archive.table(1).read_bytes()
    archive.table(0).write_bytes(second)
    archive.table(1).write_bytes(first)


def quarantined(archive: Archive) -> None:
    archive.ledger().unlink()
    archive.table().unlink()
    commit.quarantine(archive.store, archive.specs[0], "killed three replicas", 3)


def change_row(place: int, **changes: Any) -> Callable[[Archive], None]:
    return lambda archive: forge(
        archive, lambda rows: [replace(r, **changes) if i == place else r
                               for i, r in enumerate(rows)])  # fmt: skip


def exchange_payloads(archive: Archive) -> None:
    def change(rows: list[Row]) -> list[Row]:
        a, b = rows[0], rows[2]
        return [replace(a, bitstream=b.bitstream), rows[1], replace(b, bitstream=a.bitstream),
                rows[3]]  # fmt: skip

    forge(archive, change)


def failed_before(archive: Archive) -> None:
    failed = {"status": Status.DECODE_ERROR, "bitstream": None, "crc32": None, "width": 0,
              "height": 0, "grid_w": 0, "grid_h": 0}  # fmt: skip
    change_row(1, **failed)(archive)


def rot_image(archive: Archive) -> None:
    """In the picture of sample 0: the file still decodes, or not; its sha256 tells."""
    edit_source(archive, lambda data: flip(data, data.index(b"\xff\xda") + 60))


def rot_header(archive: Archive) -> None:
    edit_source(archive, lambda data: flip(data, header_offsets(data)["1.png"] + 3))


def rename_sample(archive: Archive) -> None:
    """A header made good again under another name."""

    def change(data: bytes) -> bytes:
        place = header_offsets(data)["2.jpg"]
        header = bytearray(data[place : place + 512])
        header[0:1] = b"9"
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return data[:place] + bytes(header) + data[place + 512 :]

    edit_source(archive, change)


def end_early(archive: Archive) -> None:
    """The last samples become zeros: a tar that ends before its size."""

    def change(data: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            place = tar.getmember("2.jpg").offset
        return data[:place] + bytes(len(data) - place)

    edit_source(archive, change)


HARM: list[tuple[str, Callable[[Archive], object], str]] = [
    ("table flipped", lambda a: a.table().write_bytes(flip(a.table().read_bytes(), 200)),
     "sha256 is not the ledger's"),
    ("table cut", lambda a: a.table().write_bytes(a.table().read_bytes()[:-9]), "the ledger says"),
    ("table gone", lambda a: a.table().unlink(), "the table is gone"),
    ("tables swapped", swap_tables, "sha256 is not the ledger's|the ledger says"),
    ("ledger gone", lambda a: a.ledger().unlink(), "table without ledger entry"),
    ("ledger cut", lambda a: a.ledger().write_bytes(b'{"shard'), "damaged ledger entry"),
    ("quarantined", quarantined, "quarantined after 3 attempts: killed three replicas"),
    ("source gone", lambda a: Path(a.specs[0].url).unlink(), "source: .*0.tar"),
    ("source replaced", lambda a: good_shard(Path(a.specs[0].url), 77), "source: .*replaced"),
    ("source image rotten", rot_image, "key '0': the row has "),
    ("source header rotten", rot_header, "row 1 has key '1'.*|source: .*header"),
    ("source sample renamed", rename_sample, "row 2 has key '2', the source has '9' there"),
    ("source ends early", end_early, "row 2, key '2': the source ends before it"),
    ("row lost", lambda a: forge(a, lambda rows: rows[:1] + rows[2:]), "row 1 has key '2'"),
    ("last row lost", lambda a: forge(a, lambda rows: rows[:-1]), "sample 3, key '3', has no row"),
    ("row invented", lambda a: forge(a, lambda rows: [*rows, replace(rows[0], key="new")]),
     "row 4, key 'new': the source ends before it"),
    ("rows out of order", lambda a: forge(a, lambda rows: rows[::-1]), "row 0 has key '3'"),
    ("key changed", change_row(1, key="other"), "row 1 has key 'other', the source has '1'"),
    ("failed, but decodes", failed_before, "key '1': the row has status .*decode_error"),
    ("hash changed", change_row(2, source_sha256=bytes(32)), "key '2': the row has source_sha256"),
    ("text changed", change_row(2, kept={"txt": "x", "json.label": 2.1, "json.name": "n2"}),
     "key '2': the row has txt 'x', the source gives 'number 2'"),
    ("label changed", change_row(2, kept={"txt": "number 2", "json.label": 2.2, "json.name": "n2"}),
     "the row has json.label 2.2"),
    ("payloads exchanged", exchange_payloads, "key '0': the bitstream"),
    ("bitstream cut", change_row(3, bitstream=b""), "key '3': the bitstream"),
    ("crc32 changed", change_row(3, crc32=1), "key '3': the bitstream decodes to codes that do"),
    ("size changed", change_row(1, width=34), "key '1': the row has width 34, the source gives 33"),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "message"), [h[1:] for h in HARM], ids=[h[0] for h in HARM])
def test_every_damage_turns_the_verdict_and_is_named(
    archive: Archive, harm: Callable[[Archive], object], message: str
) -> None:
    harm(archive)
    report, shard_id = prove(archive), archive.specs[0].shard_id
    named = [p for p in report.total.problems if p.startswith(f"{shard_id}: ")]
    assert any(re.search(message, problem) for problem in named), report.total.problems
    assert not report.safe and not report.complete
    last = report.text().splitlines()[-1]
    assert last.startswith("DO NOT DELETE: the originals of ") and shard_id in last
    assert report.safe_shards == SHARDS - 1 - (harm is swap_tables)


def test_an_extra_table_and_another_listing_stop_everything(archive: Archive) -> None:
    (archive.root / "codes/extra.parquet").write_bytes(archive.table().read_bytes())
    report = prove(archive)
    assert report.safe_shards == SHARDS and not report.safe
    assert (
        report.verdict == "DO NOT DELETE: codes/extra.parquet: belongs to no shard of the listing"
    )
    (archive.root / "codes/extra.parquet").unlink()
    del archive.specs[2]
    assert prove(archive).verdict.startswith("DO NOT DELETE: inputs.parquet: is not the listing")


def test_a_shard_that_was_damaged_when_it_was_encoded_is_not_safe(tmp_path: Path) -> None:
    path = good_shard(tmp_path / "in/0.tar", 0)
    path.write_bytes(flip(path.read_bytes(), header_offsets(path.read_bytes())["1.png"] + 3))
    report = prove(encoded(tmp_path / "archive", [path]), accept=True)
    assert not report.safe and "damaged: " in report.verdict


def test_one_bad_bitstream_hides_no_other(archive: Archive) -> None:
    forge(archive, lambda rows: [replace(r, crc32=1) if i in (0, 2) else r
                                 for i, r in enumerate(rows)])  # fmt: skip
    report = prove(archive)
    assert [re.findall("key '(.)'", p) for p in report.total.problems] == [["0"], ["2"]]
    assert report.total.proved["compared"] == SHARDS * IMAGES - 2


def test_pictures_of_other_sources_are_found_by_their_psnr(tmp_path: Path) -> None:
    """Sound codes, right keys, sizes, hashes: only pictures tell.  With the shipped model."""
    inputs, weights = sorted(EXAMPLES.glob("*.tar"))[:1], checkpoint.read("default")
    archive = encoded(tmp_path / "archive", inputs, weights=weights, crop=64, resize=64)
    before = prove(archive, accept=True, min_psnr=12.0)
    assert before.safe, before.text()

    def change(rows: list[Row]) -> list[Row]:
        ok = [r for r in rows if r.status is Status.OK]
        other = dict(zip((r.key for r in ok), ok[1:] + ok[:1], strict=True))
        payload = lambda r: {"codes": other[r.key].codes, "crc32": other[r.key].crc32}  # noqa: E731
        return [replace(r, **payload(r)) if r.key in other else r for r in rows]

    forge(archive, change)
    after = prove(archive, accept=True, min_psnr=12.0)
    assert after.total.psnr.mean < before.total.psnr.mean - 5 and not after.safe
    below = [p for p in after.total.problems if "PSNR" in p and "below 12 dB" in p]
    assert below and below[0].startswith(archive.specs[0].shard_id)


# Shares, and archives without sources -------------------------------------------------------------


def test_a_share_is_fixed_by_the_shard_and_never_empty() -> None:
    for count, fraction, size in ((100, 0.1, 10), (100, 1e-6, 1), (3, 1.0, 3), (0, 0.5, 0)):
        chosen = pictures.share("a", count, fraction)
        assert len(chosen) == len(set(chosen)) == size and set(chosen) <= set(range(count))
        assert chosen == pictures.share("a", count, fraction)
    assert pictures.share("a", 100, 0.1) != pictures.share("b", 100, 0.1)
    assert set(pictures.share("a", 100, 0.1)) < set(pictures.share("a", 100, 0.2))


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.5, 2), (1.0, 4)])
def test_a_fraction_decodes_that_share_of_every_shard(
    archive: Archive, fraction: float, count: int
) -> None:
    report = prove(archive, full=False, fraction=fraction)
    assert report.complete and not report.safe and "only --full" in report.verdict
    assert report.total.proved["bitstreams"] == SHARDS * count
    assert report.total.proved["pictures"] == SHARDS * (count if fraction == 1 else 1)
    assert report.total.proved["compared"] == report.total.proved["whole"] == 0
    assert any(f"{fraction:g} of the images" in what for what in report.total.not_proved)


def test_a_fraction_finds_the_damage_that_lies_in_it(archive: Archive) -> None:
    for i in pictures.share(archive.specs[0].shard_id, IMAGES, 0.25):
        change_row(i, crc32=1)(archive)
    assert "do not have their crc32" in prove(archive, full=False, fraction=0.25).total.problems[0]


def test_without_sources_every_image_is_decoded_and_nothing_is_said_of_originals(
    archive: Archive,
) -> None:
    for spec in archive.specs:
        Path(spec.url).unlink()
    report = prove(archive, sources=False)
    assert report.complete and not report.safe
    assert report.verdict.startswith("DO NOT DELETE on this")
    assert report.total.proved["bitstreams"] == report.total.proved["pictures"] == SHARDS * IMAGES
    assert any("sources were not looked at" in what for what in report.total.not_proved)
    change_row(3, crc32=1)(archive)
    assert not prove(archive, sources=False).complete


# Records ------------------------------------------------------------------------------------------


def test_a_resumed_verification_trusts_only_what_is_still_there(archive: Archive) -> None:
    change_row(0, crc32=1)(archive)
    prove(archive)
    work = Prover("test", True, 1.0, True, 0.0)

    def proved() -> list[bool]:
        arguments = archive.store, archive.plan
        return [prover.still_proved(*arguments, spec, work) for spec in archive.specs]

    assert proved() == [False, True, True]
    first = prover.record_name("test", archive.specs[0].shard_id)
    assert archive.store.info(first) is None  # dropped: it will be proved again
    os.utime(archive.table(1))  # another ETag
    assert proved() == [False, False, True]
    good_shard(Path(archive.specs[2].url), 99)
    assert proved() == [False, False, False]


def test_a_record_of_other_checks_or_damaged_does_not_count(archive: Archive) -> None:
    prove(archive)
    spec, arguments = archive.specs[0], (archive.store, archive.plan)
    work = Prover("test", True, 1.0, True, 0.0)
    assert prover.read_record(*arguments, spec, work) is not None
    for other in (replace(work, min_psnr=1.0), replace(work, full=False), replace(work, run="x")):
        assert prover.read_record(*arguments, spec, other) is None
    path = archive.root / prover.record_name("test", spec.shard_id)
    path.write_bytes(path.read_bytes()[:-40])
    assert prover.read_record(*arguments, spec, work) is None


class Silent(Store):
    """A store whose tables do not answer."""

    def get(self, name: str) -> bytes:
        if name.startswith("codes/"):
            raise TransientStorage(f"{name}: no answer")
        return super().get(name)


def test_a_store_that_does_not_answer_is_no_verdict(archive: Archive) -> None:
    work = Prover("test", True, 1.0, True, 0.0)
    with pytest.raises(TransientStorage):
        work(archive.specs[0], archive.plan, Silent(archive.store.root), archive.replica)
    assert prover.read_record(archive.store, archive.plan, archive.specs[0], work) is None


@pytest.mark.parametrize("place", ["codes/", "ledger/", "source"])
def test_what_may_not_be_read_stops_and_is_held_against_no_shard(
    place: str, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expired credentials say nothing about a shard: a verdict of theirs would be kept for good."""

    class Locked(Store):
        def get(self, name: str) -> bytes:
            if name.startswith(place):
                raise AccessDenied(f"{name}: not permitted")
            return super().get(name)

    def locked(url: str, info: object = None) -> storage.Reader:
        raise AccessDenied(f"{url}: not permitted")

    prove(archive)
    before = prover.Prover("test", True, 1.0, True, 0.0)
    spec, work = archive.specs[0], prover.Prover("again", True, 1.0, True, 0.0)
    if place == "source":
        monkeypatch.setattr(storage, "open_read", locked)
        with pytest.raises(AccessDenied):
            prover.still_proved(archive.store, archive.plan, spec, before)
        with pytest.raises(AccessDenied):
            list(tables.check_tables(archive.store, archive.plan, archive.specs, True, 2))
        with pytest.raises(AccessDenied):
            arguments = archive.store, archive.plan, archive.specs, {0: [0]}, archive.replica
            list(sampled.compare_sample(*arguments, 0.0))
    with pytest.raises(AccessDenied):
        work(spec, archive.plan, Locked(archive.store.root), archive.replica)
    assert prover.read_record(archive.store, archive.plan, spec, work) is None
    assert prover.read_record(archive.store, archive.plan, spec, before) is not None


def test_a_table_that_is_replaced_during_its_proof_is_proved_again(archive: Archive) -> None:
    spec, path = archive.specs[0], archive.table(0)

    class Replaced(Store):
        """Hands the table out, and then it is another one."""

        def get(self, name: str) -> bytes:
            data = super().get(name)
            if name == layout.table_name(spec.shard_id):
                path.write_bytes(data[:-1])
            return data

    work = Prover("test", True, 1.0, True, 0.0)
    work(spec, archive.plan, Replaced(archive.store.root), archive.replica)
    found = prover.read_record(archive.store, archive.plan, spec, work)
    assert found is not None and not found.problems  # of the bytes that it saw
    assert not prover.still_proved(archive.store, archive.plan, spec, work)


def test_a_verdict_survives_json_and_totals_stay_small() -> None:
    one = Verdict(problems=[f"s: {i}" for i in range(50)], absent={"too_small": 1})
    one.psnr.see(31.7)
    assert Verdict.from_json(json.loads(json.dumps(one.to_json()))) == one
    total = Verdict()
    for _ in range(1000):
        total.add(one)
    assert len(total.problems) == 10_001 and "more than can be listed" in total.problems[-1]
    assert total.absent == {"too_small": 1000}
    assert total.psnr.record() == {"mean": pytest.approx(31.7), "min": 31.7,
                                   "images_by_db": {"31": 1000}}  # fmt: skip
    assert Quality().record() is None
