"""What comes out of an archive again: every picture or its name, kept JSON, tars of any number."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from jobs import common, decode, export
from pipeline.archive import table
from pipeline.archive.table import Row
from pipeline.out import codes, decoded, jsons, tars
from pipeline.plan import Facts, Plan, PlanMismatch, ShardResult, ShardSpec, Status
from pipeline.store.storage import Store
from tests.archives import Archive, encoded
from tests.corpus import jpeg, make_tar, png


def sources(folder: Path, count: int = 3, images: int = 4) -> list[Path]:
    """Tars of small pictures with a JSON and a text member."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        entries = []
        for i in range(images):
            document = {"url": f"https://example.org/{i}", "score": float("nan") if i % 2 else 0.5}
            entries += [(f"{number}-{i}.jpg", jpeg(48, 40, seed=i)), (f"{number}-{i}.txt", b"text"),
                        (f"{number}-{i}.json", json.dumps(document).encode())]  # fmt: skip
        (folder / f"{number}.tar").write_bytes(make_tar(entries))
    return sorted(folder.iterdir())


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    inputs = sources(tmp_path / "in")
    return encoded(tmp_path / "archive", inputs, keep=("json", "txt", "json.score:float64"))


def run(job, archive: Archive, output: Path, *more: str) -> int:
    device = ["--device", "cpu"] if job is decode.main else []
    flags = ["--archive", archive.store.root, "--output", str(output), *device, *more]
    return common.run(lambda: job(flags))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Pictures


@pytest.mark.parametrize("more", [[], ["--replicas", "2"]])
def test_a_picture_that_jpeg_cannot_hold_is_named_and_the_others_come_out(
    here, more, tmp_path, capsys
):
    wide = tmp_path / "wide.tar"
    wide.write_bytes(make_tar([
        ("a.jpg", jpeg(32, 32)), ("wide.png", png(70_000, 16)), ("z.jpg", jpeg(40, 32))
    ]))  # fmt: skip
    archive = encoded(tmp_path / "archive", [wide, *sources(tmp_path / "in", 1)])
    assert run(decode.main, archive, tmp_path / "out", "--format", "jpeg", *more) == 3
    said = capsys.readouterr().out
    assert "key 'wide': 70000 x 16 pixels cannot be written as jpeg" in said
    assert "--format png holds it" in said and "6 images written" in said
    assert sorted(p.name for p in (tmp_path / "out").rglob("*.jpg"))[-2:] == ["a.jpg", "z.jpg"]
    assert run(decode.main, archive, tmp_path / "png", *more) == common.OK
    (found,) = (tmp_path / "png").rglob("wide.png")
    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    try:
        assert Image.open(found).size == (70_000, 16)
    finally:
        Image.MAX_IMAGE_PIXELS = before


@pytest.mark.parametrize("form", ["png", "webdataset"])
def test_several_replicas_write_what_one_does(here, form, archive, tmp_path, capsys):
    flags = ["--format", form]
    assert run(decode.main, archive, tmp_path / "one", *flags) == common.OK
    one = capsys.readouterr().out
    assert run(decode.main, archive, tmp_path / "two", *flags, "--replicas", "2") == common.OK
    assert capsys.readouterr().out == one and "12 images written" in one
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert run(decode.main, archive, tmp_path / "two", *flags, "--replicas", "2") == common.OK
    assert "0 images written, 12 were there" in capsys.readouterr().out


def test_replicas_name_damaged_and_missing_tables_and_missing_keys(here, archive, tmp_path, capsys):
    archive.table(0).unlink()
    data = bytearray(archive.table(1).read_bytes())
    data[200] ^= 1
    archive.table(1).write_bytes(data)
    more = ["--replicas", "2", "--key", "2-1", "nobody"]
    assert run(decode.main, archive, tmp_path / "out", *more) == common.INCOMPLETE
    said = capsys.readouterr().out
    assert "no such table" in said and "damaged table" in said
    assert "no shard has the key 'nobody'" in said and "'2-1'" not in said
    assert len(list((tmp_path / "out").rglob("*.png"))) == 1
    assert not list(archive.root.glob("failed/*"))


def test_processes_of_this_machine_decode_too(archive, tmp_path, capsys):
    assert run(decode.main, archive, tmp_path / "out", "--replicas", "2", "--local") == common.OK
    assert "12 images written" in capsys.readouterr().out
    assert len(list((tmp_path / "out").rglob("*.png"))) == 12


def test_lists_of_lines_do_not_grow():
    mine, other = decoded.Totals(), decoded.Totals()
    for number in range(1000):
        mine.bad.add(str(number))
        other.bad.add(str(number))
    mine.join(other)
    assert mine.bad.count == 2000 and len(mine.bad.first) == decoded.SHOWN
    assert mine.text().endswith("no picture: and 1950 more")


# Tars


def test_a_large_shard_goes_into_several_tars_that_are_cut_at_the_same_places(tmp_path, capsys):
    noise = np.random.default_rng(0)
    entries = []
    for i in range(12):
        picture = Image.fromarray(noise.integers(0, 256, (256, 320, 3), np.uint8))
        sink = io.BytesIO()
        picture.save(sink, "PNG")
        entries.append((f"{i:02d}.png", sink.getvalue()))
    (tmp_path / "s.tar").write_bytes(make_tar(entries))
    archive = encoded(tmp_path / "archive", [tmp_path / "s.tar"])
    name = archive.specs[0].shard_id
    flags = ["--format", "webdataset", "--queue-mb", "1"]
    out = tmp_path / "out"
    assert run(decode.main, archive, out, *flags) == common.OK
    whole = files(out)
    parts = sorted(path for path in whole if path.endswith(".tar"))
    assert parts == [*(f"{name}.{n:03d}.tar" for n in range(len(parts) - 1)), f"{name}.tar"]
    assert len(parts) > 1 and all(len(whole[path]) <= 1 << 20 for path in parts)
    keys = [s["__key__"] for s in webdataset.WebDataset([str(out / p) for p in parts],
                                                        shardshuffle=False)]  # fmt: skip
    assert keys == [f"{i:02d}" for i in range(12)]
    for lost in ([parts[-1], parts[0]], [parts[0]], [parts[-1]]):
        for part in lost:
            (out / part).unlink()
        assert (
            run(decode.main, archive, out, "--format", "webdataset") == common.OK
        )  # its own limit
        assert files(out) == whole
    (out / parts[-1]).unlink()
    (out / parts[0]).write_bytes(b"another")
    assert run(decode.main, archive, out, "--format", "webdataset") == common.USAGE
    assert "another tar is there" in capsys.readouterr().err


def test_tars_hold_no_more_than_their_limit_but_one_sample(tmp_path):
    output = Store(str(tmp_path))
    out = tars.Tars(output, "s", 100_000)
    sizes = [10_000] * 30 + [500_000] + [10_000] * 3
    for number, size in enumerate(sizes):
        out.write({"__key__": f"{number:03d}", "bin": bytes(size)})
        assert len(out._sink.getbuffer()) <= 520_000
    out.close()
    assert sum(out.counts.values()) == len(sizes) and [*out.counts][-1] == "s.tar"
    names = []
    for name in out.counts:
        data = output.get(name)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            names += tar.getnames()
        assert len(data) <= 120_000 or len(names) == 31
    assert names == [f"{number:03d}.bin" for number in range(len(sizes))]


def test_an_output_of_before_goes_on_with_whole_tars(archive, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "decoded.json").write_text(json.dumps({"plan_digest": archive.plan.digest}) + "\n")
    flags = ["--format", "webdataset", "--queue-mb", "0"]
    assert run(decode.main, archive, out, *flags) == common.OK
    assert len(list(out.glob("*.tar"))) == 3
    (out / "decoded.json").write_text("{}")
    assert run(decode.main, archive, out, *flags) == common.USAGE
    with pytest.raises(PlanMismatch, match="of another archive"):
        plan = Plan("m", 1, 16, 256, 1, "d")
        tars.begin(Store(str(out)), "decoded.json", plan, 1)


# Export


def test_kept_json_survives_an_export_and_nan_is_null(archive, tmp_path):
    assert run(export.main, archive, tmp_path / "out") == common.OK
    names = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    found = list(webdataset.WebDataset(names, shardshuffle=False))
    assert len(found) == 12
    for number, sample in enumerate(found):
        i = number % 4
        document = json.loads(sample["json"], parse_constant=pytest.fail)
        assert document == {"url": f"https://example.org/{i}", "score": None if i % 2 else 0.5}
        own = json.loads(sample["codes.json"], parse_constant=pytest.fail)
        assert (own["width"], own["height"], own["grid_w"]) == (48, 40, 3)
        assert own["json.score"] == document["score"] and own["key"] == sample["__key__"]
        assert sample["txt"] == b"text" and np.load(io.BytesIO(sample["npy"])).shape == (3, 3, 3)


def test_no_kept_member_gives_way_to_the_exports_own():
    keep = ("json", "codes.json", "npy")
    plan = Plan("m", 2, 16, 256, 1, "d", store="codes", keep=keep)
    kept = {"json": '{"a": 1}', "codes.json": '{"b": 2}', "npy": "a text"}
    row = Row("k", Status.OK, None, 16, 16, 1, 1, b"xy", None, zlib.crc32(b"xy"), kept=kept)
    spec = ShardSpec("s", "/s.tar", 1, "e")
    data = table.write_table([row], plan, spec, ShardResult.of(spec, Facts({})))
    [sample] = codes.samples(data, plan)
    assert {name: sample[name] for name in keep} == {n: v.encode() for n, v in kept.items()}
    assert json.loads(sample["codes.codes.json"])["key"] == "k"
    assert np.load(io.BytesIO(sample["codes.npy"])).tolist() == [[[120, 121]]]


def test_an_export_in_several_tars_names_them_all(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "begin", lambda *_, **__: 6000)
    out = tmp_path / "out"
    assert run(export.main, archive, out) == common.OK
    named = json.loads((out / "export.json").read_bytes())
    assert named["images"] == 12 == sum(named["tars"].values()) and len(named["tars"]) > 3
    assert sorted(named["tars"]) == sorted(path.name for path in out.glob("*.tar"))
    whole = files(out)
    (out / "export.json").unlink()
    min(out.glob("*.tar")).unlink()
    assert run(export.main, archive, out) == common.OK
    assert files(out) == whole


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"a":  1.50, "b": "NaN"}', '{"a":  1.50, "b": "NaN"}'),
        ('{"a": NaN, "b": [Infinity, -Infinity], "c": 12345678901234567890}',
         '{"a": null, "b": [null, null], "c": 12345678901234567890}'),
        ('{"a": 1e400, "b": NaN}', '{"a": null, "b": null}'),
        ("not JSON", "not JSON"),
        ("[" * 50_000, "[" * 50_000),
    ],
)  # fmt: skip
def test_json_members_are_json_wherever_they_were(text, wanted):
    assert jsons.member(text).decode() == wanted


def test_values_that_are_no_numbers_become_null():
    assert jsons.dumps({"b": float("nan"), "a": [1, float("inf"), {"c": "é"}]}) == (
        '{"a": [1, null, {"c": "é"}], "b": null}'.encode()
    )
