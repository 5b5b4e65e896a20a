"""Samples of healthy tars: webdataset's, and what webdataset drops is still there."""

from __future__ import annotations

import io
import string
import tarfile
from pathlib import Path

import pytest
import webdataset as wds
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.tars.samples import ShardReader
from tests.corpus import BLOCK, make_tar
from tests.properties import examples
from tests.tars import OneWay, add, as_dict, healthy, read

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def webdataset_reads(tar: bytes, folder: Path) -> list[tuple[str, dict[str, bytes]]]:
    path = folder / "shard.tar"
    path.write_bytes(tar)
    dataset = wds.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return [(s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in dataset]


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


@settings(max_examples=examples(150), deadline=None)
@given(
    entries=st.lists(st.tuples(names, st.binary(max_size=1100)), max_size=8),
    kind=st.sampled_from(["gnu", "pax"]),
    most=st.sampled_from([1, 511, 1 << 20]),
)
@example(entries=[("a.jpg", b"1"), ("LICENSE", b"2"), ("a.json", b"3")], kind="pax", most=7)
@example(entries=[(".", b"1")], kind="gnu", most=1)
def test_the_same_samples_as_webdataset(entries, kind, most, tmp_path_factory):
    tar = make_tar(entries, tarfile.GNU_FORMAT if kind == "gnu" else tarfile.PAX_FORMAT)
    reader = ShardReader(OneWay(tar, most), len(tar))
    ours = list(reader)
    assert reader.complete and reader.bytes_read == len(tar) and reader.members == len(entries)
    lone = {s.offset for s in ours if s.members.keys() == {""}}
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
