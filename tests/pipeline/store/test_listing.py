"""What inputs expand to where folders, links, names and lists are not as they should be."""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
import threading
from pathlib import Path

import pytest

from pipeline.store import folders, shard_names
from pipeline.store.inputs import absolute, expand, holder
from pipeline.store.listing import is_shard, lines_of
from pipeline.store.storage import NotFound, StorageError, Store
from tests.corpus import make_tar

TAR = make_tar([("a.jpg", b"x")])


def fill(folder: Path, *names: str) -> Path:
    """Tars of these names below a folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(TAR)
    return folder


def names(folder: Path, *inputs: str) -> list[str]:
    """What the inputs give, relative to the folder that they are below."""
    found = expand([str(folder / one) for one in inputs])
    return [os.path.relpath(info.url, folder) for info in found]


# Folders


@pytest.mark.parametrize("given", [".", "**/*.tar", "*.tar", "a/b/a/*.tar"])
def test_links_to_their_own_folder_end(tmp_path: Path, given: str) -> None:
    fill(tmp_path, "s.tar")
    for name in "ab":
        (tmp_path / name).symlink_to(".")
    assert len(names(tmp_path, given)) == 1


@pytest.mark.parametrize("given", [[""], ["**"], ["*/*.tar"], ["current", "v1"], ["v1", "current"]])
def test_a_file_that_a_link_shows_again_is_one_shard_by_its_own_name(
    tmp_path: Path, given: list[str]
) -> None:
    fill(tmp_path, "v1/s.tar", "v1/deep/t.tar")
    (tmp_path / "current").symlink_to("v1")
    (tmp_path / "v1/again.tar").symlink_to("s.tar")
    found = names(tmp_path, *(f"{one}/*.tar" if one == "**" else one for one in given))
    assert [name for name in found if "deep" not in name] == ["v1/s.tar"]


def test_what_a_link_alone_shows_is_read_by_the_links_name(tmp_path: Path) -> None:
    fill(tmp_path, "elsewhere/v1/s.tar", "elsewhere/t.tar")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/photos").symlink_to(tmp_path / "elsewhere/v1")
    (tmp_path / "in/u.tar").symlink_to("../elsewhere/t.tar")
    assert names(tmp_path, "in") == ["in/photos/s.tar", "in/u.tar"]
    assert names(tmp_path, "in/*/s.tar", "in/?.tar") == ["in/photos/s.tar", "in/u.tar"]
    (tmp_path / "way").symlink_to("in")
    assert names(tmp_path, "way") == ["way/photos/s.tar", "way/u.tar"]


def test_a_glob_finds_a_folder_by_whichever_of_its_names_fits(tmp_path: Path) -> None:
    fill(tmp_path, "a/s.tar")
    (tmp_path / "b").symlink_to("a")
    assert names(tmp_path, "**/b/*.tar") == ["b/s.tar"] == names(tmp_path, "b*/*.tar")


def test_hidden_folders_and_shards_are_left_alone_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fill(tmp_path, "s.tar", ".cache/s.tar", ".cache/deep/t.tar", "x/.git/u.tar", "._s.tar")
    for given in (".", "**/*.tar"):
        caplog.clear()
        assert names(tmp_path, given) == ["s.tar"]
        (record,) = caplog.records
        assert all(name in record.message for name in (".cache", "x/.git", "._s.tar"))
    assert names(tmp_path, ".cache/*.tar") == [".cache/s.tar"], "asked for by name"
    assert names(tmp_path, ".*/s.tar") == [".cache/s.tar"]


def test_hidden_prefixes_of_a_bucket_are_left_alone_too(
    s3: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = Store(s3)
    for name in ("in/s.tar", "in/.cache/s.tar", "in/.cache/t.tar", "in/S.TAR", "in/s.tar.xz"):
        store.put(name, TAR)
    wanted = [f"{s3}/in/S.TAR", f"{s3}/in/s.tar"]
    assert [info.url for info in expand([f"{s3}/in"])] == wanted
    own = [r for r in caplog.records if r.name == "pipeline.store.listing"]
    assert [record.levelname for record in own] == ["INFO", "WARNING"]
    assert f"{s3}/in/.cache" in caplog.text and f"{s3}/in/s.tar.xz" in caplog.text
    assert [info.url for info in expand([f"{s3}/in/**/s.tar"])] == wanted[1:]
    assert [info.url for info in expand([f"{s3}/in/.cache/*"])] == [
        f"{s3}/in/.cache/s.tar", f"{s3}/in/.cache/t.tar"
    ]  # fmt: skip


@pytest.mark.parametrize("given", [".", "*.tar", "s-{000..001}.tar", "**/s-*"])
def test_a_dangling_link_is_a_missing_shard_by_name(tmp_path: Path, given: str) -> None:
    fill(tmp_path, "s-000.tar")
    (tmp_path / "s-001.tar").symlink_to("/nowhere/s-001.tar")
    with pytest.raises(NotFound, match=r"s-001\.tar: a link to /nowhere/s-001\.tar.*not there"):
        names(tmp_path, given)


def test_a_dangling_link_to_a_folder_and_one_to_itself_are_named_together(tmp_path: Path) -> None:
    fill(tmp_path, "s.tar")
    (tmp_path / "photos-2021").symlink_to("/nowhere")
    (tmp_path / "t.tar").symlink_to("t.tar")
    with pytest.raises(NotFound, match=r"2 of the inputs.*photos-2021: a link.*t\.tar: a link"):
        names(tmp_path, ".")


@pytest.mark.parametrize("given", [".", "**/*.tar", "locked/*.tar"])
def test_an_unreadable_folder_is_named(
    tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "s.tar", "locked/t.tar")
    scandir = os.scandir

    def refuse(path: str):  # as for anybody but the user whom the tests may run as
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(NotFound, match="locked: cannot be listed: Permission denied"):
        names(tmp_path, given)


def test_what_looks_like_a_shard_and_is_not_read_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, "a.tar", "b.TAR", "c.Tar", "g.tgz", "z.tar.zst", "notes.txt", "a.json")
    (tmp_path / "e.tar.gz").write_bytes(gzip.compress(TAR))
    odd = ["f.tar.bz2", "h.tar.xz", "i.tbz2", "j.zip", "k.tar.part", "l.tar~", "m.tar_1", "n.7z"]
    fill(tmp_path, *odd)
    (tmp_path / "folder.tar").mkdir()
    assert names(tmp_path, ".") == ["a.tar", "b.TAR", "c.Tar", "e.tar.gz", "g.tgz", "z.tar.zst"]
    (record,) = caplog.records
    assert record.levelname == "WARNING" and all(str(tmp_path / name) in record.message
                                                 for name in odd)  # fmt: skip
    assert "folder.tar, a folder" in record.message
    assert "notes.txt" not in record.message and "a.json" not in record.message


def test_a_folder_of_others_alone_says_what_is_there(tmp_path: Path) -> None:
    fill(tmp_path, "s.tar.bz2")
    with pytest.raises(NotFound, match=r"holds no \*\.tar.*s\.tar\.bz2 is there, and is not read"):
        names(tmp_path, ".")


@pytest.mark.parametrize("given", ["caf\udce9.tar", ".", "*.tar"])
def test_a_name_that_is_not_utf_8_is_named(tmp_path: Path, given: str) -> None:
    (tmp_path / "good.tar").write_bytes(TAR)
    (tmp_path / "caf\udce9.tar").write_bytes(TAR)
    with pytest.raises(
        StorageError, match=r"caf\\xe9\.tar: its name is not UTF-8: rename"
    ) as error:
        expand([f"{tmp_path}/{given}"])
    str(error.value).encode()


@pytest.mark.parametrize("given", ["pipe.tar", ".", "*.tar"])
def test_a_named_pipe_is_refused_at_once(tmp_path: Path, given: str) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(StorageError, match=r"pipe\.tar: is a named pipe"):
        names(tmp_path, given)


def test_a_device_is_refused() -> None:
    with pytest.raises(StorageError, match="/dev/null: is a device"):
        expand(["/dev/null"])


# Lists


@pytest.mark.parametrize(
    "text",
    [
        "{}\n", "\ufeff{}\n", "{}\r\n", "\ufeff# shards\r\n\r\n{}", "  {}  \n#{}\n", "{}\r#x\r",
    ],
    ids=["plain", "bom", "crlf", "bom-crlf-comment", "spaces", "cr"],
)  # fmt: skip
def test_lists_are_read_however_they_were_saved(tmp_path: Path, text: str) -> None:
    fill(tmp_path, "größer\u2028.tar")
    url = str(tmp_path / "größer\u2028.tar")
    (tmp_path / "list.txt").write_bytes(text.replace("{}", url).encode())
    assert [info.url for info in expand([f"@{tmp_path}/list.txt"])] == [url]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_lists_in_other_encodings_are_refused_by_name(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("# one\n/data/größer.tar\n".encode(encoding))
    with pytest.raises(StorageError, match=r"list\.txt: a list of names must be UTF-8.*iconv"):
        expand([f"@{path}"])


def test_the_line_of_a_list_that_is_not_utf_8_is_named() -> None:
    with pytest.raises(StorageError, match="l.txt: .*line 3 has byte 0xe9 at 9"):
        lines_of(b"a\nb\n# caf\xe9\n", "l.txt")


def test_a_list_without_names_and_a_name_with_a_nul_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"# nothing\n")
    with pytest.raises(NotFound, match=r"empty\.txt: names no shard"):
        expand([f"@{tmp_path}/empty.txt"])
    with pytest.raises(StorageError, match="holds a NUL"):
        absolute("/data/a\0b.tar")


# Paths


@pytest.mark.parametrize("given", ["", "  ", "s3://", "s3:///"])
def test_an_empty_place_is_refused(given: str) -> None:
    with pytest.raises(StorageError, match="empty path|names no bucket"):
        Store(given)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/x").root == str(tmp_path / "x")
    fill(tmp_path, "s.tar")
    (tmp_path / "l.txt").write_text("~/s.tar\n")
    assert names(tmp_path, "s.tar") == ["s.tar"] == [Path(i.url).name for i in expand(["@~/l.txt"])]


def test_an_output_among_the_inputs_is_known(tmp_path: Path) -> None:
    fill(tmp_path, "in/s.tar", "in/deep/t.tar")
    (tmp_path / "way").symlink_to("in")
    for given, output in [("in", "in/arch"), ("in", "in"), ("in/**/*.tar", "in/a/b"),
                          ("way", "in/x"), ("in", "way/x")]:  # fmt: skip
        around = holder([f"{tmp_path}/{given}"], f"{tmp_path}/{output}")
        assert around == str(tmp_path / given)
    for given, output in [("in", "in-too"), ("in/*.tar", "in/arch"), ("in/s.tar", "in/arch"),
                          ("in/deep", "in")]:  # fmt: skip
        assert holder([f"{tmp_path}/{given}"], f"{tmp_path}/{output}") is None
    assert holder(["s3://b/in/"], "s3://b/in/arch") == "s3://b/in"
    assert holder(["s3://b/in"], "s3://b/in2") is None


# Names of shards


def test_shard_ids_have_64_bits_and_two_alike_are_refused() -> None:
    found = shard_names.shard_id("/data/a b/photos 1.TAR.gz")
    assert re.fullmatch("photos-1-[0-9a-f]{16}", found)
    assert len({shard_names.shard_id(f"/d/{n}/data.tar") for n in range(100_000)}) == 100_000
    with pytest.raises(StorageError, match="/d/a.tar and /d/b.tar would both be called x-1"):
        shard_names.check_unique([("x-1", "/d/a.tar"), ("y-2", "/d/c.tar"), ("x-1", "/d/b.tar")])


def test_what_is_a_shard() -> None:
    shards = ["a.tar", "a.TAR", "a.tar.gz", "a.tgz", "a.TGZ", "a.tar.zst", "a.b.tar"]
    assert all(map(is_shard, shards))
    assert not any(map(is_shard, ["a.tar.bz2", "tar", "a.tarx", "a.gz", "a.zst", "a.jpg"]))


def test_a_folder_that_goes_while_it_is_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "s.tar", "goes/t.tar")
    scandir, gone = os.scandir, threading.Event()

    def remove(path: str):
        if str(path).endswith("goes") and not gone.is_set():
            gone.set()
            shutil.rmtree(path)
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", remove)
    with pytest.raises(NotFound, match="goes: cannot be listed: No such file"):
        names(tmp_path, ".")
