"""Packed tars, AppleDouble members and long PAX headers: what is read, and what breaks is named."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib

import pyarrow
import pytest

from pipeline.tars.samples import Sample, ShardReader
from tests.corpus import make_tar, samples
from tests.tars import OneWay, add, as_dict, grouped, healthy, read

ENTRIES = samples(40, 9000)
TAR = make_tar(ENTRIES)


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


PACK = {"gzip": gzip.compress, "zstd": zstd}
NOTES = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note"
FORMS = {
    "gzip": gzip.compress(TAR),
    "gzip in parts": gzip.compress(TAR[:5000]) + gzip.compress(TAR[5000:]),
    "gzip padded": gzip.compress(TAR) + bytes(700),
    "gzip, stored": gzip.compress(TAR, 0),
    "zstd": zstd(TAR),
    "zstd in frames": zstd(TAR[:5000]) + zstd(b"") + zstd(TAR[5000:]),
    "zstd after notes": NOTES + zstd(TAR),
}


@pytest.mark.parametrize("most", [1 << 20, 3])
@pytest.mark.parametrize("form", FORMS)
def test_a_packed_tar_gives_the_samples_of_the_plain_one(form: str, most: int) -> None:
    data = FORMS[form]
    reader = ShardReader(OneWay(data, most), len(data))
    assert as_dict(list(reader)) == grouped(ENTRIES)
    assert reader.complete and not reader.damage and reader.bytes_read == len(data)


@pytest.mark.parametrize("kind", PACK)
def test_a_cut_anywhere_is_named_and_what_came_before_it_is_read(kind: str) -> None:
    data = PACK[kind](TAR)
    wanted = grouped(ENTRIES)
    for end in [*range(2 if kind == "gzip" else 4, 40), *range(40, len(data), len(data) // 25)]:
        found, reader = read(data[:end], len(data))
        assert (
            not reader.complete
            and f"the {kind} file is damaged near byte {end}" in (reader.damage[0])
        )
        for sample in found[:-1]:
            assert wanted[sample.key] == sample.members


@pytest.mark.parametrize("kind", PACK)
def test_bytes_after_the_packed_data_are_named(kind: str) -> None:
    found, reader = read(PACK[kind](TAR) + b"more of it")
    assert as_dict(found) == grouped(ENTRIES)
    assert not reader.complete and f"the {kind} file is damaged" in reader.damage[0]


def test_a_flipped_byte_in_a_gzip_file_is_found_by_its_checksum() -> None:
    data = bytearray(gzip.compress(TAR, 0))  # stored: nothing but the checksum can tell
    data[len(data) // 2] ^= 1
    found, reader = read(bytes(data))
    assert "CRC check failed" in reader.damage[0] and not reader.complete
    assert len(found) == 40


@pytest.mark.parametrize("kind", PACK)
def test_a_damaged_tar_inside_is_damage_too(kind: str) -> None:
    found, reader = read(PACK[kind](TAR[:100_000]))
    assert not reader.complete and "truncated at byte 100000" in reader.damage[0]
    assert as_dict(found).items() <= {**grouped(ENTRIES), found[-1].key: found[-1].members}.items()
    assert len(found) >= 9
    found, reader = read(PACK[kind](b"<html>" * 1000))
    assert found == [] and reader.damage[0].startswith("not a tar: byte 0: bad header")


@pytest.mark.parametrize("error", [KeyError, OSError, EOFError])
@pytest.mark.parametrize("kind", PACK)
def test_what_the_stream_raises_goes_through(kind: str, error: type[Exception]) -> None:
    class Broken(OneWay):
        def read(self, size: int = -1) -> bytes:
            if data := super().read(size):
                return data
            raise error("its own")

    with pytest.raises(error, match="its own"):
        list(ShardReader(Broken(PACK[kind](TAR)[:200_000], 1000), 10**6))


def test_a_tar_that_unpacks_to_very_much_takes_no_memory_for_it() -> None:
    """A member of a gigabyte, over the limit of 1 MiB, is stepped over in pieces."""
    packer, packed = zlib.compressobj(1, wbits=31), io.BytesIO()
    info = tarfile.TarInfo("big.jpg")
    info.size = 1 << 30
    packed.write(packer.compress(info.tobuf(tarfile.GNU_FORMAT)))
    for _ in range(1 << 10):
        packed.write(packer.compress(bytes(1 << 20)))
    packed.write(packer.compress(make_tar([("a.jpg", b"x")])) + packer.flush())
    largest = 0

    class Watched(ShardReader):
        def __iter__(self):
            for sample in super().__iter__():
                nonlocal largest
                largest = max(largest, len(self._tar._buffer))
                yield sample

    reader = Watched(io.BytesIO(packed.getvalue()), packed.tell(), max_member_bytes=1 << 20)
    found = list(reader)
    assert [s.key for s in found] == ["big", "a"] and found[0].too_large == {"jpg"}
    assert reader.complete and largest < 8 << 20


# AppleDouble

APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(60)


def apple_tar() -> bytes:
    return make_tar([
        member for i in range(5) for kind in ("jpg", "txt")
        for member in ((f"photos/._{i:03d}.{kind}", APPLE), (f"photos/{i:03d}.{kind}", b"x"))
    ])  # fmt: skip


def test_apple_double_members_are_skipped_and_counted() -> None:
    found, reader = read(make_tar([("._photos", APPLE), ("._.", APPLE)])[:2048] + apple_tar())
    assert as_dict(found) == {f"photos/{i:03d}": {"jpg": b"x", "txt": b"x"} for i in range(5)}
    assert reader.complete and reader.apple_double == 12


def test_what_only_has_such_a_name_or_such_a_content_is_a_sample() -> None:
    entries = [("._a.jpg", b"\xff\xd8a picture"), ("b.bin", APPLE), ("._c.txt", b"\0\5\x16")]
    found, reader = read(make_tar(entries))
    assert sum(len(sample.members) for sample in found) == 3 and reader.apple_double == 0


def test_an_archive_of_before_reads_them_as_samples() -> None:
    reader = ShardReader(io.BytesIO(apple_tar()), len(apple_tar()), skip_apple=False)
    found: list[Sample] = list(reader)
    assert len(found) == 20 and reader.apple_double == 0


# PAX headers


@pytest.mark.parametrize("size", [10, 1_200_000, 20_000_000])
def test_an_attribute_of_megabytes_in_a_pax_header_costs_nothing(size: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "0.jpg", b"0")
        fork = {"SCHILY.xattr.com.apple.ResourceFork": "r" * size}
        add(tar, "k" * 180 + ".jpg", b"1", pax_headers=fork)
        add(tar, "2.jpg", b"2")
    assert [s.key for s in healthy(buffer.getvalue())] == ["0", "k" * 180, "2"]
