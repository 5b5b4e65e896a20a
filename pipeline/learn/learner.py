"""Train the entropy model on the raw codes of an archive; one worker of one or several.

    manifest -> CodeStream -> Reservoir --random windows--> pqmim.training.prior_run -> weights file

Every worker reads the whole archive in an order of its own.  Up to BUFFER_BYTES of codes are in
memory (32,000 images of 16 x 16 x 32): a smaller archive is read once, of a larger one each image
makes room for the next after one draw.  The file that comes out holds the archive's autoencoder,
whose codes these are, and the new entropy model.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.archive import layout
from pipeline.archive.manifest import DatasetError
from pipeline.codes.query import Filter
from pipeline.codes.stream import CodeStream
from pipeline.store.storage import Store
from pqmim import checkpoint
from pqmim.checkpoint import Weights
from pqmim.prior.config import PriorConfig
from pqmim.training import prior_run
from pqmim.training.prior import Codes, PriorRecipe
from pqmim.training.starts import code_lengths

BUFFER_BYTES = 256 << 20
HELD_OUT, HELD_OUT_OF = 12, 8  # images, of a small archive one in eight
READ = 64  # images of a batch of the stream
STARTS = ("shipped", "scratch")


@dataclass(frozen=True)
class Task:
    """What is trained on what: all that a worker is sent."""

    archive: str
    out: str  # folder of the run, the same for all workers
    start: str  # "shipped": the entropy model of the archive's weights; or "scratch"
    minutes: float
    where: tuple[Filter, ...] = ()
    device: str = "cpu"
    threads: int = 1


class Reservoir(Sequence[Codes]):
    """The grids of an archive, at most so many bytes of them in memory."""

    def __init__(
        self, stream: CodeStream, left_out: Collection[str], buffer_bytes: int = BUFFER_BYTES
    ) -> None:
        """
        Raises:
            pipeline.archive.manifest.DatasetError: no image is left.
        """
        self._stream, self._left_out = stream, left_out
        self._grids = list[Codes]()
        self._next: Iterator[Codes] | None = None  # of an archive that does not fit
        size, epoch = 0, self._epoch()
        for codes in epoch:
            self._grids.append(codes)
            size += codes.nbytes
            if size >= buffer_bytes:
                self._next = self._endless(epoch)
                break
        if not self._grids:
            raise DatasetError(
                f"{stream.store.root}: no image passes the filter besides the {len(left_out)} that "
                "are held out: give more, or leave the filter out"
            )

    def _epoch(self) -> Iterator[Codes]:
        for batch in self._stream.batches():
            for key, codes in zip(batch.key, batch.codes.numpy(), strict=True):
                if key not in self._left_out:
                    yield codes.copy()  # not to hold the whole batch

    def _endless(self, epoch: Iterator[Codes]) -> Iterator[Codes]:
        while True:
            yield from epoch
            epoch = self._epoch()

    def __len__(self) -> int:
        return len(self._grids)

    def __getitem__(self, index: int) -> Codes:  # type: ignore[override]
        codes = self._grids[index]
        if self._next is not None:
            self._grids[index] = next(self._next)
        return codes


def learn(task: Task) -> Path | None:
    """Train, and write the weights file into the run's folder; its path, from worker 0.

    A run that was interrupted goes on from its checkpoint, and reads the archive in a new order.

    Raises:
        pipeline.archive.manifest.DatasetError, pqmim.checkpoint.CheckpointError,
        pqmim.training.prior_run.RunError: each with the way out.
    """
    torch.set_num_threads(task.threads)
    store, out, device = Store(task.archive), Path(task.out), torch.device(task.device)
    weights, config = read_model(store, task.start)
    recipe = PriorRecipe(model=config, minutes=task.minutes)
    other = weights.prior if task.start == "shipped" else None
    if other is not None:
        recipe = prior_run.continued(recipe, task.minutes)
    held_out = _first_images(task)
    rank, _ = prior_run.workers()
    stream = CodeStream(task.archive, seed=1 + rank, batch_size=READ, where=task.where)
    stream.set_epoch(prior_run.steps_done(out))
    images = Reservoir(stream, held_out)
    codebook = weights.model.quantizer.codebook.to(device)
    lengths = code_lengths(_uses(images, *codebook.shape[:2])).to(device)
    trainer = prior_run.begin(recipe, out, device, codebook, lengths, other)
    trained = prior_run.train(trainer, images, list(held_out.values()), out)
    return checkpoint.write(weights.model, out, trained) if rank == 0 else None


def read_model(store: Store, start: str) -> tuple[Weights, PriorConfig]:
    """The weights that the archive carries, and the shape of the entropy model to train.

    Raises:
        pipeline.archive.manifest.DatasetError: the archive's codes cannot train it.
        pqmim.checkpoint.CheckpointError: damaged weights.
        pqmim.autoencoder.config.ConfigError: no entropy model can be of such codes.
    """
    plan = layout.read_plan(store)
    name = layout.model_name(plan.model)
    weights = checkpoint.parse(store.get(name), store.url(name))
    config = weights.model.config
    if plan.quality != config.subcodes:
        raise DatasetError(
            f"{store.root}: keeps {plan.quality} of {config.subcodes} sub-codes, and an entropy "
            f"model is trained on all: encode with jobs.encode --quality {config.subcodes}"
        )
    if start == "scratch":
        return weights, PriorConfig(subcodes=config.subcodes, codewords=config.codewords)
    if weights.prior is None:
        raise DatasetError(
            f"{store.url(name)}: has no entropy model to go on from: give --start-from scratch"
        )
    return weights, weights.prior.config


def _first_images(task: Task) -> dict[str, Codes]:
    """The images that are held out, by key: the same for every worker and submission."""
    stream = CodeStream(task.archive, batch_size=READ, where=task.where)
    rows = (
        (key, codes.copy())
        for batch in stream.batches()
        for key, codes in zip(batch.key, batch.codes.numpy(), strict=True)
    )
    first = list(itertools.islice(rows, HELD_OUT * HELD_OUT_OF))
    return dict(first[: -(-len(first) // HELD_OUT_OF)])


def _uses(images: Sequence[Codes], subcodes: int, codewords: int) -> torch.Tensor:
    """[M, K]: how often the first thousand images use each codeword."""
    grids = [images[i].reshape(-1, subcodes) for i in range(min(len(images), 1000))]
    every = np.concatenate(grids)
    counts = [np.bincount(every[:, m], minlength=codewords) for m in range(subcodes)]
    return torch.from_numpy(np.stack(counts)).float()
