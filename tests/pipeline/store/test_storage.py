"""Listing, reading and create-only writing, on local files and a real S3 server, with faults."""

from __future__ import annotations

import errno
import os
import pickle
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.store import errors, inputs, storage
from pipeline.store import s3 as s3_backend
from pipeline.store.storage import (
    AccessDenied,
    NotFound,
    NotWritable,
    StorageError,
    Store,
    TransientStorage,
    expand,
    open_read,
    retries,
)
from tests.faulty import FaultyS3, faulty_s3


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "BACKOFF_S", 0.01)
    monkeypatch.setattr(errors, "ATTEMPTS", 4)


@pytest.fixture
def proxy(s3: str, moto_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """The S3 server of the environment, behind a proxy that can break requests."""
    with faulty_s3(moto_server) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def fill(root: str, *names: str) -> Store:
    """An archive with these objects, each holding its own name."""
    store = Store(root)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, name.encode()), names))
    return store


def names(root: str, *inputs: str) -> list[str]:
    """What the inputs below ``root`` expand to, relative to it."""
    return [info.url.removeprefix(root + "/") for info in expand([f"{root}/{i}" for i in inputs])]


# expand


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("train/s-{000..002}.tar", ["train/s-000.tar", "train/s-001.tar", "train/s-002.tar"]),
        ("train/s-*1.tar", ["train/s-001.tar"]),
        ("**/s-00[12].tar", ["train/deep/s-001.tar", "train/s-001.tar", "train/s-002.tar"]),
        ("{train,val}/s-?00.tar", ["train/s-000.tar", "val/s-000.tar"]),
        ("train/deep", ["train/deep/s-001.tar"]),
        ("val/", ["val/s-000.tar"]),
        ("{train/deep,val}", ["train/deep/s-001.tar", "val/s-000.tar"]),
        ("train/notes.txt", ["train/notes.txt"]),
    ],
)
def test_input_patterns_find_the_shards_in_order(
    root: str, pattern: str, expected: list[str]
) -> None:
    fill(
        root,
        *(f"train/s-00{i}.tar" for i in range(3)),
        "train/deep/s-001.tar",
        "train/notes.txt",
        "val/s-000.tar",
    )
    assert names(root, pattern) == expected


def test_overlapping_inputs_give_each_shard_once_with_size_and_etag(root: str) -> None:
    store = fill(root, "a.tar", "b.tar")
    found = expand([f"{root}/b.tar", f"{root}/*.tar", root])
    assert found == [store.info("a.tar"), store.info("b.tar")]
    assert found[0].size == 5 and found[0].etag


def test_list_file_holds_inputs_one_a_line(root: str) -> None:
    store = fill(root, "a.tar", "b.tar", "c.tar")
    store.put("list.txt", f"# two\n{root}/{{a,c}}.tar\n\n  {root}/c.tar \n".encode())
    found = [info.url for info in expand([f"@{root}/list.txt"])]
    assert found == [f"{root}/a.tar", f"{root}/c.tar"]


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("s-{0..3}.tar", "s-2.tar"),
        ("x*.tar", "x*.tar"),
        ("nowhere", "nowhere"),
        ("docs", "no *.tar"),
    ],
)
def test_an_input_that_matches_nothing_is_named(root: str, pattern: str, named: str) -> None:
    fill(root, "s-0.tar", "s-1.tar", "s-3.tar", "docs/readme.md")
    with pytest.raises(NotFound) as error:
        expand([f"{root}/s-0.tar", f"{root}/{pattern}"])
    assert named in str(error.value) and pattern in str(error.value)


def test_local_inputs_may_be_relative_or_file_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(str(tmp_path), "a.tar", "odd[1].tar")
    monkeypatch.chdir(tmp_path)
    expected = [str(tmp_path / "a.tar"), str(tmp_path / "odd[1].tar")]
    assert [i.url for i in expand(["a.tar", f"file://{tmp_path}/odd[1].tar"])] == expected


def test_unknown_scheme_is_refused_with_a_way_out() -> None:
    with pytest.raises(StorageError, match="gs://b/x.tar.*AWS_ENDPOINT_URL"):
        expand(["gs://b/x.tar"])


def test_many_s3_shards_are_found_by_listing_pages_not_one_by_one(
    s3: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(s3, *(f"d/s-{i:03}.tar" for i in range(40)), "d/t.tar")
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "15")
    proxy.log.clear()
    proxy.rules = [("GET", "continuation-token", "503")]
    assert len(expand([f"{s3}/d/s-{i:03}.tar" for i in range(40)])) == 40
    assert [method for method, _ in proxy.log] == ["GET"] * 4  # three pages, one of them twice


def test_a_listing_far_too_long_is_given_up_for_single_requests(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(s3, *(f"s-{i:02}.tar" for i in range(20)))
    monkeypatch.setattr(inputs, "LIST_SLACK", 0)
    assert len(expand([f"{s3}/s-{{00..19}}.tar"])) == 20


# open_read


@pytest.mark.parametrize("fault", ["cut", "503", "reset", "lost"])
def test_a_broken_read_goes_on_at_the_next_byte(
    s3: str, proxy: FaultyS3, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_backend, "READ_BLOCK", 300_000)
    data = os.urandom(2_000_000)
    Store(s3).put("a.tar", data)
    before = retries()
    with open_read(f"{s3}/a.tar") as stream:
        parts = [stream.read(1000)]
        proxy.rules = [("GET", "a.tar", fault), ("GET", "a.tar", fault)]
        while part := stream.read(100_000):
            parts.append(part)
        assert stream.bytes_read == len(data) == stream.size
    assert b"".join(parts) == data
    # aiohttp repeats a GET once by itself when a connection that it uses again was reset.
    assert not proxy.rules and retries() - before in (
        (1, 2) if fault in ("reset", "lost") else (2,)
    )


def test_a_read_that_keeps_failing_is_transient_after_bounded_attempts(
    s3: str, proxy: FaultyS3
) -> None:
    Store(s3).put("a.tar", b"x" * 1000)
    with open_read(f"{s3}/a.tar") as stream:
        proxy.rules = [("GET", "a.tar", "cut")] * 10
        with pytest.raises(TransientStorage, match="a.tar"):
            stream.read(10)
    assert len(proxy.rules) == 10 - errors.ATTEMPTS


def test_a_source_replaced_while_it_is_read_is_an_error(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_backend, "READ_BLOCK", 10_000)
    store = Store(root)
    store.put("a.tar", b"x" * 100_000)
    with open_read(store.url("a.tar")) as stream:
        stream.read(10)
        store.put("a.tar", b"y" * 100_000)
        if root.startswith("/"):  # the open file is still the old one until it is opened again
            assert stream._file is not None
            stream._file.close()
            stream._file = None
        with pytest.raises(StorageError, match="replaced"):
            stream.read()


def test_a_source_replaced_since_it_was_listed_is_an_error(root: str) -> None:
    store = fill(root, "a.tar")
    (info,) = expand([f"{root}/a.tar"])
    store.put("a.tar", b"other")
    with pytest.raises(StorageError, match="replaced"):
        open_read(info.url, info)


def test_a_missing_source_is_not_found(root: str) -> None:
    fill(root, "dir.tar/a")
    for name in ("none.tar", "dir.tar"):
        with pytest.raises(StorageError, match=name) as error:
            open_read(f"{root}/{name}")
        assert not isinstance(error.value, TransientStorage)


def test_a_tar_can_be_read_from_the_stream_and_stepped_over(root: str, tmp_path: Path) -> None:
    big, small = os.urandom(3_000_000), b"small"
    for name, data in (("big", big), ("small", small)):
        (tmp_path / name).write_bytes(data)
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tmp_path / "big", "big")
        tar.add(tmp_path / "small", "small")
    store = Store(root)
    store.put("t.tar", (tmp_path / "t.tar").read_bytes())
    with open_read(store.url("t.tar")) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        assert [m.name for m in tar] == ["big", "small"]
        assert stream.bytes_read < 100_000
        member = tar.extractfile("small")
        assert member is not None and member.read() == small
    with open_read(store.url("t.tar")) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        assert [len(tar.extractfile(m).read()) for m in tar] == [len(big), len(small)]  # type: ignore[union-attr]


def test_an_empty_object_reads_as_nothing(root: str) -> None:
    store = Store(root)
    store.put("e", b"")
    with open_read(store.url("e")) as stream:
        assert (stream.read(), stream.size) == (b"", 0)
    assert store.get("e") == b""


# Store


def test_objects_come_back_as_written(root: str) -> None:
    store = fill(root, "codes/b", "codes/a", "codes/deep/c", "ledger/a")
    assert list(store.names("codes/")) == ["codes/a", "codes/b", "codes/deep/c"]
    assert list(store.names("codes/b")) == ["codes/b"]
    assert list(store.names("none/")) == []
    assert [info.size for info in store.list("ledger/")] == [8]
    assert store.get("codes/a") == b"codes/a"
    assert store.get_range("codes/a", 2, 3) == b"des"
    store.put("codes/a", b"new")
    assert store.get("codes/a") == b"new"
    info = store.info("codes/a")
    assert info == next(iter(store.list("codes/a"))) and info.url == store.url("codes/a")
    store.delete("codes/a")
    store.delete("codes/a")
    assert store.info("codes/a") is None and store.info("codes") is None
    with pytest.raises(NotFound, match="codes/a"):
        store.get("codes/a")
    with pytest.raises(StorageError):
        store.get_range("codes/b", 5, 100)


def test_first_writer_wins(root: str) -> None:
    store = Store(root)
    assert store.put_if_absent("codes/x", b"one")
    assert not store.put_if_absent("codes/x", b"two")
    assert store.put_if_absent("codes/x", b"one"), "equal bytes count as ours"
    assert store.get("codes/x") == b"one"


def test_of_many_writers_at_once_one_wins(root: str) -> None:
    store = pickle.loads(pickle.dumps(Store(root)))
    for name in ("x", "y", "z"):
        with ThreadPoolExecutor(24) as pool:
            won = list(pool.map(lambda i, n=name: store.put_if_absent(n, b"%d" % i), range(24)))
        assert won.count(True) == 1
        assert store.get(name) == b"%d" % won.index(True)


@pytest.mark.parametrize("conditional", [True, False])
def test_lost_reply_of_a_write_that_succeeded_is_ours(
    s3: str, proxy: FaultyS3, conditional: bool
) -> None:
    store = Store(s3, conditional=conditional)
    proxy.rules = [("PUT", "/x", "lost")]
    assert store.put_if_absent("x", b"data")
    assert not proxy.rules and store.get("x") == b"data"


def test_write_repeated_after_an_error_loses_against_other_bytes(s3: str, proxy: FaultyS3) -> None:
    store = fill(s3, "x")
    proxy.rules = [("PUT", "/x", "503")]
    assert not store.put_if_absent("x", b"other")
    assert store.get("x") == b"x"


def test_files_of_a_crashed_writer_are_not_listed(tmp_path: Path) -> None:
    store = fill(str(tmp_path), "codes/a")
    (tmp_path / "codes" / ".b.parquet.0123.tmp").write_bytes(b"half")
    assert list(store.names("codes/")) == ["codes/a"]


def test_local_files_follow_the_umask(tmp_path: Path) -> None:
    Store(str(tmp_path)).put_if_absent("a", b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


# probe


def test_probe_trusts_a_good_store_and_leaves_nothing(root: str) -> None:
    store = Store(root)
    assert store.probe() and store.conditional
    assert list(store.names()) == []


@pytest.mark.parametrize("create_only", ["ignore", "check"])
def test_probe_finds_stores_that_overwrite(
    s3: str, proxy: FaultyS3, create_only: str, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.create_only = create_only
    store = Store(s3)
    assert not store.probe()
    assert "no atomic create-only writes" in caplog.text
    assert store.put_if_absent("x", b"one") and not store.put_if_absent("x", b"two")
    assert store.get("x") == b"one"


def test_probe_finds_file_systems_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(str(tmp_path))
    assert not store.probe()
    assert store.put_if_absent("x", b"one") and not store.put_if_absent("x", b"two")


def test_probe_names_a_missing_bucket(s3: str) -> None:
    with pytest.raises(NotWritable, match=r"no-such-bucket-here.*bucket"):
        Store("s3://no-such-bucket-here/archive").probe()


def test_probe_names_a_missing_permission(s3: str, proxy: FaultyS3) -> None:
    proxy.rules = [("PUT", "", "403")]
    with pytest.raises(NotWritable, match=r"AccessDenied.*policy"):
        Store(s3).probe()


def test_probe_names_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in ("file", "file/below"):
        with pytest.raises(NotWritable, match="a file is where a directory must be"):
            Store(str(tmp_path / output)).probe()


def test_probe_names_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    output = "/proc/nowhere" if os.geteuid() == 0 else str(folder)
    with pytest.raises(NotWritable, match=output):
        Store(output).probe()


def test_dead_endpoint_is_transient_and_names_the_setting(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(TransientStorage, match="AWS_ENDPOINT_URL"):
        Store(s3).probe()


def test_missing_credentials_are_named(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(AccessDenied, match="credentials"):
        Store(s3).get("x")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), NotWritable),
        (OSError(errno.EROFS, "Read-only file system"), NotWritable),
        (OSError(errno.ESTALE, "Stale file handle"), TransientStorage),
        (OSError(errno.EIO, "Input/output error"), TransientStorage),
        (ConnectionResetError(), TransientStorage),
        (TimeoutError(), TransientStorage),
        (PermissionError("no"), AccessDenied),
        (FileNotFoundError("no"), NotFound),
        (OSError(errno.EINVAL, "Invalid argument"), StorageError),
    ],
)
def test_errors_of_the_system_are_sorted(error: OSError, expected: type[StorageError]) -> None:
    found = errors.classify(error, "s3://b/x")
    assert type(found) is expected and str(found).startswith("s3://b/x: ")


def test_errors_that_are_not_about_storage_pass_through() -> None:
    def action() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        storage.retry(action, "x")
