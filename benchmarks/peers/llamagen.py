"""As LlamaGen extracts codes: a process a GPU, each with its shards; two .npy files an image."""

from __future__ import annotations

import io
import multiprocessing
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.peers import shared


class Images(IterableDataset):
    """The members of tars that are images."""

    def __init__(self, shards: list[str]) -> None:
        self.shards = shards

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        info = get_worker_info()
        mine = self.shards[info.id :: info.num_workers] if info else self.shards
        for shard in mine:
            with tarfile.open(shard) as tar:
                for member in tar:
                    if member.name.endswith(".jpg"):
                        file = tar.extractfile(member) or io.BytesIO()
                        yield member.name[:-4], torch.from_numpy(shared.decoded(file.read()))


def process(rank: int, models: int, args: object) -> None:
    """One of them."""
    shards, output = args.shards[rank::models], args.output  # type: ignore[attr-defined]
    model = shared.Model(args.threads)  # type: ignore[attr-defined]
    loader = DataLoader(Images(shards), batch_size=args.batch, num_workers=args.workers)  # type: ignore[attr-defined]
    for keys, pixels in loader:
        for key, codes in zip(keys, model.codes(pixels.numpy()), strict=True):
            np.save(f"{output}/{key}.codes.npy", np.frombuffer(codes, np.uint8))
            np.save(f"{output}/{key}.label.npy", np.array([0]))


def main() -> None:
    """Start them and wait."""
    args = shared.arguments(__doc__)
    Path(args.output).mkdir()
    context = multiprocessing.get_context("spawn")
    started = [
        context.Process(target=process, args=(n, args.models, args)) for n in range(args.models)
    ]
    for one in started:
        one.start()
    for one in started:
        one.join()
    if any(one.exitcode for one in started):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
