"""One shard through one replica: every sample a row, and the same bytes whatever the resources."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.archive import layout, table
from pipeline.archive.table import Row
from pipeline.plan import STORES, Plan, PlanMismatch, ShardResult, ShardSpec, Status
from pipeline.store.storage import Store
from pipeline.work.encoder import Batcher, Ready, encode_shard
from pipeline.work.replica import Replica
from tests.corpus import bomb_png, jpeg, make_tar, png
from tests.models import tiny_codec
from tests.photos import SHARDS

CODEC = tiny_codec()
PLAN = Plan(model=CODEC.fingerprint, quality=3, stride=16, codewords=16, inputs=1, inputs_digest="",
            store="codes")  # fmt: skip
ODD = [
    ("a.jpg", jpeg(40, 30)), ("a.txt", b"first"), ("a.json", b'{"label": 7}'),
    ("b.jpg", b"this is text under an image name"),
    ("c.jpg", jpeg(64, 64)[:700]),
    ("d.json", b"{}"),
    ("e.png", bomb_png(20000, 20000)),
    ("f.jpg", jpeg(8, 8)),
    ("a.jpg", jpeg(40, 30)),
    ("g.v2.jpg", jpeg(33, 47)),
    ("h.png", png(20, 20)), ("h.json", b'{"label": "many"}'),
    ("i.gz", b"unknown extension"),
    ("j.jpg", b""),
    ("noextension", b"?"),
]  # fmt: skip
SMALL = make_tar(
    [(f"{i}.jpg", jpeg(33 + 16 * (i % 3), 40, seed=i)) for i in range(7)] + [("bad.jpg", b"x")]
)


def write(path: Path, data: bytes) -> ShardSpec:
    path.write_bytes(data)
    return ShardSpec("shard", str(path), len(data), _etag(path))


def _etag(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"


def encode(
    tmp_path: Path, data: bytes, plan: Plan = PLAN, name: str = "out", threads: int = 2,
    queue_bytes: int = 1 << 20,
) -> tuple[ShardResult, list[Row]]:  # fmt: skip
    spec = write(tmp_path / "in.tar", data)
    store = Store(str(tmp_path / name))
    result = encode_shard(spec, plan, store, Replica(CODEC, threads, queue_bytes))
    return result, list(table.read_rows(store.get(layout.table_name("shard"))))


def test_every_sample_has_one_row_with_its_status_in_tar_order(tmp_path):
    plan = replace(PLAN, keep=("txt", "json.label:int32"), min_side=10)
    result, rows = encode(tmp_path, make_tar(ODD), plan)
    assert [(r.key, r.status.value) for r in rows] == [
        ("a", "ok"), ("b", "decode_error"), ("c", "decode_error"), ("d", "missing_image"),
        ("e", "too_large"), ("f", "too_small"), ("a", "duplicate_key"), ("g", "missing_image"),
        ("h", "ok"), ("i", "missing_image"), ("noextension", "missing_image"),
        ("j", "decode_error"),
    ]  # fmt: skip
    assert result.outcome == "done" and sum(result.rows.values()) == len(rows)
    assert all(r.error for r in rows if r.status is not Status.OK)
    assert all((r.codes is None) == (r.status is not Status.OK) for r in rows)
    assert rows[0].kept == {"txt": "first", "json.label": 7}
    assert rows[8].kept["json.label"] is None and "json.label" in rows[8].error
    assert (rows[0].width, rows[0].height, rows[0].grid_w, rows[0].grid_h) == (40, 30, 3, 2)
    assert ".v2.jpg" in rows[7].error


def test_dotted_extensions_are_images_when_asked_for(tmp_path):
    _, rows = encode(tmp_path, make_tar(ODD), replace(PLAN, image_keys=("v2.jpg",)))
    assert [r.key for r in rows if r.status is Status.OK] == ["g"]


def test_threads_queues_and_attempts_do_not_change_a_byte(tmp_path):
    data = SHARDS[0].read_bytes()
    spec = write(tmp_path / "in.tar", data)
    tables = []
    for number, (threads, queue_bytes) in enumerate([(1, 1), (4, 1 << 28), (2, 1 << 20)]):
        store = Store(str(tmp_path / str(number)))
        encode_shard(spec, PLAN, store, Replica(CODEC, threads, queue_bytes), attempt=number + 1)
        tables.append(store.get(layout.table_name("shard")))
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.parametrize("price", [0.0, 0.05])
@pytest.mark.parametrize("store_kind", ["bitstream", "both"])
def test_threads_queues_and_batches_do_not_change_a_bitstream(tmp_path, store_kind, price):
    codec, spec = tiny_codec(prior=True), write(tmp_path / "in.tar", SMALL)
    plan = replace(PLAN, model=codec.fingerprint, store=store_kind, price=price)
    tables, streams = [], []
    for number, (threads, queue_bytes, batch_pixels) in enumerate(
        [(1, 1, plan.batch_pixels), (2, 1 << 28, plan.batch_pixels), (2, 1 << 20, 1 << 11)]
    ):
        torch.set_num_threads(1 + number % 2)
        store = Store(str(tmp_path / str(number)))
        one = replace(plan, batch_pixels=batch_pixels)
        encode_shard(spec, one, store, Replica(codec, threads, queue_bytes), attempt=number + 1)
        tables.append(store.get(layout.table_name("shard")))
        streams.append([row.bitstream for row in table.read_rows(tables[-1])])
    torch.set_num_threads(1)
    assert tables[0] == tables[1]
    assert streams[0] == streams[2] and len(set(streams[0])) > 3


def test_the_store_decides_the_payload_columns_and_nothing_else(tmp_path):
    codec, spec = tiny_codec(prior=True), write(tmp_path / "in.tar", SMALL)
    found, results = {}, {}
    for kind in STORES:
        store, plan = Store(str(tmp_path / kind)), replace(PLAN, store=kind)
        results[kind] = encode_shard(spec, plan, store, Replica(codec))
        found[kind] = list(table.read_rows(store.get(layout.table_name("shard"))))
        footer = table.read_footer(store.get(layout.table_name("shard")))
        assert ("coder" in footer) == (kind != "codes")
    bare = {
        kind: [replace(r, codes=None, bitstream=None) for r in rows] for kind, rows in found.items()
    }
    assert bare["bitstream"] == bare["codes"] == bare["both"]
    for codes, stream, both in zip(found["codes"], found["bitstream"], found["both"], strict=True):
        assert codes.bitstream is None and stream.codes is None
        assert (both.codes, both.bitstream) == (codes.codes, stream.bitstream)
        if codes.status is Status.OK:
            assert zlib.crc32(codes.codes) == stream.crc32
            decoded = codec.entropy_decode(
                [stream.bitstream], codes.grid_h, codes.grid_w, 3, plan.stages
            )
            assert decoded.numpy().tobytes() == codes.codes
    sizes = {kind: results[kind].code_bytes for kind in STORES}
    assert sizes["codes"] == sum(len(r.codes or b"") for r in found["codes"])
    assert (
        sizes["bitstream"] == sizes["both"] == sum(len(r.bitstream or b"") for r in found["both"])
    )
    assert results["bitstream"].seconds["code"] > results["codes"].seconds["code"]


def test_codes_are_those_of_the_codec_alone(tmp_path):
    plan = replace(PLAN, resize=48, crop=48)
    _, rows = encode(tmp_path, SHARDS[0].read_bytes(), plan)
    ok = [r for r in rows if r.status is Status.OK]
    assert len(ok) > 20 and {(r.grid_h, r.grid_w, len(r.codes)) for r in ok} == {(3, 3, 27)}
    assert len({r.codes for r in ok}) == len(ok)


def test_psnr_and_source_hash_are_kept_when_asked_for(tmp_path):
    entries = [("a.jpg", jpeg(40, 30))]
    _, rows = encode(tmp_path, make_tar(entries), replace(PLAN, measure="psnr", hash=True))
    assert 3 < rows[0].psnr < 60 and len(rows[0].source_sha256) == 32


def test_a_cut_tar_keeps_its_readable_rows_and_counts_as_damaged(tmp_path):
    whole = make_tar([(f"{i}.jpg", jpeg(32, 32, seed=i)) for i in range(6)])
    result, rows = encode(tmp_path, whole[: len(whole) // 2])
    assert result.outcome == "damaged" and result.damage
    assert 0 < len(rows) < 6
    entry = json.loads(Store(str(tmp_path / "out")).get("ledger/shard.json"))
    assert entry["outcome"] == "damaged"


def test_an_empty_tar_is_a_table_without_rows(tmp_path):
    result, rows = encode(tmp_path, make_tar([]))
    assert (result.outcome, rows, result.rows) == ("done", [], {})


def test_what_is_committed_is_not_read_again(tmp_path):
    first, _ = encode(tmp_path, make_tar(ODD))
    store = Store(str(tmp_path / "out"))
    spec = ShardSpec("shard", first.url, first.source_size, first.source_etag)
    Path(first.url).unlink()
    assert encode_shard(spec, PLAN, store, Replica(CODEC)) == first


def test_a_replaced_source_is_refused(tmp_path):
    first, _ = encode(tmp_path, make_tar(ODD))
    spec = ShardSpec("shard", first.url, first.source_size, "another etag")
    with pytest.raises(PlanMismatch, match="restore that source"):
        encode_shard(spec, PLAN, Store(str(tmp_path / "out")), Replica(CODEC))


def test_batches_depend_on_the_order_of_the_samples_alone():
    plan = replace(PLAN, batch_pixels=4 * 32 * 32)
    batcher = Batcher(plan)

    def ready(height: int, width: int) -> Ready:
        return Ready(Row("k", Status.OK), torch.zeros(3, height, width, dtype=torch.uint8), 0)

    out = []
    for index, size in enumerate([(32, 32), (16, 32), (32, 32), (32, 32), (64, 64), (32, 32)]):
        out += [[i for i, _ in batch] for batch in batcher.add(index, ready(*size))]
    out += [[i for i, _ in batch] for batch in batcher.rest()]
    assert out == [[4], [0, 2, 3, 5], [1]]


def test_waiting_pixels_are_bounded_however_many_shapes_there_are():
    plan = replace(PLAN, batch_pixels=1 << 12)
    batcher, peak = Batcher(plan), 0
    for index in range(500):
        side = 16 * (1 + index % 40)
        pixels = torch.zeros(3, 16, side, dtype=torch.uint8)
        list(batcher.add(index, Ready(Row("k", Status.OK), pixels, 0)))
        peak = max(peak, batcher.pending)
    assert peak <= 8 * plan.batch_pixels


def test_out_of_memory_halves_the_batch_once(monkeypatch):
    from pipeline.work import replica

    sizes = []

    def small(pixels):
        sizes.append(len(pixels))
        if len(pixels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return CODEC.encode(pixels, 3)

    pixels = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
    assert len(replica._halved(small, pixels)) == 8 and sizes == [8, 4, 4]
    with pytest.raises(torch.OutOfMemoryError):
        replica._halved(small, pixels.repeat(2, 1, 1, 1))
