"""Synthetic codes in the layouts that people train from, for ``benchmarks.dataset``."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

from pipeline.archive import commit, manifest, table
from pipeline.archive.table import Row
from pipeline.plan import Plan, ShardResult, ShardSpec, Status
from pipeline.store.storage import Store

GRID, SUBCODES = 16, 8
BYTES = GRID * GRID * SUBCODES  # of an image
SHAPE = (GRID, GRID, SUBCODES)
PER_TABLE = 10_240
PLAN = Plan(model="0" * 64, quality=SUBCODES, stride=16, codewords=256, inputs=0, inputs_digest="",
            store="codes", keep=("json.label:int32",))  # fmt: skip


def images(first: int, count: int) -> np.ndarray:
    """Codes [count, BYTES] of images that do not depend on how many there are."""
    return np.random.default_rng(first).integers(0, 256, (count, BYTES), dtype=np.uint8)


def write_archive(root: Path, count: int) -> Path:
    """An archive as jobs.encode and jobs.finish leave it, but for the images."""
    store = Store(str(root))
    commit.begin(store, PLAN)
    results = []
    for number, first in enumerate(range(0, count, PER_TABLE)):
        codes = images(first, min(PER_TABLE, count - first))
        rows = [
            Row(f"{first + i:08d}", Status.OK, None, 256, 256, GRID, GRID, data := c.tobytes(),
                None, zlib.crc32(data), kept={"json.label": i % 1000})
            for i, c in enumerate(codes)
        ]  # fmt: skip
        spec = ShardSpec(f"shard-{number:05d}", f"/in/{number:05d}.tar", 1, "etag")
        counts = {Status.OK.value: len(rows)}
        result = ShardResult(spec.shard_id, spec.url, 1, "etag", "done", counts, 0, codes.size,
                             0, "", "")  # fmt: skip
        results.append(
            commit.commit(store, PLAN, result, table.write_table(rows, PLAN, spec, result))
        )
    entries = manifest.describe(store, PLAN, results)
    store.put(manifest.MANIFEST, manifest.write(entries, PLAN))
    return root


def write_npy(folder: Path, count: int) -> None:
    """Two files an image."""
    for name in ("codes", "labels"):
        (folder / name).mkdir(parents=True)
    for i, codes in enumerate(images(0, count)):
        np.save(folder / "codes" / f"{i}.npy", codes.reshape(SHAPE))
        np.save(folder / "labels" / f"{i}.npy", np.array([i % 1000]))


def write_lists(path: Path, count: int) -> None:
    """Codes as lists of integers."""
    keys = pa.array([f"{i:08d}" for i in range(count)])
    flat = pa.array(images(0, count).ravel().astype(np.int64))
    lists = pa.ListArray.from_arrays(np.arange(0, count * BYTES + 1, BYTES, dtype=np.int32), flat)
    pq.write_table(pa.table({"key": keys, "encoding": lists}), path, row_group_size=1024)


def write_tars(folder: Path, count: int) -> None:
    """Ten tars of codes."""
    folder.mkdir()
    codes = images(0, count).reshape(-1, *SHAPE)
    for number in range(10):
        with webdataset.TarWriter(str(folder / f"{number}.tar")) as tar:
            for i in range(number, count, 10):
                tar.write({"__key__": f"{i:08d}", "npy": codes[i], "cls": i % 1000})
