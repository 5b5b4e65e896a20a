"""Odd inputs through the whole job: read, or refused by name; archives of before go on."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
from safetensors.torch import load, save

from jobs import common, encode, verify
from jobs.common import work
from pipeline.archive import layout, table
from pipeline.archive.table import Row
from pipeline.plan import SECOND_FIELDS, Plan, Resources, ShardSpec, listing_digest
from pipeline.store.storage import Store, TransientStorage
from pipeline.work import replica
from pipeline.work.encoder import encode_shard
from pipeline.work.host import Host
from pqmim import checkpoint
from pqmim.codec import Codec
from tests.corpus import jpeg, make_tar
from tests.models import tiny_bytes

TAR = make_tar([("0.jpg", jpeg(32, 32)), ("0.txt", b"a caption")])
APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(60)
pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "tiny.safetensors").write_bytes(tiny_bytes())
    return str(tmp_path / "tiny.safetensors")


def shard(path: Path, data: bytes = TAR) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def run(model: str, source: object, output: object, *more: str) -> int:
    flags = ["--input", str(source), f"--output={output}", "--weights", model, "--quality", "3",
             "--device", "cpu", "--max-bad-images", "1", "--store", "codes", *more]  # fmt: skip
    return common.run(lambda: encode.main(flags))


def rows(output: Path) -> list[Row]:
    tables = sorted(output.glob("codes/*.parquet"))
    return [row for path in tables for row in table.read_rows(path.read_bytes())]


def proved(output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    arguments = ["--archive", str(output), "--device", "cpu", "--full", "--min-psnr", "0"]
    verify.main(arguments)
    return capsys.readouterr().out.splitlines()[-1]


def test_packed_shards_and_other_spellings_are_encoded_and_proved(model, tmp_path, capsys):
    for name, data in {
        "s-000.tar": TAR, "s-001.TAR": TAR, "s-002.tar.gz": gzip.compress(TAR),
        "s-003.tgz": gzip.compress(TAR), "s-004.tar.gz": TAR,
        "s-005.tar.zst": pyarrow.compress(TAR, codec="zstd", asbytes=True),
    }.items():  # fmt: skip
        shard(tmp_path / "in" / name, data)
    shard(tmp_path / "in/.cache/s-000.tar")
    shard(tmp_path / "in/s-006.tar.xz")
    output = tmp_path / "out"
    assert run(model, tmp_path / "in", output, "--keep", "txt") == common.OK
    assert [row.kept for row in rows(output)] == [{"txt": "a caption"}] * 6
    assert not {b[-16:] for b in layout.ids(Store(str(output)), "ledger/")} & {""}
    assert proved(output, capsys).startswith("SAFE TO DELETE the originals of 6 shards")


def test_a_cut_gzip_shard_is_damaged_and_stays(model, tmp_path, capsys):
    data = gzip.compress(make_tar([(f"{i}.jpg", jpeg(32, 32, seed=i)) for i in range(30)]))
    shard(tmp_path / "in/s.tar.gz", data[: len(data) // 2])
    assert run(model, tmp_path / "in", tmp_path / "out") == common.INCOMPLETE
    assert 5 < len(rows(tmp_path / "out")) < 30
    verdict = proved(tmp_path / "out", capsys)
    assert "DO NOT DELETE" in verdict and "the gzip file is damaged near byte" in verdict


def test_apple_double_members_are_skipped_said_and_in_the_verdict(model, tmp_path, capsys):
    entries = [
        member for i in range(60) for kind, data in (("jpg", jpeg(32, 32, i)), ("txt", b"caption"))
        for member in ((f"photos/._{i:03d}.{kind}", APPLE), (f"photos/{i:03d}.{kind}", data))
    ]  # fmt: skip
    shard(tmp_path / "in/s.tar", make_tar(entries))
    assert run(model, tmp_path / "in", tmp_path / "out", "--keep", "txt") == common.OK
    assert "AppleDouble members (._*, of macOS) skipped: 120" in capsys.readouterr().out
    found = rows(tmp_path / "out")
    assert len(found) == 60 and {row.kept["txt"] for row in found} == {"caption"}
    verdict = proved(tmp_path / "out", capsys)
    assert verdict.startswith("SAFE TO DELETE") and "120 ._* (AppleDouble)" in verdict


@pytest.mark.parametrize(
    "kind", ["dangling", "latin-1", "pipe", "empty output", "inside", "utf-16"]
)
def test_what_cannot_be_is_refused_in_one_line_before_any_work(kind, model, tmp_path, capsys):
    source, output, message = tmp_path / "in", str(tmp_path / "out"), ""
    shard(source / "s-000.tar")
    given = str(source)
    if kind == "dangling":
        (source / "s-001.tar").symlink_to("/nowhere/s-001.tar")
        message = "s-001.tar: a link to /nowhere/s-001.tar"
    elif kind == "latin-1":
        os.rename(source / "s-000.tar", os.fsencode(source) + b"/caf\xe9.tar")
        message = r"caf\xe9.tar: its name is not UTF-8"
    elif kind == "pipe":
        os.mkfifo(source / "pipe")
        given, message = str(source / "pipe"), "is a named pipe"
    elif kind == "empty output":
        output, message = "", "an empty path"
    elif kind == "inside":
        output, message = str(source / "archive"), "is inside --input"
    else:
        (tmp_path / "list.txt").write_bytes(f"{source}/s-000.tar\n".encode("utf-16"))
        given, message = f"@{tmp_path}/list.txt", "UTF-16"
    before = sorted(tmp_path.rglob("*"))
    assert run(model, given, output) == common.USAGE
    error = capsys.readouterr().err
    assert message in error and len([x for x in error.splitlines() if "error:" in x]) == 1
    assert "Traceback" not in error
    left = {path for path in tmp_path.rglob("*") if path.is_file()} - {*before}
    assert not left


def test_a_tilde_in_the_output_is_the_home_folder(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shard(tmp_path / "in/s.tar")
    assert run(model, "~/in", "~/archive") == common.OK
    assert len(rows(tmp_path / "archive")) == 1


# Kept columns


def test_ids_come_out_and_an_empty_column_is_named_at_the_end(model, tmp_path, capsys):
    document = b'{"id": 1234567890123456789, "score": 1e300}'
    shard(tmp_path / "in/s.tar", make_tar([
        ("0.jpg", jpeg(32, 32)), ("0.json", document), ("0.caption.txt", b"a caption")
    ]))  # fmt: skip
    keep = ["--keep", "json.id:int64", "json.score:float32", "caption.txt", "captoin.txt"]
    assert run(model, tmp_path / "in", tmp_path / "out", *keep) == common.OK
    said = capsys.readouterr().out
    (row,) = rows(tmp_path / "out")
    assert row.kept == {"json.id": 1234567890123456789, "json.score": None,
                        "caption.txt": "a caption", "captoin.txt": None}  # fmt: skip
    assert "json.score: not float32" in row.error
    empty = [line for line in said.splitlines() if "null in every row" in line]
    assert [line.split(":")[0] for line in empty] == ["--keep json.score", "--keep captoin.txt"]
    assert proved(tmp_path / "out", capsys).startswith("SAFE TO DELETE")


@pytest.mark.parametrize("again", ["json.id:int64", "json.id", "JSON.ID"])
def test_a_column_kept_twice_is_refused_before_any_work(again, model, tmp_path, capsys):
    shard(tmp_path / "in/s.tar")
    assert run(model, tmp_path / "in", tmp_path / "out", "--keep", "json.id", again) == common.USAGE
    assert "two columns of the name json.id" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.json"))
    keep = ["--keep", "json.id:int64"]
    assert run(model, tmp_path / "in", tmp_path / "out", *keep) == common.OK


# Archives of before


def older(output: Path, weights: bytes, sources: list[Path], version: int) -> Plan:
    """An archive as it was begun then, with ids of 32 bits, nothing encoded."""
    found = [path.stat() for path in sources]
    specs = [
        ShardSpec(
            f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}", str(path),
            stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}",
        )
        for path, stat in zip(sources, found, strict=True)
    ]  # fmt: skip
    codec = Codec.from_bytes(weights)
    plan = Plan(
        model=codec.fingerprint, quality=3, stride=codec.config.stride,
        codewords=codec.config.codewords, inputs=len(specs), inputs_digest=listing_digest(specs),
        store="codes", format_version=version, **(SECOND_FIELDS if version == 1 else {}),
    )  # fmt: skip
    store = Store(str(output))
    store.put_if_absent(layout.PLAN, plan.to_json())
    store.put_if_absent(layout.LISTING, table.write_listing(specs))
    return plan


@pytest.mark.parametrize("version", [1, 2])
def test_an_archive_of_before_goes_on_with_its_names_and_its_listing(version, model, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("a.tar", "b.tar", ".cache/c.tar", "d.TAR"):
        shard(source / name)
    (source / "e.tar").symlink_to("a.tar")
    sources = [source / name for name in (".cache/c.tar", "a.tar", "b.tar", "e.tar")]
    plan = older(output, Path(model).read_bytes(), sources, version)
    assert run(model, source, output) == common.OK
    names = sorted(path.stem for path in output.glob("codes/*"))
    assert len(names) == 4 and all(len(name.split("-")[-1]) == 8 for name in names)
    written = {path.name: path.read_bytes() for path in output.glob("codes/*")}
    assert all(table.read_footer(data)["plan_digest"] == plan.digest for data in written.values())
    victim = next(output.glob("codes/b-*"))
    victim.unlink()
    (output / "ledger" / f"{victim.stem}.json").unlink()
    assert run(model, source, output) == common.OK
    assert written == {path.name: path.read_bytes() for path in output.glob("codes/*")}


def test_an_archive_of_before_and_other_inputs_are_still_refused(model, tmp_path, capsys):
    source = tmp_path / "in"
    for name in ("a.tar", "b.tar"):
        shard(source / name)
    older(tmp_path / "out", Path(model).read_bytes(), [source / "a.tar"], 2)
    assert run(model, source, tmp_path / "out") == common.USAGE
    assert "inputs: 2, there 1" in capsys.readouterr().err
    older(tmp_path / "two", Path(model).read_bytes(), [source / "a.tar", source / "b.tar"], 2)
    assert run(model, source / "a.tar", tmp_path / "two") == common.USAGE


def test_an_archive_that_was_begun_inside_its_inputs_goes_on(model, tmp_path, caplog):
    source = tmp_path / "in"
    shard(source / "a.tar")
    older(source / "out", Path(model).read_bytes(), [source / "a.tar"], 2)
    assert run(model, source, source / "out") == common.OK
    assert "move the archive away before you remove the originals" in caplog.text


def test_another_model_object_is_noticed_when_a_run_begins(model, tmp_path, capsys):
    shard(tmp_path / "in/a.tar")
    output = tmp_path / "out"
    assert run(model, tmp_path / "in", output) == common.OK
    (path,) = output.glob("model/*")
    weights = path.read_bytes()
    for other, message in (
        (tiny_bytes(codewords=8), "holds model"),
        (weights[:99], "put the weights"),
    ):
        path.write_bytes(other)
        assert run(model, tmp_path / "in", output) == common.USAGE
        assert message in capsys.readouterr().err
    path.write_bytes(save(load(weights), {**metadata(weights), "note": "the same tensors"}))
    assert path.read_bytes() != weights
    assert run(model, tmp_path / "in", output) == common.OK


def metadata(weights: bytes) -> dict[str, str]:
    """What a weights file says beside its tensors."""
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    return header["__metadata__"]


def test_a_replica_holds_its_model_against_the_plan(model, tmp_path):
    shard(tmp_path / "in/a.tar")
    assert run(model, tmp_path / "in", tmp_path / "out") == common.OK
    store = Store(str(tmp_path / "out"))
    plan = layout.read_plan(store)
    store.put(layout.model_name(plan.model), tiny_bytes(codewords=8))
    with pytest.raises(checkpoint.CheckpointError, match="holds model .* the plan says"):
        Host(store, plan, Resources(), encode_shard)


@pytest.mark.parametrize("flag", ["--resize", "--crop", "--min-side", "--max-pixels"])
def test_sizes_of_nothing_are_refused(flag, model, tmp_path, capsys):
    shard(tmp_path / "in/a.tar")
    assert run(model, tmp_path / "in", tmp_path / "out", flag, "0") == common.USAGE
    assert "must be 1 or more" in capsys.readouterr().err


def test_a_store_that_is_dead_at_the_end_does_not_hide_how_the_run_ended(
    model, tmp_path, monkeypatch, caplog
):
    put = Store.put

    def dead(store: Store, name: str, data: bytes) -> None:
        if name.startswith("runs/"):
            raise TransientStorage("no answer")
        put(store, name, data)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    shard(tmp_path / "in/a.tar")
    monkeypatch.setattr(Store, "put", dead)
    with monkeypatch.context() as patch:
        patch.setattr(work, "drive", interrupted)
        assert run(model, tmp_path / "in", tmp_path / "out") == common.INTERRUPTED
    assert "could not be kept: no answer" in caplog.text
    assert run(model, tmp_path / "in", tmp_path / "out") == common.OK


def test_the_peak_of_memory_is_in_the_units_of_the_system(monkeypatch):
    linux = replica.peak_bytes()
    monkeypatch.setattr(replica.sys, "platform", "darwin")
    assert linux > 10 << 20 and replica.peak_bytes() <= linux // 1000


def test_two_shards_of_one_name_are_refused(model, tmp_path, capsys):
    source = tmp_path / "in"
    for name in ("a.tar", "b.tar"):
        shard(source / name)
    older(tmp_path / "out", Path(model).read_bytes(), [source / "a.tar", source / "b.tar"], 2)
    listing = tmp_path / "out" / layout.LISTING
    first, second = table.read_listing(listing.read_bytes())
    listing.write_bytes(table.write_listing([first, replace(second, shard_id=first.shard_id)]))
    assert run(model, source, tmp_path / "out") == common.USAGE
    assert "would both be called" in capsys.readouterr().err


def test_a_summary_of_a_run_says_how_many_were_skipped(model, tmp_path):
    shard(tmp_path / "in/s.tar", make_tar([("._a.jpg", APPLE), ("a.jpg", jpeg(32, 32))]))
    assert run(model, tmp_path / "in", tmp_path / "out") == common.OK
    (summary,) = (tmp_path / "out").glob("runs/*/summary.json")
    assert json.loads(summary.read_bytes())["skipped"] == 1
