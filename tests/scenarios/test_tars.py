"""Bad tars through the whole of encode_shard: table, ledger and damage say what became of each.

What the peers make of the same bytes is checked beside it: ``webdataset`` and Python's tarfile end
without a word at the first bad header.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import pytest
import webdataset as wds

from pipeline.archive import layout, table
from pipeline.archive.table import Row
from pipeline.plan import Plan, ShardResult, ShardSpec
from pipeline.store import storage
from pipeline.store.storage import Store
from pipeline.work.encoder import encode_shard
from pipeline.work.replica import Replica, resident_bytes
from tests.corpus import BLOCK, header_offsets, jpeg, make_tar
from tests.models import tiny_codec

CODEC = tiny_codec()
PLAN = Plan(model=CODEC.fingerprint, quality=1, stride=16, codewords=16, inputs=1,
            inputs_digest="", store="codes", hash=True)  # fmt: skip
REPLICA = Replica(CODEC)
PICTURES = {f"{i:03d}": jpeg(24, 24, seed=i) for i in range(6)}
ENTRIES = [
    entry
    for key, data in PICTURES.items()
    for entry in ((f"{key}.jpg", data), (f"{key}.txt", b"t"))
]
FORMATS = [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.fixture
def encode(tmp_path: Path):
    """Encode the bytes of a tar; the result in the ledger, and the rows of the table."""
    count = 0

    def run(tar: bytes | Path) -> tuple[ShardResult, list[Row]]:
        nonlocal count
        count += 1
        path = tar if isinstance(tar, Path) else tmp_path / f"{count}.tar"
        if isinstance(tar, bytes):
            path.write_bytes(tar)
        (info,) = storage.expand([str(path)])
        spec = ShardSpec(f"shard{count}", info.url, info.size, info.etag)
        store = Store(str(tmp_path / "out"))
        result = encode_shard(spec, PLAN, store, REPLICA)
        ledger = json.loads(store.get(layout.ledger_name(spec.shard_id)))
        assert (ledger["outcome"], tuple(ledger["damage"])) == (result.outcome, result.damage)
        assert (result.outcome == "done") == (not result.damage)
        rows = list(table.read_rows(store.get(layout.table_name(spec.shard_id))))
        assert sum(result.rows.values()) == len(rows)
        return result, rows

    return run


def ok(rows: list[Row]) -> list[str]:
    return [row.key for row in rows if row.status.value == "ok"]


def whole_before(tar: bytes, cut: int) -> list[str]:
    """Keys of the pictures whose bytes are all before the cut, by tarfile on the whole tar."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        ends = {m.name: m.offset_data + m.size for m in archive}
    return [name[:-4] for name, end in ends.items() if name.endswith(".jpg") and end <= cut]


@pytest.mark.parametrize("format", FORMATS)
def test_a_tar_cut_anywhere_gives_the_rows_before_the_cut_and_counts_as_damaged(encode, format):
    entries = ENTRIES[:6]
    tar = make_tar(entries, format)
    last = max(header_offsets(tar).values()) + 2 * BLOCK
    for cut in sorted({*range(0, last + 2 * BLOCK, BLOCK), *range(1, last, 1237)}):
        result, rows = encode(tar[:cut])
        assert ok(rows) == whole_before(tar, cut), cut
        assert result.outcome == "damaged", cut
        assert f"byte {cut}" in result.damage[0] or cut == 0 and "empty" in result.damage[0]
    assert encode(tar)[0].outcome == "done"


GARBAGE = {
    "zeros": bytes(BLOCK),
    "odd zeros": bytes(700),
    "random": random.Random(0).randbytes(1024),
    "text": b"503 Slow Down\n" * 50,
    "half a header": make_tar([("z.jpg", b"1")])[:300],
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_between_members_loses_no_row_and_is_named(encode, kind):
    tar = make_tar(ENTRIES)
    for name in ("000.jpg", "002.txt", "004.jpg"):
        at = header_offsets(tar)[name]
        result, rows = encode(tar[:at] + GARBAGE[kind] + tar[at:])
        assert ok(rows) == list(PICTURES), (kind, name)
        assert result.outcome == "damaged" and f"byte {at}" in result.damage[0]


def test_a_flipped_byte_in_any_header_costs_that_member_alone(encode):
    tar = make_tar(ENTRIES)
    silent = 0
    for name, at in header_offsets(tar).items():
        broken = bytearray(tar)
        broken[at + 2] ^= 4
        result, rows = encode(bytes(broken))
        expected = [key for key in PICTURES if f"{key}.jpg" != name]
        assert ok(rows) == expected
        assert len(result.damage) == 1 and f"byte {at}: bad header" in result.damage[0]
        silent += at > 0 and _peers_end_silently(bytes(broken), len(ENTRIES))
    assert silent == len(ENTRIES) - 1  # with one bad header at any place but the first


def _peers_end_silently(tar: bytes, members: int) -> bool:
    """tarfile and webdataset both give fewer members than there are left, and no error."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        names = archive.getnames()
    read = list(wds.tariterators.tar_file_iterator(io.BytesIO(tar)))
    return len(names) == len(read) < members


def test_keys_duplicate_dotted_and_out_of_order(encode):
    pictures = list(PICTURES.values())
    entries = [
        ("a.jpg", pictures[0]), ("b.jpg", pictures[1]), ("a.txt", b"late"),
        ("b.jpg", pictures[2]), ("c.v2.jpg", pictures[3]), ("d.x/e.jpg", pictures[4]),
        ("empty.jpg", b""), ("x" * 150 + ".jpg", pictures[5]),
    ]  # fmt: skip
    for format in FORMATS:
        result, rows = encode(make_tar(entries, format))
        assert result.outcome == "done"
        assert [(r.key, r.status.value) for r in rows] == [
            ("a", "ok"), ("b", "ok"), ("a", "duplicate_key"), ("b", "duplicate_key"),
            ("c", "missing_image"), ("d.x/e", "ok"), ("empty", "decode_error"), ("x" * 150, "ok"),
        ]  # fmt: skip


def test_links_directories_and_sparse_members_are_rows_with_a_reason(encode):
    picture, buffer = PICTURES["000"], io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, pax in [
            ("d", tarfile.DIRTYPE, {}), ("d/a.jpg", tarfile.REGTYPE, {}),
            ("d/hard.jpg", tarfile.LNKTYPE, {}), ("d/soft.jpg", tarfile.SYMTYPE, {}),
            ("d/s.jpg", tarfile.REGTYPE, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
            ("d/z.jpg", tarfile.REGTYPE, {}),
        ]:  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.pax_headers, info.linkname = kind, pax, "d/a.jpg"
            info.size = len(picture) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(picture))
    result, rows = encode(buffer.getvalue())
    assert ok(rows) == ["d/a", "d/z"]
    errors = {row.key: row.error for row in rows if row.status.value == "missing_image"}
    assert "hard link" in errors["d/hard"] and "symbolic link" in errors["d/soft"]
    assert "sparse" in errors["d/s"] and "sparse member 'd/s.jpg'" in result.damage[0]


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty"),
        (bz2.compress(make_tar(ENTRIES)), "bzip2"),
        (gzip.compress(make_tar(ENTRIES))[:9], "gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(2000), "zstd"),
        (b"<!DOCTYPE html><title>Access denied</title>" * 40, "not a tar"),
    ],
    ids=["empty", "bzip2", "gzip", "zstd", "html"],
)
def test_what_is_no_tar_is_a_damaged_shard_without_rows(encode, data, cause):
    result, rows = encode(data)
    assert rows == [] and result.outcome == "damaged" and cause in result.damage[0]


def test_five_gigabytes_in_one_member_take_no_memory(encode, tmp_path):
    keys = [f"s{i:04d}" for i in range(100)]
    small = make_tar([(f"{key}.jpg", PICTURES["000"]) for key in keys])
    info = tarfile.TarInfo("huge.jpg")
    info.size = 5 << 30
    path = tmp_path / "huge.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    with path.open("r+b") as file:
        file.truncate(BLOCK + info.size)  # a hole
        file.seek(0, io.SEEK_END)
        file.write(small)
    encode(make_tar(ENTRIES))
    before = resident_bytes()
    result, rows = encode(path)
    assert resident_bytes() - before < 64 << 20
    assert [(r.key, r.status.value) for r in rows[:2]] == [("huge", "too_large"), ("s0000", "ok")]
    assert ok(rows) == keys and result.outcome == "done"
    assert "over the limit" in rows[0].error
