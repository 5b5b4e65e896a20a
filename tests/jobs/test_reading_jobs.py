"""The jobs that read an archive: what they write, say and return."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs import common, decode, finish, plan, status, verify
from pipeline.archive import commit, layout
from pipeline.archive.table import BadTable
from pipeline.out import names
from pipeline.plan import PlanMismatch, ShardResult
from pipeline.store.storage import NotFound, Store
from pipeline.work import decoder
from tests.archives import Archive, begin, committed, encoded, shard
from tests.corpus import jpeg, make_tar
from tests.models import tiny_bytes

EXAMPLES = Path(__file__).parents[2] / "examples/shards"
KEYS = ["a/first", "tall", "wide", "second", "turned"]  # of the good images of a test shard
FILES = ["a%2Ffirst", "second", "tall", "turned", "wide"]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    inputs = [shard(tmp_path / f"in/{i}.tar", 10 * i) for i in range(2)]
    return encoded(tmp_path / "archive", inputs, keep=("txt",))


def run(job: Callable[[Sequence[str]], int], archive: Archive, *flags: str | Path) -> int:
    """A job on the CPU."""
    device = [] if job in (finish.main, status.main) else ["--device", "cpu"]
    return job(["--archive", archive.store.root, *device, *map(str, flags)])


def tables(archive: Archive) -> list[str]:
    return [spec.shard_id for spec in archive.specs]


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# verify, finish, status ---------------------------------------------------------------------------


def test_a_healthy_archive_is_verified_finished_and_complete(
    archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(verify.main, archive, "--min-psnr", "0", "--sample", "4") == common.OK
    text = capsys.readouterr().out
    assert text.startswith("complete: 2 shards listed") and "problem" not in text
    (record,) = [json.loads(p.read_bytes()) for p in archive.root.glob("runs/*/verify.json")]
    assert record["complete"] and record["proved"]["images"] == 10
    assert record["proved"]["compared"] == 4 and record["psnr_db"]["min"] > 0

    assert run(finish.main, archive) == common.OK
    manifest = pq.read_table(archive.root / "manifest.parquet").to_pylist()
    assert [row["name"] for row in manifest] == [
        f"codes/{name}.parquet" for name in tables(archive)
    ]
    assert [(row["rows"], row["ok_rows"]) for row in manifest] == [(8, 5)] * 2
    assert run(finish.main, archive) == common.OK

    capsys.readouterr()
    assert run(status.main, archive) == common.OK
    text = capsys.readouterr().out
    assert "2 shards: 2 done, 0 damaged, 0 quarantined, 0 left" in text
    assert "10 ok" in text and "2 too_small" in text and " bpp" in text


def test_verify_of_the_example_photographs(tmp_path: Path) -> None:
    archive = encoded(tmp_path / "archive", sorted(EXAMPLES.glob("*.tar")), resize=64)
    assert run(verify.main, archive, "--min-psnr", "0") == common.OK
    assert run(verify.main, archive, "--min-psnr", "50", "--sample", "3") == common.INCOMPLETE


@pytest.mark.parametrize("harm", ["gone", "flipped", "another"])
def test_verify_names_a_model_that_is_not_the_archives(
    archive: Archive, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archive.root / layout.model_name(archive.plan.model)
    data = path.read_bytes()
    path.unlink()
    if harm == "flipped":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif harm == "another":
        path.write_bytes(tiny_bytes(subcodes=5))
    assert run(verify.main, archive, "--min-psnr", "0") == common.INCOMPLETE
    text = capsys.readouterr().out
    assert "problem: model: " in text and path.name in text
    assert "not proved: no image was decoded" in text


def test_verify_shows_the_first_problems_and_keeps_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = []
    for i in range(60):
        inputs.append(tmp_path / f"{i:02d}.tar")
        inputs[-1].write_bytes(make_tar([("a.jpg", jpeg(16, 16))]))
    archive = begin(tmp_path / "archive", inputs)
    assert run(verify.main, archive) == common.INCOMPLETE
    assert "and 10 more problems" in capsys.readouterr().out
    (path,) = archive.root.glob("runs/*/verify.json")
    assert len(json.loads(path.read_bytes())["problems"]) == 60


def test_an_unfinished_archive_gets_no_manifest_and_is_told_how_to_go_on(
    archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.ledger().unlink()
    assert run(finish.main, archive) == common.INCOMPLETE
    assert not (archive.root / "manifest.parquet").exists()
    text = capsys.readouterr().out
    assert "1 of 2 shards are missing" in text and "jobs.encode" in text
    assert run(status.main, archive) == common.INCOMPLETE
    assert "1 done, 0 damaged, 0 quarantined, 1 left" in capsys.readouterr().out


def test_a_quarantined_shard_is_left_out_of_the_manifest_and_named(
    archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.ledger().unlink()
    archive.table().unlink()
    commit.quarantine(archive.store, archive.specs[0], "killed three replicas", 3)
    assert run(finish.main, archive) == common.INCOMPLETE
    assert pq.read_metadata(archive.root / "manifest.parquet").num_rows == 1
    assert "killed three replicas" in capsys.readouterr().out
    assert run(status.main, archive) == common.INCOMPLETE
    text = capsys.readouterr().out
    assert "1 quarantined, 0 left" in text and "killed three replicas" in text


def test_a_damaged_shard_is_in_the_manifest_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shard(tmp_path / "0.tar")
    path.write_bytes(path.read_bytes()[:6000])
    archive = encoded(tmp_path / "archive", [path])
    assert run(finish.main, archive) == common.INCOMPLETE
    assert pq.read_table(archive.root / "manifest.parquet")["outcome"].to_pylist() == ["damaged"]
    assert run(status.main, archive) == common.INCOMPLETE
    text = capsys.readouterr().out
    assert "0 done, 1 damaged" in text and "truncated" in text


def test_status_of_many_shards_reads_some_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sources of two sizes, and images and bytes in proportion to them; the last is damaged."""
    inputs = [tmp_path / f"{number:03}.tar" for number in range(60)]
    for number, path in enumerate(inputs):
        path.write_bytes(bytes(1000 * (1 + number % 2)))
    archive = begin(tmp_path / "archive", inputs)
    for spec in archive.specs[:50]:
        images, last = spec.size // 100, spec is archive.specs[49]
        result = ShardResult(
            spec.shard_id, spec.url, spec.size, spec.etag, "damaged" if last else "done",
            {"ok": images, "decode_error": images // 10}, 1000 * images, 10 * images,
            table_bytes=20 * images, damage=("truncated",) if last else (),
        )  # fmt: skip
        archive.store.put(layout.ledger_name(spec.shard_id), result.to_json())
        if last:
            archive.store.put(layout.damaged_name(spec.shard_id), b"{}")
    read: list[str] = []
    get = type(archive.store).get
    monkeypatch.setattr(
        type(archive.store), "get", lambda store, name: read.append(name) or get(store, name)
    )
    monkeypatch.setattr(status, "ALL", 20)
    monkeypatch.setattr(status, "SOME", 8)
    sums = "750 ok", "75,000 bytes of source, 15,000 of tables, 7,500 of codes in them, 0.0800 bpp"
    for exact, entries in ([], range(8, 10)), (["--exact"], range(50, 51)):
        read.clear()
        assert run(status.main, archive, *exact) == common.INCOMPLETE
        text = capsys.readouterr().out
        assert sum(name.startswith("ledger/") for name in read) in entries
        assert "60 shards: 49 done, 1 damaged, 0 quarantined, 10 left" in text
        assert all(part in text for part in sums) and "damaged: " in text and "truncated" in text
        assert ("about, from 8 of the shards (--exact reads all): " in text) is (exact == [])


def test_status_shows_the_last_run(archive: Archive, capsys: pytest.CaptureFixture[str]) -> None:
    summary = {
        "state": "complete", "shards_done": 2, "shards": 2, "images": 10, "rows": {"ok": 10},
        "images_per_s": 12.5, "megapixels_per_s": 0.1, "bpp": 0.1, "replicas": 2, "device": "cpu",
        "seconds": {"encode": 1.0}, "of_limit": None, "damaged": [], "quarantined": [],
    }  # fmt: skip
    for name, speed in (("20260101T000000Z-aa", 1.0), ("20260201T000000Z-00", 12.5)):
        body = json.dumps({**summary, "images_per_s": speed}).encode()
        archive.store.put(f"runs/{name}/summary.json", body)
    assert run(status.main, archive) == common.OK
    text = capsys.readouterr().out
    assert "20260201T000000Z-00" in text and "12.5 images/s" in text and "1.0 images/s" not in text


@pytest.mark.parametrize("job", [finish.main, status.main])
def test_a_damaged_ledger_entry_is_an_error_that_says_where_to_look(
    archive: Archive, job: Callable[[Sequence[str]], int]
) -> None:
    archive.ledger().write_text("{")
    with pytest.raises(BadTable, match=r"jobs\.verify"):
        run(job, archive)


@pytest.mark.parametrize("job", [verify.main, finish.main, status.main])
def test_a_prefix_without_archive_is_named(
    job: Callable[[Sequence[str]], int], tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match=r"nothing/plan\.json"):
        job(["--archive", str(tmp_path / "nothing")])


def test_the_command_line_turns_errors_into_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.status", "--archive", str(tmp_path / "nothing")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=500)
    assert done.returncode == common.USAGE, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("job", [verify.main, decode.main])
def test_a_machine_without_gpu_asks_for_the_cpu(
    job: Callable[[Sequence[str]], int], archive: Archive, tmp_path: Path
) -> None:
    flags = ["--output", str(tmp_path / "out")] if job is decode.main else []
    with pytest.raises(common.UsageError, match="--device cpu"):
        job(["--archive", archive.store.root, "--device", "cuda", *flags])


# decode -------------------------------------------------------------------------------------------


def test_png_files_hold_the_decoded_pixels(
    archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(decode.main, archive, "--output", out) == common.OK
    expected = [f"{name}/{file}.png" for name in tables(archive) for file in FILES]
    assert tree(out) == sorted([*expected, "decoded.json"])
    data = archive.table(1).read_bytes()
    for row, pixels in decoder.decode_table(data, archive.plan, archive.replica):
        path = out / tables(archive)[1] / f"{names.file_name(row.key)}.png"
        assert np.array_equal(np.asarray(Image.open(path)).transpose(2, 0, 1), pixels)
    text = capsys.readouterr().out
    assert "10 images written" in text and "2 decode_error, 2 duplicate_key, 2 too_small" in text
    assert "key 'broken': decode_error: no known image format" in text


def test_the_same_command_again_writes_only_what_is_missing(
    archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(decode.main, archive, "--output", out)
    lost = out / tables(archive)[0] / "wide.png"
    before = lost.read_bytes()
    lost.unlink()
    capsys.readouterr()
    assert run(decode.main, archive, "--output", out) == common.OK
    assert "1 images written, 9 were there" in capsys.readouterr().out
    assert lost.read_bytes() == before


def test_jpeg_files_look_like_the_decoded_pixels(archive: Archive, tmp_path: Path) -> None:
    out, name = tmp_path / "out", tables(archive)[0]
    assert run(decode.main, archive, "--output", out, "--format", "jpeg", "--shard", name) == 0
    assert tree(out) == sorted([*(f"{name}/{file}.jpg" for file in FILES), "decoded.json"])
    data = archive.table().read_bytes()
    for row, pixels in decoder.decode_table(data, archive.plan, archive.replica):
        image = Image.open(out / name / f"{names.file_name(row.key)}.jpg")
        assert image.format == "JPEG" and image.size == (pixels.shape[2], pixels.shape[1])
        assert np.abs(np.asarray(image).transpose(2, 0, 1) - pixels.astype(float)).mean() < 4


def test_webdataset_tars_are_read_by_webdataset_and_always_the_same(
    archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = [tmp_path / "out", tmp_path / "again"]
    for out in outs:
        assert run(decode.main, archive, "--output", out, "--format", "webdataset") == common.OK
    names = [f"{name}.tar" for name in tables(archive)]
    assert tree(outs[0]) == sorted([*names, "decoded.json"])
    assert all((outs[0] / n).read_bytes() == (outs[1] / n).read_bytes() for n in names)
    found = list(webdataset.WebDataset(str(outs[0] / names[0]), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == KEYS
    assert [sample.get("txt") for sample in found] == [
        b"the first", None, None, "größer".encode(), None
    ]  # fmt: skip
    data = archive.table().read_bytes()
    decoded = decoder.decode_table(data, archive.plan, archive.replica)
    for sample, (_, pixels) in zip(found, decoded, strict=True):
        image = np.asarray(Image.open(io.BytesIO(sample["png"])))
        assert np.array_equal(image.transpose(2, 0, 1), pixels)
    capsys.readouterr()
    (outs[0] / names[1]).unlink()
    assert run(decode.main, archive, "--output", outs[0], "--format", "webdataset") == common.OK
    assert "5 images written, 5 were there" in capsys.readouterr().out


def test_only_the_keys_asked_for_are_decoded(
    archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["--output", out, "--key", "tall", "a/first"]
    assert run(decode.main, archive, *flags) == common.OK
    assert tree(out) == sorted(
        ["decoded.json", *(f"{n}/{f}.png" for n in tables(archive) for f in ("a%2Ffirst", "tall"))]
    )
    capsys.readouterr()
    flags = ["--output", out, "--key", "broken", "nowhere"]
    assert run(decode.main, archive, *flags) == common.INCOMPLETE
    text = capsys.readouterr().out
    assert "0 images written" in text and "2 decode_error" in text
    assert "problem: no shard has the key 'nowhere'" in text and text.count("problem") == 1


def test_a_missing_and_a_damaged_table_are_named_and_the_others_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [shard(tmp_path / f"in/{i}.tar", i) for i in range(3)]
    archive = encoded(tmp_path / "archive", inputs)
    archive.table(0).unlink()
    data = bytearray(archive.table(1).read_bytes())
    data[200] ^= 1
    archive.table(1).write_bytes(data)
    out = tmp_path / "out"
    assert run(decode.main, archive, "--output", out) == common.INCOMPLETE
    text = capsys.readouterr().out
    assert f"problem: {archive.table(0)}: no such table" in text
    assert f"problem: {archive.table(1)}: damaged table: " in text
    assert text.count("\n") == 6
    assert len(list((out / tables(archive)[2]).iterdir())) == 5
    flags = ["--output", tmp_path / "tars", "--format", "webdataset"]
    assert run(decode.main, archive, *flags) == common.INCOMPLETE
    assert tree(tmp_path / "tars") == [f"{tables(archive)[2]}.tar", "decoded.json"]


def test_pictures_of_two_archives_do_not_mix(archive: Archive, tmp_path: Path) -> None:
    other = encoded(tmp_path / "other", [tmp_path / "in/0.tar"], min_side=4)
    run(decode.main, archive, "--output", tmp_path / "out")
    with pytest.raises(PlanMismatch, match="another archive"):
        run(decode.main, other, "--output", tmp_path / "out")


def test_arguments_that_make_no_sense_are_refused(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(common.UsageError, match="nowhere"):
        run(decode.main, archive, "--output", tmp_path / "out", "--shard", "nowhere")
    for flags in (["--key", "a", "--format", "webdataset"], ["--threads", "0"]):
        with pytest.raises(SystemExit) as caught:
            run(decode.main, archive, "--output", tmp_path / "out", *flags)
        assert caught.value.code == common.USAGE
    assert not (tmp_path / "out").exists()


HOSTILE = ["../../x", "/etc/passwd", "a/../b", "..", "%2E%2E", "a\\b", "./c", "d//e", "C:"]


def test_hostile_keys_stay_in_their_folder_and_apart(tmp_path: Path) -> None:
    entries = [(f"{key}.jpg", jpeg(16, 16, i)) for i, key in enumerate([*HOSTILE, "x" * 300])]
    (tmp_path / "0.tar").write_bytes(make_tar(entries))
    archive = encoded(tmp_path / "archive", [tmp_path / "0.tar"])
    ok = committed(archive.store)[tables(archive)[0]].rows["ok"]
    assert ok > len(HOSTILE) - 3
    out = tmp_path / "far/down/out"
    assert run(decode.main, archive, "--output", out) == common.OK
    assert len(list((out / tables(archive)[0]).iterdir())) == ok
    assert len(tree(tmp_path / "far")) == ok + 1
    assert run(decode.main, archive, "--output", out, "--format", "webdataset") == common.OK
    tar = out / f"{tables(archive)[0]}.tar"
    found = [s["__key__"] for s in webdataset.WebDataset(str(tar), shardshuffle=False)]
    assert len(set(found)) == ok
    assert not any(part in ("", ".", "..") for key in found for part in key.split("/"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text() | st.sampled_from(HOSTILE), unique=True, max_size=8))
def test_no_two_keys_share_a_name(keys: list[str]) -> None:
    keys += [names.file_name(key) for key in keys] + ["y" * 400, "y" * 401]
    for name_of in (names.file_name, names.member_key):
        assert len({name_of(key) for key in set(keys)}) == len(set(keys))
    for name in map(names.file_name, keys):
        assert "/" not in name and "." not in name and len(name.encode()) <= names.MAX_NAME


def test_the_reading_jobs_on_object_storage(s3: str, tmp_path: Path) -> None:
    archive = encoded(f"{s3}/archive", [shard(tmp_path / "0.tar")])
    assert run(verify.main, archive, "--min-psnr", "0") == common.OK
    assert run(finish.main, archive) == run(status.main, archive) == common.OK
    assert archive.store.info("manifest.parquet") is not None
    assert run(decode.main, archive, "--output", f"{s3}/out") == common.OK
    names = [f"{tables(archive)[0]}/{file}.png" for file in FILES]
    assert sorted(Store(f"{s3}/out").names()) == sorted([*names, "decoded.json"])
    assert run(decode.main, archive, "--output", f"{s3}/out", "--key", "tall") == common.OK


# plan ---------------------------------------------------------------------------------------------


def test_plan_forecasts_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.safetensors").write_bytes(tiny_bytes())
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    inputs = sorted(str(path) for path in EXAMPLES.glob("*.tar"))
    flags = ["--weights", str(tmp_path / "tiny.safetensors"), "--quality", "3", "--resize", "64",
             "--store", "codes", "--device", "cpu", "--replicas", "2"]  # fmt: skip
    assert plan.main(["--input", *inputs, *flags]) == common.OK
    text = capsys.readouterr().out
    lines = {line[:24].strip(): line[24:] for line in text.splitlines()}
    size = sum(os.path.getsize(path) for path in inputs)
    assert lines["shards"] == "2" and lines["input"] == f"{size / 1e6:.2f} MB"
    samples = 59
    assert abs(int(lines["rows"].split()[1]) - samples) < 0.2 * samples
    assert "images/s" in lines["time"] and "bpp" in lines["output"]
    assert "--replicas 2 on cpu" in text
    assert tree(tmp_path) == ["tiny.safetensors"]


def test_plan_extrapolates_from_the_first_samples_of_a_large_shard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.safetensors").write_bytes(tiny_bytes())
    picture = jpeg(16, 16)
    entries = [(f"{i:03d}.jpg", picture) for i in range(200)]
    (tmp_path / "0.tar").write_bytes(make_tar(entries))
    flags = ["--weights", str(tmp_path / "tiny.safetensors"), "--quality", "3", "--device", "cpu",
             "--store", "codes"]  # fmt: skip
    assert plan.main(["--input", str(tmp_path / "0.tar"), *flags]) == common.OK
    text = capsys.readouterr().out
    rows = int(text.split("about ")[1].split()[0].replace(",", ""))
    assert 195 <= rows <= 210 and "first 64 samples" in text


def test_plan_names_a_shard_without_samples(tmp_path: Path) -> None:
    (tmp_path / "tiny.safetensors").write_bytes(tiny_bytes())
    (tmp_path / "0.tar").write_bytes(make_tar([]))
    flags = ["--weights", str(tmp_path / "tiny.safetensors"), "--quality", "3", "--device", "cpu",
             "--store", "codes"]  # fmt: skip
    with pytest.raises(common.UsageError, match=r"0\.tar: no samples"):
        plan.main(["--input", str(tmp_path / "0.tar"), *flags])
