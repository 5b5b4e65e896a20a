"""Every sample of a tar comes out, or the damage says what is missing and where."""

from __future__ import annotations

import gzip
import io
import string
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import webdataset as wds
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.shards import MAX_DAMAGE, Sample, ShardReader
from tests.corpus import BLOCK, header_offsets, make_tar, samples

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


class OneWay(io.RawIOBase):
    """A stream that cannot seek and gives at most ``most`` bytes a read, as a socket does."""

    def __init__(self, data: bytes | BinaryIO, most: int = 1 << 20) -> None:
        self._source = io.BytesIO(data) if isinstance(data, bytes) else data
        self._most = most

    def read(self, size: int = -1) -> bytes:
        return self._source.read(min(size, self._most) if size >= 0 else self._most)

    def seekable(self) -> bool:
        return False


def read(
    tar: bytes, size: int | None = None, wanted: Callable[[str], bool] | None = None, **options: int
) -> tuple[list[Sample], ShardReader]:
    reader = ShardReader(io.BytesIO(tar), len(tar) if size is None else size, wanted, **options)
    return list(reader), reader


def healthy(tar: bytes, **options) -> list[Sample]:
    found, reader = read(tar, **options)
    assert reader.complete and reader.damage == () and reader.bytes_read == len(tar)
    assert reader.samples == len(found)
    return found


def grouped(entries: list[tuple[str, bytes]]) -> dict[str, dict[str, bytes]]:
    """What `samples()` entries are as samples."""
    result: dict[str, dict[str, bytes]] = {}
    for name, data in entries:
        key, extension = name.split(".", 1)
        result.setdefault(key, {})[extension] = data
    return result


def as_dict(found: list[Sample]) -> dict[str, dict[str, bytes]]:
    assert len({s.key for s in found}) == len(found)
    return {s.key: s.members for s in found}


def webdataset_reads(tar: bytes, folder: Path) -> list[tuple[str, dict[str, bytes]]]:
    path = folder / "shard.tar"
    path.write_bytes(tar)
    dataset = wds.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return [(s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in dataset]


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


# ---- healthy tars: the same as webdataset

word = st.text(string.ascii_letters + "._-é日 ", min_size=1, max_size=8)
names = st.one_of(
    st.builds("{}.{}".format, st.sampled_from(["a", "b", "d/a", "d.x/a", "./a"]), word),
    st.lists(word, min_size=1, max_size=3).map("/".join),
    st.sampled_from(["__meta__", "__m__/a.jpg", "__.jpg", "__", "d/__m__.jpg", ".hid", "d/.hid"]),
    st.builds("{}/{}.JPG".format, st.text("pq", min_size=90, max_size=160), word),
).filter(lambda name: not name.endswith("/"))


def _visible(members: dict[str, bytes]) -> dict[str, bytes]:
    """Without extensions that look like webdataset's own fields, which its samples hide."""
    return {e: data for e, data in members.items() if not e.startswith("__")}


@settings(max_examples=150, deadline=None)
@given(
    entries=st.lists(st.tuples(names, st.binary(max_size=1100)), max_size=8),
    kind=st.sampled_from(["gnu", "pax"]),
    most=st.sampled_from([1, 511, 1 << 20]),
)
@example(entries=[("a.jpg", b"1"), ("LICENSE", b"2"), ("a.json", b"3")], kind="pax", most=7)
def test_the_same_samples_as_webdataset(entries, kind, most, tmp_path_factory):
    tar = make_tar(entries, tarfile.GNU_FORMAT if kind == "gnu" else tarfile.PAX_FORMAT)
    reader = ShardReader(OneWay(tar, most), len(tar))
    ours = list(reader)
    assert reader.complete and reader.bytes_read == len(tar) and reader.members == len(entries)
    lone = {s.offset for s in ours if s.members.keys() == {""} and not s.key.endswith(".")}
    try:
        theirs = webdataset_reads(tar, tmp_path_factory.mktemp("wds"))
    except ValueError as error:
        assert "duplicate file name" in str(error)
        return
    grouped = [(s.key, _visible(s.members)) for s in ours if s.offset not in lone]
    alone = [(s.key, s.members) for s in ours if s.offset in lone]
    assert [s for s in theirs if s not in alone] == [s for s in grouped if s not in alone]


@pytest.mark.parametrize("format", FORMATS)
def test_names_are_split_as_in_webdataset(format):
    entries = [
        ("d.x/a.b.seg.PNG", b"1"),
        ("d.x/a.txt", b"2"),
        ("./c.jpg", b"3"),
        ("__index__", b"skipped"),
        ("é.jpg", b"4"),
    ]
    found = healthy(make_tar(entries, format))
    assert [(s.key, s.members) for s in found] == [
        ("d.x/a", {"b.seg.png": b"1", "txt": b"2"}),
        ("./c", {"jpg": b"3"}),
        ("é", {"jpg": b"4"}),
    ]
    assert [s.offset for s in found] == sorted(s.offset for s in found)


def test_names_that_are_not_utf8_keep_their_bytes():
    found = healthy(make_tar([("caf\udce9.jpg", b"1")], tarfile.GNU_FORMAT))
    assert found[0].key.encode("utf-8", "surrogateescape") == b"caf\xe9"


@pytest.mark.parametrize("length", [99, 100, 101, 155, 300, 5000])
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_gnu_and_pax(format, length):
    key = "k" * (length - 4)
    assert as_dict(healthy(make_tar([(f"{key}.jpg", b"x"), ("b.jpg", b"y")], format))) == {
        key: {"jpg": b"x"},
        "b": {"jpg": b"y"},
    }


def test_a_gnu_long_name_outlives_a_pax_header_after_it():
    key = "k" * 200
    gnu = make_tar([(f"{key}.jpg", b"x")], tarfile.GNU_FORMAT)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "ignored", pax_headers={"comment": "c"})
    assert as_dict(
        healthy(gnu[: 2 * BLOCK] + buffer.getvalue()[: 2 * BLOCK] + gnu[2 * BLOCK :])
    ) == {key: {"jpg": b"x"}}


def test_ustar_prefix_makes_long_names():
    key = "d" * 120 + "/" + "k" * 60
    tar = make_tar([(f"{key}.jpg", b"x")], tarfile.USTAR_FORMAT)
    assert as_dict(healthy(tar)) == {key: {"jpg": b"x"}}


def test_pax_size_and_global_headers():
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}
    ) as tar:
        add(tar, "a.jpg", b"x" * 700, pax_headers={"comment": "=\n7 x=y\n", "size": "700"})
        add(tar, "b.jpg", b"y")
    data = bytearray(buffer.getvalue())
    at = data.index(b"a.jpg\0")
    data[at + 124 : at + 136] = b"0" * 11 + b"\0"  # as for members over 8 GiB: only PAX knows
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])
    found = healthy(bytes(data))
    assert as_dict(found) == {"a": {"jpg": b"x" * 700}, "b": {"jpg": b"y"}}


def test_base_256_sizes_and_signed_checksums():
    data = bytearray(make_tar([("é.jpg", b"x" * 600), ("b.jpg", b"y")], tarfile.GNU_FORMAT))
    data[124:136] = b"\x80" + (600).to_bytes(11, "big")
    data[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in data[:BLOCK])
    data[148:156] = b"%06o\0 " % signed
    assert as_dict(healthy(bytes(data))) == {"é": {"jpg": b"x" * 600}, "b": {"jpg": b"y"}}


def test_a_negative_size_is_a_bad_header():
    data = bytearray(make_tar([("a.jpg", b"x"), ("b.jpg", b"y")], tarfile.GNU_FORMAT))
    data[124:136] = b"\xff" * 12
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:BLOCK])
    found, reader = read(bytes(data))
    assert as_dict(found) == {"b": {"jpg": b"y"}}
    assert reader.damage == ("byte 0: bad header; 1024 bytes skipped",)


# ---- what webdataset drops or raises on is still there


def test_a_repeated_member_begins_a_second_sample():
    entries = [("a.jpg", b"1"), ("a.txt", b"2"), ("a.jpg", b"3"), ("a.txt", b"4")]
    assert [(s.key, s.members) for s in healthy(make_tar(entries))] == [
        ("a", {"jpg": b"1", "txt": b"2"}),
        ("a", {"jpg": b"3", "txt": b"4"}),
    ]


def test_members_out_of_order_give_the_key_again():
    entries = [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3")]
    assert [s.key for s in healthy(make_tar(entries))] == ["a", "b", "a"]


def test_a_file_without_extension_is_a_sample_and_does_not_split_another():
    entries = [("a.jpg", b"1"), ("LICENSE", b"2"), ("a.txt", b"3")]
    found = {s.key: s.members for s in healthy(make_tar(entries))}
    assert found == {"a": {"jpg": b"1", "txt": b"3"}, "LICENSE": {"": b"2"}}


def test_links_are_named_and_directories_skipped():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add(tar, "d.x", type=tarfile.DIRTYPE)
        add(tar, "d.x/a.jpg", b"1")
        add(tar, "d.x/b.jpg", type=tarfile.LNKTYPE, linkname="d.x/a.jpg")
        add(tar, "d.x/b.txt", b"2")
        add(tar, "latest", type=tarfile.SYMTYPE, linkname="d.x")
    found = healthy(buffer.getvalue())
    assert [(s.key, s.members, s.unread) for s in found] == [
        ("d.x/a", {"jpg": b"1"}, {}),
        ("d.x/b", {"txt": b"2"}, {"jpg": "a hard link"}),
    ]


def test_sparse_members_are_refused_and_the_rest_is_read():
    def block(name: bytes, size: int, kind: bytes, more: bool) -> bytes:
        head = bytearray(BLOCK)
        head[: len(name)] = name
        head[124:136] = b"%011o\0" % size
        head[156:157] = kind
        head[257:265] = b"ustar  \0"
        head[482] = more
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        return bytes(head)

    middle = bytearray(BLOCK)
    middle[504] = 1  # one more block of the list
    sparse = block(b"a.jpg", 700, b"S", True) + middle + bytes(BLOCK) + b"x" * 1024
    tar = sparse + make_tar([("a.txt", b"1"), ("b.jpg", b"2")])
    found, reader = read(tar)
    assert [(s.key, s.members) for s in found] == [("a", {"txt": b"1"}), ("b", {"jpg": b"2"})]
    assert found[0].unread == {"jpg": "a sparse member"}
    assert reader.damage == ("byte 0: sparse member 'a.jpg' refused",)

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        fields = {"GNU.sparse.major": "1", "GNU.sparse.name": "a.jpg"}
        add(archive, "GNUSparseFile.1/a.jpg", b"0\n" + bytes(600), pax_headers=fields)
        add(archive, "b.jpg", b"2")
    found, reader = read(buffer.getvalue())
    assert [s.key for s in found] == ["a", "b"] and found[0].unread and len(reader.damage) == 1


def test_unwanted_members_are_not_read_but_keep_their_sample():
    entries = [("a.json", b"{}"), ("b.jpg", b"1"), ("b.json", b"{}")]
    found = healthy(make_tar(entries), wanted=lambda extension: extension == "jpg")
    assert [(s.key, s.members, s.unread) for s in found] == [
        ("a", {}, {}),
        ("b", {"jpg": b"1"}, {}),
    ]


# ---- the end


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_tar_is_complete(format):
    assert healthy(make_tar([], format)) == []
    assert healthy(bytes(2 * BLOCK)) == []


def test_an_empty_object_and_foreign_data_are_damage():
    tar = make_tar(samples(3))
    for data, cause in [
        (b"", "not a tar: the object is empty (0 bytes)"),
        (b"<html>", "not a tar: truncated at byte 6: inside a header"),
        (b"<html>" * 1000, "not a tar: byte 0: bad header; no good header in the 6000 bytes"),
        (gzip.compress(tar, mtime=0), "not a tar: byte 0: bad header of a gzip file"),
        (b"ustar" * 1000, "not a tar: byte 0: bad header"),
    ]:
        found, reader = read(data)
        assert found == [] and not reader.complete
        assert len(reader.damage) == 1 and reader.damage[0].startswith(cause)
        assert reader.bytes_read == len(data)


@pytest.mark.parametrize("format", FORMATS)
def test_a_cut_at_every_block_is_found(format):
    entries = [(name, data * 3) for name, data in samples(4, 300)]
    if format != tarfile.USTAR_FORMAT:
        entries.append(("k" * 120 + ".jpg", b"long"))
    tar = make_tar(entries, format)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        ends = {m.name: m.offset_data + m.size for m in archive}
        last = max(m.offset_data + -(-m.size // BLOCK) * BLOCK for m in archive)
    whole = grouped(entries)
    for cut in range(0, len(tar), BLOCK):
        found, reader = read(tar[:cut])
        assert reader.bytes_read == cut
        assert reader.complete == (cut >= last + 2 * BLOCK), cut
        if not reader.complete:
            (cause,) = reader.damage
            assert cause.startswith(f"truncated at byte {cut}: " if cut else "not a tar"), cut
        got = as_dict(found)
        before = {name for name, end in ends.items() if end <= cut}
        assert {f"{key}.{ext}" for key, members in got.items() for ext in members} == before, cut
        assert all(whole[key][ext] == got[key][ext] for key in got for ext in got[key])
        assert all(s.members for s in found)


def test_a_member_cut_short_is_dropped_and_named():
    tar = make_tar([("a.txt", b"1"), ("a.jpg", b"x" * 2000), ("b.jpg", b"2")])
    cut = header_offsets(tar)["a.jpg"] + BLOCK + 1000
    for wanted in (None, lambda extension: extension == "txt"):
        found, reader = read(tar[:cut], wanted=wanted)
        assert [(s.key, s.members) for s in found] == [("a", {"txt": b"1"})]
        assert found[0].unread == {"jpg": "the shard ends inside it"}
        assert reader.damage == (f"truncated at byte {cut}: member 'a.jpg' has 2000 bytes",)
    found, reader = read(tar[: 2 * BLOCK + 1])
    assert [s.key for s in found] == ["a"] and "inside a header" in reader.damage[0]


def test_a_connection_that_ends_early_is_truncation():
    tar = make_tar(samples(20))
    for cut in (BLOCK, 10 * BLOCK, len(tar) - BLOCK):
        _, reader = read(tar[:cut], size=len(tar))
        assert not reader.complete
        assert reader.damage[-1].startswith(
            f"truncated at byte {cut} ({len(tar) - cut} before the object's end)"
        )


def test_an_object_longer_than_listed_is_damage():
    tar = make_tar(samples(2))
    found, reader = read(tar, size=len(tar) - BLOCK)
    assert len(found) == 2 and "past the size it was listed with" in reader.damage[0]


def test_what_follows_the_end_of_archive_blocks_is_read_and_reported():
    first, second = make_tar([("a.jpg", b"1")]), make_tar([("b.jpg", b"2")])
    found, reader = read(first + second)
    assert [s.key for s in found] == ["a", "b"]
    assert reader.damage == (
        f"byte {2 * BLOCK}: end-of-archive blocks, but data follow at {len(first)}",
    )


# ---- damage in the middle


def test_one_bad_header_costs_one_sample():
    entries = samples(500)
    tar = bytearray(make_tar(entries))
    at = header_offsets(bytes(tar))["000150.jpg"]
    tar[at + 5] ^= 1
    found, reader = read(bytes(tar))
    whole = grouped(entries)
    assert len(found) == 500 and reader.samples == 500
    assert as_dict(found) == whole | {"000150": {"json": whole["000150"]["json"]}}
    assert reader.damage == (f"byte {at}: bad header; {3 * BLOCK} bytes skipped",)


def test_two_samples_are_not_merged_across_damage():
    tar = bytearray(make_tar([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3")]))
    tar[2 * BLOCK] ^= 1
    found, reader = read(bytes(tar))
    assert [(s.key, s.members) for s in found] == [("a", {"jpg": b"1"}), ("a", {"txt": b"3"})]
    assert len(reader.damage) == 1


@pytest.mark.parametrize("lost", [BLOCK, 100, 700])
@pytest.mark.parametrize("where", ["000150.jpg", "000150.json"])
def test_lost_bytes_cost_one_member(lost, where):
    entries = [(name, data * (1 if len(data) > 50 else 60)) for name, data in samples(300, 2000)]
    tar = make_tar(entries)
    at = header_offsets(tar)[where] + BLOCK + 64
    found, reader = read(tar[:at] + tar[at + lost :])
    whole = grouped(entries)
    extension = where.split(".")[1]
    hit = next(s for s in found if s.key == "000150")
    assert hit.unread == {extension: "bytes are missing inside it"}
    del whole["000150"][extension]
    assert as_dict(found) == whole
    assert len(reader.damage) == 1 and "bytes are missing before it" in reader.damage[0]


@pytest.mark.parametrize("garbage", [b"\xff" * 512, b"\xff" * 77, b"ustar" * 300, b"x" * 600_000])
def test_garbage_between_members_costs_nothing_else(garbage):
    entries = samples(40)
    tar = make_tar(entries)
    at = header_offsets(tar)["000007.jpg"]
    found, reader = read(tar[:at] + garbage + tar[at:])
    assert as_dict(found) == grouped(entries)
    assert reader.damage == (f"byte {at}: bad header; {len(garbage)} bytes skipped",)


def test_a_header_of_zeros_is_damage():
    entries = samples(10)
    tar = bytearray(make_tar(entries))
    at = header_offsets(bytes(tar))["000004.jpg"]
    tar[at : at + BLOCK] = bytes(BLOCK)
    found, reader = read(bytes(tar))
    assert as_dict(found).keys() == grouped(entries).keys()
    assert as_dict(found)["000004"].keys() == {"json"}
    assert reader.damage[0].startswith(f"byte {at}: a lone block of zeros")


def test_lost_bytes_near_the_end_still_give_the_samples_after_them():
    entries = [(f"{i}.jpg", bytes([65 + i]) * 5000) for i in range(6)]
    tar = make_tar(entries)
    at = header_offsets(tar)["1.jpg"] + BLOCK + 100
    found, reader = read(tar[:at] + tar[at + 4 * BLOCK : -20 * BLOCK])
    assert {"2", "3", "4"} <= {s.key for s in found if s.members}
    assert not reader.complete


def test_damaged_extended_headers_are_reported():
    names = ["k" * 120 + ".jpg", "b.jpg"]
    tar = bytearray(make_tar([(name, b"x") for name in names], tarfile.PAX_FORMAT))
    tar[BLOCK] = ord("?")  # the length of the first record
    found, reader = read(bytes(tar))
    assert found[-1].key == "b" and reader.damage == ("byte 0: unreadable extended header",)


def damaged(tar: bytes, data: st.DataObject, changes: list[str]) -> bytes:
    result = bytearray(tar)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(tar) - 1))
        length = data.draw(st.sampled_from([1, 7, 512, 1300]))
        change = data.draw(st.sampled_from(changes))
        if change == "flip":
            result[at : at + 1] = bytes(byte ^ 0xFF for byte in result[at : at + 1])
        elif change == "lose":
            del result[at : at + length]
        elif change == "insert":
            result[at:at] = b"\xa5" * length
        elif change == "zero":
            result[at : at + length] = bytes(len(result[at : at + length]))
    return bytes(result)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(FORMATS))
def test_no_damage_raises_and_every_byte_is_accounted_for(data, format):
    tar = damaged(make_tar(samples(6, 900), format), data, ["flip", "lose", "insert", "zero"])
    reader = ShardReader(OneWay(tar, data.draw(st.sampled_from([100, 4096]))), len(tar))
    list(reader)
    assert reader.bytes_read == len(tar)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(FORMATS))
def test_no_sample_is_lost_in_silence_to_flipped_bytes(data, format):
    entries = samples(6, 900)
    found, reader = read(damaged(make_tar(entries, format), data, ["flip"]))
    missing = {name for name, _ in entries} - {f"{s.key}.{ext}" for s in found for ext in s.members}
    assert not missing or not reader.complete


def test_the_number_of_messages_is_bounded():
    tar = bytearray(make_tar([(f"{i}.jpg", b"") for i in range(200)]))
    for i in range(0, 200, 2):
        tar[i * BLOCK] ^= 1
    _, reader = read(bytes(tar))
    assert len(reader.damage) == MAX_DAMAGE + 1 and reader.damage[-1] == "and 68 more"


def test_errors_of_the_storage_go_through():
    class Broken(OneWay):
        def read(self, size: int = -1) -> bytes:
            raise ConnectionResetError("reset by peer")

    with pytest.raises(ConnectionResetError):
        list(ShardReader(Broken(b""), 10))


# ---- memory


def huge_tar(path: Path, size: int) -> int:
    """a.jpg, a.bin of ``size`` bytes (a hole in the file), b.jpg; returns the size of the tar."""
    first = make_tar([("a.jpg", b"1")])[: 2 * BLOCK]
    info = tarfile.TarInfo("a.bin")
    info.size = size
    with path.open("wb") as file:
        file.write(first + info.tobuf(tarfile.GNU_FORMAT))
        file.seek(size, io.SEEK_CUR)
        file.write(make_tar([("b.jpg", b"2")]))
        return file.tell()


@pytest.mark.parametrize("gib", [5, 20], ids=["octal size", "base-256 size"])
@pytest.mark.parametrize("unwanted", [False, True])
def test_a_huge_member_takes_no_memory(tmp_path, gib, unwanted):
    size = huge_tar(tmp_path / "huge.tar", gib << 30)
    wanted = (lambda extension: extension == "jpg") if unwanted else None
    tracemalloc.start()
    try:
        with (tmp_path / "huge.tar").open("rb") as file:
            reader = ShardReader(file, size, wanted)
            found = list(reader)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert reader.complete and reader.bytes_read == size
    assert [(s.key, s.members) for s in found] == [("a", {"jpg": b"1"}), ("b", {"jpg": b"2"})]
    limit = f"{gib << 30} bytes, over the limit of 1073741824"
    assert found[0].unread == ({} if unwanted else {"bin": limit})


def test_a_huge_member_is_read_past_where_the_stream_cannot_seek(tmp_path):
    size = huge_tar(tmp_path / "huge.tar", 64 << 20)
    tracemalloc.start()
    try:
        with (tmp_path / "huge.tar").open("rb") as file:
            reader = ShardReader(OneWay(file), size, max_member_bytes=1 << 20)
            assert [s.key for s in reader] == ["a", "b"]
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert reader.complete and reader.bytes_read == size


def test_a_file_cut_inside_a_skipped_member_is_truncated(tmp_path):
    size = huge_tar(tmp_path / "huge.tar", 5 << 30)
    with (tmp_path / "huge.tar").open("r+b") as file:
        file.truncate(3 << 30)
        file.seek(0)
        for claimed in (size, 3 << 30):
            file.seek(0)
            reader = ShardReader(file, claimed)
            assert [s.key for s in reader] == ["a"]
            assert len(reader.damage) == 1 and reader.damage[0].startswith("truncated at byte")
            assert f"member 'a.bin' has {5 << 30} bytes" in reader.damage[0]
