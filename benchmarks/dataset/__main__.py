"""How fast codes are read for training: ``CodeStream`` against what people use today.

    python -m benchmarks.dataset

Synthetic codes of 16 x 16 x 8 through the real table writer; every reader gives shuffled batches of
uint8 [B, 16, 16, 8] with keys or labels to the main process, by a DataLoader of the same number of
workers.  The bare read is one process that reads the same tables from the first to the last byte.
A DataLoader that hands out those bytes and nothing else says what workers can pass on at all.  The
others read the first ``--others`` images: their speed does not depend on the number.  Rounds are
interleaved and the best of each counts, because other work on the machine only ever slows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import webdataset
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from benchmarks.dataset.layouts import (
    BYTES,
    PER_TABLE,
    SHAPE,
    write_archive,
    write_lists,
    write_npy,
    write_tars,
)
from pipeline.codes.by_number import CodeStream

Reader = Callable[[], Iterator[int]]  # gives the number of images of each batch


def main() -> int:
    """Write all forms, read each in turn, print images and bytes a second."""
    args = parse()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        archive = write_archive(folder / "archive", args.images)
        write_npy(folder / "npy", args.others)
        write_lists(folder / "lists.parquet", args.others)
        write_tars(folder / "tars", args.others)
        readers = all_readers(args, folder, archive)
        speeds = measure(readers, folder, args.rounds)
    report(args, speeds)
    return 0


def all_readers(args: argparse.Namespace, folder: Path, archive: Path) -> dict[str, Reader]:
    """What is compared, by its name in the report."""
    batch, workers = args.batch_size, args.workers
    tables = sorted((archive / "codes").iterdir())
    some = [str(t) for t in tables[: -(-args.others // PER_TABLE)]]
    readers: dict[str, Reader] = {
        "bare read": lambda: bare(tables),
        "DataLoader of bytes alone": lambda: map(
            len, DataLoader(Bytes(tables, batch), batch_size=None, num_workers=workers)
        ),
        "CodeStream": lambda: stream(archive, batch, workers, True),
        "CodeStream, checksums=False": lambda: stream(archive, batch, workers, False),
        "(a) two .npy an image": lambda: npy(folder / "npy", args.others, batch, workers),
        "(b) Parquet, lists of integers": lambda: lists(folder / "lists.parquet", batch),
        "(c) WebDataset of .npy": lambda: tars(folder / "tars", batch, workers),
        "(d) datasets, streaming": lambda: hugging_face(some, batch, workers),
    }
    return readers


def measure(readers: dict[str, Reader], folder: Path, rounds: int) -> dict[str, float]:
    """Images a second, best of the rounds; the bare read and CodeStream from a cold cache too."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, reader in readers.items():
            ours = not name.startswith("(")
            for cold in (True, False) if ours else (False,):
                if cold:
                    forget(folder)
                label = f"{name}, cold" if cold else name
                best[label] = max(best.get(label, 0.0), speed(reader))
    return best


def speed(reader: Reader) -> float:
    """Images a second from the first batch to the end: without the start of the workers."""
    batches = reader()
    next(batches)
    begin, images = time.perf_counter(), 0
    for count in batches:
        images += count
    return images / (time.perf_counter() - begin)


def report(args: argparse.Namespace, speeds: dict[str, float]) -> None:
    """The table."""
    best = max(v for k, v in speeds.items() if k.startswith("("))
    images = f"{args.images} images of {' x '.join(map(str, SHAPE))}, {args.others} for (a) to (d)"
    print(f"{images}; {args.workers} workers, batches of {args.batch_size}, {args.rounds} rounds")
    for name, value in speeds.items():
        bare_name = "bare read, cold" if name.endswith("cold") else "bare read"
        print(f"{name:36s} {value:11,.0f} images/s {value * BYTES / 1e6:8.1f} MB/s "
              f"{value / best:7.2f} x best of (a)-(d) {value / speeds[bare_name]:6.2f} of bare"
              )  # fmt: skip


# Readers -----------------------------------------------------------------------------------------


def bare(tables: list[Path]) -> Iterator[int]:
    """Every byte of the tables, in order, into one buffer."""
    buffer = bytearray(1 << 20)
    yield 0
    for path in tables:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
        yield pq.read_metadata(path).num_rows


class Bytes(IterableDataset[torch.Tensor]):
    """The bytes of whole batches out of the tables, as they lie there: no Parquet, keys, checksums
    or shuffling.  What a DataLoader can give at most."""

    def __init__(self, tables: list[Path], batch: int) -> None:
        self.tables, self.batch = tables, batch

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        mine = self.tables[info.id :: info.num_workers] if info else self.tables
        for path in mine:
            with open(path, "rb", buffering=0) as file:
                while True:
                    codes = torch.empty(self.batch * BYTES, dtype=torch.uint8).share_memory_()
                    if file.readinto(memoryview(codes.numpy())) < len(codes):
                        break
                    yield codes.view(self.batch, *SHAPE)


def stream(archive: Path, batch: int, workers: int, checksums: bool) -> Iterator[int]:
    """Ours."""
    codes = CodeStream(str(archive), batch_size=batch, columns=["json.label"], checksums=checksums)
    for found in codes.batches(workers):
        assert found.codes.shape[1:] == SHAPE
        yield len(found)


class Npy(Dataset[tuple[np.ndarray, np.ndarray]]):
    """As LlamaGen reads what its extraction wrote."""

    def __init__(self, folder: Path, images: int) -> None:
        self.folder, self.images = folder, images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        codes = np.load(self.folder / "codes" / f"{number}.npy")
        return codes, np.load(self.folder / "labels" / f"{number}.npy")


def npy(folder: Path, images: int, batch: int, workers: int) -> Iterator[int]:
    """One file of codes and one of labels an image."""
    loader = DataLoader(Npy(folder, images), batch, shuffle=True, num_workers=workers)
    for codes, _ in loader:
        assert codes.shape[1:] == SHAPE
        yield len(codes)


def lists(path: Path, batch: int) -> Iterator[int]:
    """As favourable as the format allows: pyarrow without Python objects, its own threads."""
    rng = np.random.default_rng(0)
    file = pq.ParquetFile(path)
    for group in rng.permutation(file.num_row_groups):
        rows = file.read_row_group(int(group))
        codes = rows["encoding"].combine_chunks().flatten().to_numpy()
        found = torch.from_numpy(codes.astype(np.uint8).reshape(-1, *SHAPE))
        keys = rows["key"].to_pylist()
        order = torch.from_numpy(rng.permutation(len(keys)))
        for first in range(0, len(keys), batch):
            some = order[first : first + batch]
            assert len([keys[i] for i in some.tolist()]) == len(found[some])
            yield len(some)


def tars(folder: Path, batch: int, workers: int) -> Iterator[int]:
    """The webdataset package with its shuffle buffer."""
    names = sorted(str(path) for path in folder.glob("*.tar"))
    data = (
        webdataset.WebDataset(names, shardshuffle=len(names), empty_check=False)
        .shuffle(1000).decode().to_tuple("__key__", "npy").batched(batch)
    )  # fmt: skip
    for keys, codes in DataLoader(data, batch_size=None, num_workers=workers):
        assert codes.shape[1:] == SHAPE
        yield len(keys)


def hugging_face(files: list[str], batch: int, workers: int) -> Iterator[int]:
    """The datasets package on our own tables, rows as its users get them."""
    import datasets

    rows = datasets.load_dataset("parquet", data_files=files, streaming=True, split="train")
    rows = rows.select_columns(["key", "codes", "json.label"]).shuffle(seed=0, buffer_size=1000)

    def collate(some: list[dict[str, bytes]]) -> tuple[list[bytes], torch.Tensor]:
        codes = np.stack([np.frombuffer(row["codes"], np.uint8).reshape(SHAPE) for row in some])
        return [row["key"] for row in some], torch.from_numpy(codes)

    for keys, codes in DataLoader(rows, batch, num_workers=workers, collate_fn=collate):
        assert codes.shape[1:] == SHAPE
        yield len(keys)


def forget(folder: Path) -> None:
    """Ask the system to drop the files from its cache."""
    for path in folder.rglob("*.parquet"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("benchmarks.dataset", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=204_800, help="%(default)s")
    parser.add_argument("--others", type=int, default=20_480, help="of (a) to (d); %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="%(default)s")
    parser.add_argument("--batch-size", type=int, default=1024, help="%(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="%(default)s")
    parser.add_argument("--folder", help="where to write 0.6 GB (the system's temporary folder)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
