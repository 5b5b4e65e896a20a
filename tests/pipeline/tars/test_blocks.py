"""Cuts, damage and huge members: what is lost is named, the rest is read, and memory is bounded."""

from __future__ import annotations

import bz2
import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tars.samples import MAX_DAMAGE, ShardReader
from tests.corpus import BLOCK, header_offsets, make_tar, samples
from tests.properties import examples
from tests.tars import OneWay, as_dict, grouped, healthy, read

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


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
        (bz2.compress(tar), "not a tar: byte 0: bad header of a bzip2 file"),
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


@settings(max_examples=examples(150), deadline=None)
@given(st.data(), st.sampled_from(FORMATS))
def test_no_damage_raises_and_every_byte_is_accounted_for(data, format):
    tar = damaged(make_tar(samples(6, 900), format), data, ["flip", "lose", "insert", "zero"])
    reader = ShardReader(OneWay(tar, data.draw(st.sampled_from([100, 4096]))), len(tar))
    list(reader)
    assert reader.bytes_read == len(tar)


@settings(max_examples=examples(150), deadline=None)
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
        file.truncate(48 << 20)
        file.seek(0)
        for claimed in (size, 48 << 20):
            file.seek(0)
            reader = ShardReader(file, claimed)
            assert [s.key for s in reader] == ["a"]
            assert len(reader.damage) == 1 and reader.damage[0].startswith("truncated at byte")
            assert f"member 'a.bin' has {5 << 30} bytes" in reader.damage[0]


# ---- sizes that lie


def with_size(tar: bytes, name: str, field: bytes) -> bytes:
    """The tar with another size field in one header, and a checksum that says it is right."""
    data, at = bytearray(tar), header_offsets(tar)[name]
    data[at + 124 : at + 136] = field
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])
    return bytes(data)


@pytest.mark.parametrize("unwanted", [False, True])
@pytest.mark.parametrize(
    "field",
    [b"%011o\0" % 1300, b"%011o\0" % (1 << 29), b"7" * 11 + b"\0", b"\x80" + b"\0" * 6 + b"\7" * 5],
    ids=["into the next member", "past the end", "8 GB", "base 256"],
)
def test_a_size_that_lies_costs_its_own_member(field, unwanted):
    entries = samples(30)
    victim = "000004.json" if unwanted else "000004.jpg"
    tar = with_size(make_tar(entries), victim, field)
    wanted = (lambda extension: extension == "jpg") if unwanted else None
    found, reader = read(tar, wanted=wanted)
    jpegs = {s.key: s.members["jpg"] for s in found if "jpg" in s.members}
    whole = {name[:6]: data for name, data in entries if name.endswith("jpg")}
    assert jpegs == {key: data for key, data in whole.items() if unwanted or key != "000004"}
    assert len(reader.damage) == 1 and "read on at byte" in reader.damage[0]
    assert reader.bytes_read == len(tar)


def test_a_pax_size_with_more_digits_than_an_object_can_have_is_damage():
    tar = bytearray(make_tar([("a.jpg", b"x"), ("b.jpg", b"y")]))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("long.jpg")
        info.pax_headers = {"size": "9" * 5000}
        archive.addfile(info)
    found, reader = read(buffer.getvalue()[: -(-buffer.tell() // BLOCK) * BLOCK] + bytes(tar))
    assert {"a", "b"} <= {s.key for s in found}
    assert any("unreadable extended header" in cause for cause in reader.damage)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"BZh91AY", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"PK\3\4", "zip"),
    ],
)
def test_a_compressed_object_is_named(start, name):
    _, reader = read(start + bytes(range(256)) * 20)
    assert f"bad header of a {name} file" in reader.damage[0]
