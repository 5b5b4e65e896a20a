"""Code tables to pictures: order, sizes, bounds and refusals."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.archive import layout, table
from pipeline.archive.table import BadTable, Row
from pipeline.plan import Plan, Status
from pipeline.work import decoder, images
from pqmim.checkpoint import CheckpointError
from pqmim.codec import Codec
from tests.archives import Archive, committed, encoded, shard
from tests.corpus import jpeg, make_tar
from tests.models import tiny_bytes

KEYS = ["a/first", "tall", "wide", "second", "turned"]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return encoded(tmp_path / "archive", [shard(tmp_path / "one.tar")])


def alone(archive: Archive, row: Row) -> np.ndarray:
    """One row decoded by the bare codec."""
    codes = np.frombuffer(row.codes or b"", np.uint8).reshape(1, row.grid_h, row.grid_w, -1)
    size = images.encoded_size(row.width, row.height, archive.plan.pictures)
    return archive.replica.codec.decode(torch.tensor(codes), size[1], size[0])[0].numpy()


def near(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal up to the rounding of another batch."""
    return a.shape == b.shape and int(np.abs(a.astype(int) - b).max()) <= 1


def test_pictures_come_in_row_order_with_the_size_they_were_encoded_with(archive: Archive) -> None:
    data = archive.table().read_bytes()
    found = list(decoder.decode_table(data, archive.plan, archive.replica))
    assert [row.key for row, _ in found] == KEYS
    sizes = [(40, 50), (61, 33), (33, 61), (40, 50), (40, 50)]
    assert [pixels.shape for _, pixels in found] == [(3, *size) for size in sizes]
    rows = {row.key: row for row in table.read_rows(data) if row.status is Status.OK}
    for row, pixels in found:
        assert pixels.dtype == np.uint8 and pixels.std() > 0
        assert near(pixels, alone(archive, rows[row.key])), row.key


def test_only_wanted_rows_are_decoded(archive: Archive) -> None:
    data = archive.table().read_bytes()
    wanted = decoder.decode_table(data, archive.plan, archive.replica, lambda r: r.key == "tall")
    assert [row.key for row, _ in wanted] == ["tall"]


def test_many_shapes_and_small_batches_keep_the_order(tmp_path: Path) -> None:
    sizes = [(16 + 16 * (i * i % 5), 16 + 16 * (i % 3)) for i in range(60)]
    entries = [(f"{i:03d}.jpg", jpeg(w, h, i)) for i, (w, h) in enumerate(sizes)]
    (tmp_path / "many.tar").write_bytes(make_tar(entries))
    archive = encoded(tmp_path / "archive", [tmp_path / "many.tar"], batch_pixels=2048)
    data = archive.table().read_bytes()
    window = decoder.Window(archive.plan, archive.replica)
    limit = decoder.PENDING_BATCHES * archive.plan.batch_pixels
    found = []
    for row in table.read_rows(data):
        found += list(window.add(row))
        assert window.pixels <= limit
    assert 0 < len(found) < 60
    found += list(window.rest())
    assert [row.key for row, _ in found] == [f"{i:03d}" for i in range(60)]
    assert [pixels.shape for _, pixels in found] == [(3, h, w) for w, h in sizes]
    assert window.pixels == 0 and not window.buckets


def test_resized_and_cropped_pictures_have_the_size_of_the_plan(tmp_path: Path) -> None:
    archive = encoded(tmp_path / "archive", [shard(tmp_path / "one.tar")], resize=48, crop=40)
    data = archive.table().read_bytes()
    shapes = {p.shape for _, p in decoder.decode_table(data, archive.plan, archive.replica)}
    assert shapes == {(3, 40, 40)}


@pytest.mark.parametrize("resize", [None, 1, 7, 32, 100])
@pytest.mark.parametrize("size", [(50, 40), (33, 61), (61, 33), (16, 16), (999, 17)])
def test_encoded_size_is_that_of_the_decoded_source(
    size: tuple[int, int], resize: int | None
) -> None:
    plan = Plan(model="", quality=1, stride=16, codewords=16, inputs=1, inputs_digest="",
                resize=resize)  # fmt: skip
    picture = images.decode(jpeg(*size), plan.pictures)
    expected = images.encoded_size(picture.width, picture.height, plan.pictures)
    assert expected == picture.pixels.shape[:0:-1]


def test_codes_of_more_than_256_codewords_are_two_bytes_each(tmp_path: Path) -> None:
    weights = tiny_bytes(codewords=300)
    archive = encoded(tmp_path / "archive", [shard(tmp_path / "one.tar")], weights=weights)
    data = archive.table().read_bytes()
    row = next(table.read_rows(data))
    assert len(row.codes or b"") == 2 * row.grid_w * row.grid_h * archive.plan.quality
    codes = decoder.row_codes(row, archive.plan)
    assert codes.dtype == np.uint16 and codes.shape == (3, 4, 3)
    assert len(list(decoder.decode_table(data, archive.plan, archive.replica))) == len(KEYS)


def good_row(archive: Archive) -> Row:
    return next(table.read_rows(archive.table().read_bytes()))


def with_codes(row: Row, codes: bytes) -> Row:
    """Other codes, with the crc32 that they need."""
    return replace(row, codes=codes, crc32=zlib.crc32(codes))


def test_codes_that_cannot_be_right_are_refused(archive: Archive) -> None:
    row = good_row(archive)
    assert row.codes is not None
    other = bytes([row.codes[0] ^ 1]) + row.codes[1:]
    refused = {
        "crc32": replace(row, codes=other),
        "bytes of codes": with_codes(row, row.codes[:-1]),
        "not of a source": replace(row, width=200),
        "of 16 codewords": with_codes(row, bytes([16]) + row.codes[1:]),
        "no codes": replace(row, codes=None),
    }
    for message, bad in refused.items():
        with pytest.raises(BadTable, match=message) as caught:
            decoder.row_codes(bad, archive.plan)
        assert "'a/first'" in str(caught.value)
    decoder.row_codes(with_codes(row, other), archive.plan)


def test_a_wrong_crc32_names_shard_and_key_before_a_picture_comes_out(archive: Archive) -> None:
    data = archive.table().read_bytes()
    rows = list(table.read_rows(data))
    rows[3] = replace(rows[3], crc32=1)
    spec = archive.specs[0]
    result = committed(archive.store)[spec.shard_id]
    bad = table.write_table(rows, archive.plan, spec, result)
    with pytest.raises(BadTable, match=f"{spec.shard_id}.*'wide'.*crc32"):
        list(decoder.decode_table(bad, archive.plan, archive.replica))


@pytest.fixture
def coded(tmp_path: Path) -> Archive:
    """The same pictures as bitstreams."""
    return encoded(tmp_path / "coded", [shard(tmp_path / "one.tar")], store="bitstream")


def resigned(archive: Archive, number: int, row: Row) -> bytes:
    """The table with another row, whole in itself: page checksums and footer are right."""
    rows = list(table.read_rows(archive.table().read_bytes()))
    rows[number] = row
    spec = archive.specs[0]
    result = committed(archive.store)[spec.shard_id]
    return table.write_table(rows, archive.plan, spec, result)


def test_bitstreams_decode_to_the_pictures_of_the_raw_codes(
    archive: Archive, coded: Archive
) -> None:
    raw = decoder.decode_table(archive.table().read_bytes(), archive.plan, archive.replica)
    found = decoder.decode_table(coded.table().read_bytes(), coded.plan, coded.replica)
    for (row, pixels), (other, expected) in zip(found, raw, strict=True):
        assert row == replace(other, codes=None) and np.array_equal(pixels, expected)


def test_raw_codes_and_bitstreams_may_stand_in_one_batch(coded: Archive) -> None:
    rows = [r for r in table.read_rows(coded.table().read_bytes()) if r.status is Status.OK]
    rows = [r for r in rows if (r.grid_h, r.grid_w) == (4, 3)]  # 'tall' and another
    row = rows[0]
    codes = decoder.batch_codes([row], coded.plan, coded.replica)
    raw = replace(row, codes=codes[0].tobytes(), bitstream=None)
    mixed = decoder.batch_codes([raw, row, raw], coded.plan, coded.replica)
    assert np.array_equal(mixed, np.concatenate([codes] * 3))


def test_every_damage_to_a_bitstream_is_found_and_names_shard_and_key(coded: Archive) -> None:
    rows = list(table.read_rows(coded.table().read_bytes()))
    row = rows[3]
    assert row.key == "wide" and row.bitstream is not None
    damaged = [
        bytes([row.bitstream[0] ^ 1]) + row.bitstream[1:],
        row.bitstream[:-4], b"", row.bitstream[:5], rows[0].bitstream,
        *(bytes(row.bitstream[:i]) + b"\xff" + row.bitstream[i + 1 :] for i in range(4)),
    ]  # fmt: skip
    for bitstream in damaged:
        if bitstream == row.bitstream:
            continue
        data = resigned(coded, 3, replace(row, bitstream=bitstream))
        with pytest.raises(BadTable, match=f"{coded.specs[0].shard_id}.*'wide'.*bitstream"):
            list(decoder.decode_table(data, coded.plan, coded.replica))


def test_a_grid_that_is_not_of_the_picture_is_refused_before_it_is_decoded(coded: Archive) -> None:
    row = good_row(coded)
    limit = coded.plan.max_pixels
    for bad, message in (
        (replace(row, grid_w=30000, grid_h=30000), "not of a source"),
        (replace(row, grid_w=30000, grid_h=3000, width=480000, height=48000), f"limit of {limit}"),
        (replace(row, grid_w=0, grid_h=0, width=0, height=0), "empty"),
    ):
        data = resigned(coded, 0, bad)
        with pytest.raises(BadTable, match=f"'a/first'.*{message}"):
            list(decoder.decode_table(data, coded.plan, coded.replica))


def test_bitstreams_without_an_entropy_model_are_refused(archive: Archive) -> None:
    with pytest.raises(CheckpointError, match="no entropy model"):
        decoder.load_replica(archive.store, replace(archive.plan, store="bitstream"), "cpu")


def test_a_table_of_another_plan_is_refused(archive: Archive) -> None:
    data = archive.table().read_bytes()
    with pytest.raises(BadTable, match="plan"):
        list(decoder.decode_table(data, replace(archive.plan, quality=2), archive.replica))


def test_the_archives_own_model_is_loaded_and_no_other(archive: Archive) -> None:
    loaded = decoder.load_replica(archive.store, archive.plan, "cpu")
    assert loaded.codec.fingerprint == archive.plan.model
    name = layout.model_name(archive.plan.model)
    other = tiny_bytes(subcodes=5)
    assert Codec.from_bytes(other).fingerprint != archive.plan.model
    archive.store.put(name, other)
    with pytest.raises(CheckpointError, match="right weights"):
        decoder.load_replica(archive.store, archive.plan, "cpu")
