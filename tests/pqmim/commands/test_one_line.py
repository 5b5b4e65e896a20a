"""An error is one line that names the file; what a format does not hold is said."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pqmim import cli
from pqmim.cli import main
from pqmim.commands import errors, formats
from pqmim.commands.files import FileError
from pqmim.files import container
from tests.code_archives import make
from tests.models import tiny_bytes
from tests.picture_files import RGB, png

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 33, 3), np.uint8)
SUFFIXES = sorted({*Image.registered_extensions(), ".heic", ".txt", ".pqm", ""})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with weights w, a picture in.png and a file in.pqm."""
    monkeypatch.chdir(tmp_path)
    Path("w").write_bytes(tiny_bytes(prior=True))
    Image.fromarray(PIXELS).save("in.png")
    assert main(["compress", "in.png", "in.pqm", "--weights", "w"]) == 0
    return tmp_path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("pqmim: ") and error.count("\n") == 1, error
    return error


def file_of(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_suffix_is_written_rightly_or_refused_in_one_line(folder, capsys, suffix):
    name = f"out{suffix}"
    code = main(["decompress", "in.pqm", name, "--weights", "w"])
    if code == 0:
        said = capsys.readouterr().err
        main(["decompress", "in.pqm", "exact.png", "--force", "--weights", "w"])
        want = np.array(Image.open("exact.png")).astype(int)
        got = np.array(Image.open(name).convert("RGB")).astype(int)
        far = np.abs(got - want).max()
        assert far == 0 or (suffix in formats.NEAR and far < 80), f"{far} levels away"
        assert (f"note: {name}: " in said) == (suffix in formats.NEAR)
    else:
        assert code == 2 and f"{name}: " in one_line(capsys) and not Path(name).exists()
        assert suffix not in formats.EXACT | formats.NEAR


def test_formats_that_change_the_picture_are_refused(folder, capsys):
    for suffix in (".ico", ".gif", ".icns", ".psd", ".pdf", ".pgm"):
        assert main(["decompress", "in.pqm", f"out{suffix}", "--weights", "w"]) == 2
        assert f"{suffix} files do not hold any picture as it is" in one_line(capsys)


def test_what_a_format_has_no_room_for_is_one_line() -> None:
    with pytest.raises(FileError, match=r"x\.webp: cannot be written as WEBP: "):
        formats.image_file("x.webp", torch.zeros(3, 1, 20000, dtype=torch.uint8))


def read_or_one_line(data: bytes) -> bool:
    """Whether a file is read; if not, its name and one line say why, and nothing else does."""
    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(data))
    stderr, sys.stderr = sys.stderr, io.StringIO()
    try:
        assert tuple(formats.read_pixels("-", quiet=True).shape)[0] == 3
        return True
    except FileError as error:
        assert "\n" not in str(error) and str(error).startswith("standard input")
        return False
    finally:
        said, sys.stderr, sys.stdin = sys.stderr.getvalue(), stderr, stdin
        assert said == ""


def test_broken_png_chunks() -> None:
    whole, seen = file_of("PNG"), set()

    @given(st.data())
    def broken(data: st.DataObject) -> None:
        parts, at = [], 8
        while at < len(whole):
            length = struct.unpack_from(">I", whole, at)[0]
            parts.append(bytearray(whole[at : at + 12 + length]))
            at += 12 + length
        part = parts[data.draw(st.integers(0, len(parts) - 1))]
        for _ in range(data.draw(st.integers(1, 4))):
            part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
        extra = chunk(data.draw(st.sampled_from([b"iCCP", b"tRNS", b"zTXt", b"gAMA", b"PLTE"])),
                      data.draw(st.binary(max_size=20)))  # fmt: skip
        parts.insert(data.draw(st.integers(1, len(parts))), bytearray(extra))
        seen.add(read_or_one_line(whole[:8] + b"".join(map(bytes, parts))))

    broken()
    assert False in seen


def odd_exif(rng: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = rng.choice([1, 6, 9]), "maker", {0xA002: 33}
    block = bytearray(exif.tobytes())
    for _ in range(rng.randint(1, 12)):
        block[rng.randrange(6, len(block))] = rng.choice([0, 1, 255, rng.randrange(256)])
    return bytes(block[: rng.randrange(len(block))] if rng.random() < 0.3 else block)


def test_odd_exif_costs_no_picture() -> None:
    rng = random.Random(15)
    png, jpeg, webp = file_of("PNG"), file_of("JPEG"), file_of("WEBP", lossless=True)
    vp8l = webp[12:]
    size = struct.pack("<I", 32)[:3] + struct.pack("<I", 23)[:3]
    for _ in range(300):
        exif = odd_exif(rng)
        body = exif.removeprefix(b"Exif\0\0")
        assert read_or_one_line(png[:33] + chunk(b"eXIf", body) + png[33:])
        segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        assert read_or_one_line(jpeg[:2] + segment + jpeg[2:])
        own = b"EXIF" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
        riff = b"WEBPVP8X" + struct.pack("<IB3x", 10, 8) + size.ljust(6, b"\0") + vp8l + own
        assert read_or_one_line(b"RIFF" + struct.pack("<I", len(riff)) + riff)


def test_pillow_says_nothing_beside_us(folder, capfd, recwarn):
    rng, tiff = random.Random(3), file_of("TIFF")
    for i in range(30):
        damaged = bytearray(tiff)
        for _ in range(3):  # in the directory of tags, which is at the end or the begin
            damaged[rng.choice([rng.randrange(130), -1 - rng.randrange(130)])] = rng.randrange(256)
        Path(f"{i}.tif").write_bytes(damaged)
    names = [f"{i}.tif" for i in range(30)]
    assert main(["compress", *names, "--output-dir", "o", "--weights", "w", "--quiet"]) == 3
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) > 5 and all(line.startswith("pqmim: ") for line in lines), lines
    assert not [w for w in recwarn if "PIL" in w.filename]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "command",
    [["compress", "in.png", "x.pqm"], ["decompress", "in.pqm", "x.png"], ["info"],
     ["complete", "in.png", "x.png", "--keep-subcodes", "1"], ["eval", "."],
     ["train", "prior", "--input", "a.tar", "--output", "run"]],
    ids=lambda command: command[0],
)  # fmt: skip
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu", "mps", "cuda:x"])
def test_a_device_that_is_not_there_is_one_line(folder, capsys, command, device):
    assert main([*command, "--device", device]) == 2
    assert f"--device {device}: " in one_line(capsys)
    assert not list(folder.glob("x.*"))


def test_automatic_devices_and_those_that_are_there(monkeypatch):
    assert errors.device_of("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [errors.device_of(name) for name in ("auto", "cuda:1")] == ["cuda", "cuda:1"]
    with pytest.raises(ValueError, match="sees 2 GPUs"):
        errors.device_of("cuda:2")


def test_no_memory_and_ctrl_c_are_one_line_and_a_mistake_of_ours_is_not(monkeypatch, capsys):
    def answer(error: BaseException) -> int:
        def fail(_: object) -> None:
            raise error

        monkeypatch.setattr("pqmim.commands.info.info", fail)
        return main(["info"])

    allocator = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
    for error in (MemoryError(), torch.OutOfMemoryError("out of memory.\nTried 2 GiB"), allocator):
        assert answer(error) == 2 and "out of memory" in one_line(capsys)
    assert answer(KeyboardInterrupt()) == cli.INTERRUPTED and "interrupted" in one_line(capsys)
    with pytest.raises(ZeroDivisionError):
        answer(ZeroDivisionError())


def test_what_codes_do_not_hold_is_said(folder, capsys):
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]])).save("b.png")
    samples = PIXELS.astype(int)
    Path("c.png").write_bytes(png(samples, 8, RGB, [(b"cICP", bytes([9, 16, 0, 1]))]))
    Image.fromarray(PIXELS).save("d.jpg")
    with Path("d.jpg").open("ab") as file:
        file.write(b"\0\0\0\x18ftypmp42" + b"\0" * 99)
    for name, loss in (
        ("a.gif", "all but the first of 2 pictures"), ("b.png", "transparency"),
        ("c.png", "its colour space (pq), taken as sRGB"), ("d.jpg", "its video"),
    ):  # fmt: skip
        assert main(["compress", name, f"{name}.pqm", "--weights", "w"]) == 0
        assert f"note: {name}: not held: {loss}" in capsys.readouterr().err
        assert main(["compress", name, "q.pqm", "--force", "--weights", "w", "--quiet"]) == 0
        assert capsys.readouterr().err == ""


def test_info_knows_files_by_what_they_hold(folder, capsys):
    archive = Path(make(str(folder / "a"), [3, 2]).store.root)
    table = next(archive.glob("codes/*.parquet"))
    Path("in.pqm").rename("renamed.dat")
    Path("tar").write_bytes(bytes(257) + b"ustar\0" + bytes(800))
    wanted = {"renamed.dat": "pqm", "w": "weights", "default": "weights", "in.png": "picture",
              str(archive): "archive", str(table): "parquet", "tar": "tar"}  # fmt: skip
    for name, kind in wanted.items():
        assert main(["info", name]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["kind"] == kind
        if kind == "archive":
            assert report["plan"]["quality"] and report["shards_committed"] == 2
        if kind == "picture":
            assert (report["width"], report["height"]) == (33, 24)


@pytest.mark.parametrize(
    ("name", "says"),
    [("none.pqm", "none.pqm: No such file"), ("nonsense", "no weights 'nonsense'"),
     ("empty", "empty: an empty file"), ("text", "text: of no kind that is known; begins with"),
     (".", ".: a folder, and no archive"), ("s3://b/a", "jobs.status --archive s3://b/a"),
     ("cut.pqm", "cut.pqm: cut off"), ("cut", "cut: not a safetensors file"),
     ("other", "other: format None"), ("bad", "plan.json: damaged")],
)  # fmt: skip
def test_info_says_what_is_wrong(folder, capsys, name, says):
    from safetensors.numpy import save

    Path("empty").write_bytes(b"")
    Path("text").write_text("hello, this is a text")
    Path("cut.pqm").write_bytes(Path("in.pqm").read_bytes()[:9])
    Path("cut").write_bytes(Path("w").read_bytes()[:100])
    Path("other").write_bytes(save({"a": np.zeros(3)}))
    Path("bad").mkdir()
    Path("bad/plan.json").write_text("[1, 2")
    assert main(["info", name]) == 2
    assert says in one_line(capsys)


def test_a_small_file_that_asks_for_very_many_pixels_is_refused_unless_told_otherwise(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = container.parse(Path("in.pqm").read_bytes())
    vast = container.pack(dataclasses.replace(stream, height=1 << 14, width=1 << 14), b"")
    Path("vast.pqm").write_bytes(vast)
    assert main(["decompress", "vast.pqm", "out.png", "--weights", "w"]) == 2
    error = one_line(capsys)
    assert "16384 x 16384 pixels are more than max_pixels = 67108864" in error
    assert "--max-pixels" in error and not Path("out.png").exists()
    small = ["decompress", "in.pqm", "out.png", "--weights", "w", "--max-pixels"]
    assert main([*small, str(24 * 33 - 1)]) == 2 and "--max-pixels" in one_line(capsys)
    assert main([*small, str(24 * 33)]) == 0
