"""The loop of clip-retrieval: WebDataset, a DataLoader, a model, codes with their keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset
from torch.utils.data import DataLoader

from benchmarks.peers import shared


def sample(found: dict) -> tuple[str, np.ndarray]:
    """A sample of webdataset to key and pixels."""
    return found["__key__"], shared.decoded(found["jpg"])


def collate(batch: list[tuple[str, np.ndarray]]) -> tuple[list[str], torch.Tensor]:
    """Keys, and pixels as one tensor."""
    return [key for key, _ in batch], torch.from_numpy(np.stack([pixels for _, pixels in batch]))


def batches(args: object, shards: list[str], workers: int, batch: int) -> Iterator:
    """What the DataLoader gives."""
    dataset = webdataset.WebDataset(
        shards, handler=webdataset.warn_and_continue, shardshuffle=False, empty_check=False
    ).map(sample, handler=webdataset.warn_and_continue)
    return iter(
        DataLoader(
            dataset, batch_size=batch, num_workers=workers, prefetch_factor=2, collate_fn=collate
        )
    )


def main() -> None:
    """Run it."""
    args = shared.arguments(__doc__)
    Path(args.output).mkdir()
    model = shared.Model(args.threads)
    keys, codes = list[str](), list[bytes]()
    for names, pixels in batches(args, args.shards, args.workers, args.batch):
        keys += names
        codes += model.codes(pixels.numpy())
    pq.write_table(pa.table({"key": keys, "codes": codes}), f"{args.output}/0.parquet")


if __name__ == "__main__":
    main()
