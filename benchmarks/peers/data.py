"""Shards for the comparison, sound and damaged, and what must come out of them."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.peers import shared
from pipeline.tars.samples import ShardReader
from pipeline.work.images import BadImage

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "shards").glob("*.tar"))
SAMPLES = 64  # of a shard


def photographs() -> list[bytes]:
    """The example photographs that are JPEG and decode."""
    found = []
    for shard in EXAMPLES:
        with shard.open("rb") as stream:
            for sample in ShardReader(stream, shard.stat().st_size):
                data = sample.members.get("jpg")
                try:
                    shared.decoded(data or b"")
                except BadImage:
                    continue
                found.append(data)
    return [data for data in found if data]


def expected(photos: list[bytes]) -> list[set[int]]:
    """crc32 of the codes of each.  The kernels of a convolution differ by the number of pictures,
    and now and then a code with them: what any usual size of batch gives is right."""
    model, found = shared.Model(), [set[int]() for _ in photos]
    pixels = np.stack([shared.decoded(data) for data in photos])
    for batch in (1, 2, 8, 16, 32):
        for first in range(0, len(photos), batch):
            part = pixels[first : first + batch]
            part = np.concatenate([part, pixels[: batch - len(part)]])
            for number, codes in enumerate(model.codes(part)):
                found[(first + number) % len(photos)].add(zlib.crc32(codes))
    return found


def key(shard: int, sample: int) -> str:
    """Unique over all shards."""
    return f"{shard:03d}-{sample:03d}"


def tar_of(photos: list[bytes], shard: int, broken: tuple[int, ...] = ()) -> bytes:
    """A shard of :data:`SAMPLES` photographs, of which some are cut off."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for sample in range(SAMPLES):
            data = photos[(shard * SAMPLES + sample) % len(photos)]
            data = data[: len(data) // 2] if sample in broken else data
            info = tarfile.TarInfo(f"{key(shard, sample)}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sound(folder: Path, photos: list[bytes], shards: int) -> None:
    """Shards without a fault."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        (folder / f"{shard:03d}.tar").write_bytes(tar_of(photos, shard))


def damaged(folder: Path, photos: list[bytes]) -> int:
    """Four shards: one header damaged in the middle, one tar cut off at six tenths, three pictures
    cut off, none.  How many pictures are whole in them."""
    folder.mkdir(parents=True)
    tars = [tar_of(photos, n, (5, 20, 40) if n == 2 else ()) for n in range(4)]
    with tarfile.open(fileobj=io.BytesIO(tars[0])) as tar:
        at = tar.getmembers()[SAMPLES // 2].offset
    tars[0] = tars[0][: at + 150] + b"\xff" + tars[0][at + 151 :]  # in its checksum
    with tarfile.open(fileobj=io.BytesIO(tars[1])) as tar:
        ends = [m.offset_data + m.size for m in tar.getmembers()]
    cut = len(tars[1]) * 6 // 10
    tars[1] = tars[1][:cut]
    for number, data in enumerate(tars):
        (folder / f"{number:03d}.tar").write_bytes(data)
    return (SAMPLES - 1) + sum(end <= cut for end in ends) + (SAMPLES - 3) + SAMPLES


def came_out(output: Path) -> dict[str, int]:
    """Key -> crc32 of its codes, of everything that a peer has written."""
    found: dict[str, int] = {}
    for path in output.rglob("*.parquet"):
        if path.name == "inputs.parquet":
            continue
        rows = pq.ParquetFile(path).read(columns=["key", "codes"]).to_pylist()
        found |= {row["key"]: zlib.crc32(row["codes"]) for row in rows if row["codes"]}
    for path in output.glob("*.codes.npy"):
        found[path.name.removesuffix(".codes.npy")] = zlib.crc32(np.load(path).tobytes())
    return found


def right(found: dict[str, int], crcs: list[set[int]]) -> int:
    """How many of them are what they should be."""
    places = {name: [int(part) for part in name.split("-")] for name in found}
    return sum(
        found[name] in crcs[(shard * SAMPLES + sample) % len(crcs)]
        for name, (shard, sample) in places.items()
    )
