"""Training images: WebDataset shards -> random crops.

Every photograph is decoded once and kept as uint8 in memory (0.6 MB each), so the loop is never
bound by JPEG decoding.  The crops of step ``n`` depend on the seed and ``n`` alone: a resumed run
sees the batches that the interrupted one would have seen.
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pqmim.pictures.picture import BadPicture
from pqmim.pictures.read import read

log = logging.getLogger(__name__)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SCALE_RANGE = (0.6, 1.5)  # of half the crops; the other half are one to one


def load_images(shards: list[Path]) -> list[Tensor]:
    """Decode every image member of the tars to uint8 [3,H,W].

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: the shards hold no image, or one that cannot be read.
    """
    images = []
    for shard in shards:
        for name, data in members(shard):
            try:
                images.append(read(data).tensor())
            except BadPicture as error:
                raise ValueError(f"{shard}: {name}: {error}") from error
    if not images:
        raise ValueError(f"no {'/'.join(IMAGE_SUFFIXES)} member in {[str(s) for s in shards]}")
    return images


def members(shard: Path) -> Iterator[tuple[str, bytes]]:
    """The image members of a tar, by name; what is damaged is left out, and said.

    Python's tarfile takes the first bad header for the end of the tar.  Told to ignore it, it goes
    on at the next block that is a header, as the encoding job does at any byte.
    """
    with tarfile.open(shard, ignore_zeros=True) as tar:
        expected = 0
        for member in _headers(tar):
            if member.offset > expected:
                cause = f"no header at byte {expected}, {member.offset - expected} bytes left out"
                log.warning("%s: damaged: %s", shard, cause)
            expected = tar.offset
            if not member.name.lower().endswith(IMAGE_SUFFIXES):
                continue
            try:
                file = tar.extractfile(member)
                if file is not None:
                    yield member.name, file.read()
            except (tarfile.TarError, KeyError) as error:  # cut off; a link to nothing
                log.warning("%s: damaged: %s left out: %s", shard, member.name, error)


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members; after an extended header without its member, those behind it."""
    while True:
        try:
            member = tar.next()
        except tarfile.ReadError:
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if not tar.fileobj.read(1):
                return  # cut off; the member before it has said so
            tar.offset += tarfile.BLOCKSIZE
            continue
        if member is None:
            return
        yield member


def center_crops(images: list[Tensor], size: int, count: int) -> Tensor:
    """The centre of the first ``count`` images that are large enough, uint8 [n,3,size,size]."""
    crops: list[Tensor] = []
    for image in images:
        top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
        if min(top, left) >= 0 and len(crops) < count:
            crops.append(image[:, top : top + size, left : left + size])
    return torch.stack(crops)


def random_crop(image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """One augmented crop, uint8 [3,size,size]: random place, scale and mirror."""
    height, width = image.shape[1:]
    scale = 1.0
    if rng.random() < 0.5:
        scale = float(np.exp(rng.uniform(*np.log(SCALE_RANGE))))
    side = min(round(size / scale), height, width)
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = image[:, top : top + side, left : left + side]
    if side != size:
        crop = F.interpolate(crop[None], (size, size), mode="bicubic", antialias=True)[0]
    return crop.flip(2) if rng.random() < 0.5 else crop


def batches(
    images: list[Tensor], size: int, batch: int, seed: int, first_step: int, threads: int = 1
) -> Iterator[Tensor]:
    """Endless uint8 [batch,3,size,size], made ahead by ``threads``, in the order of the steps."""

    def make(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step % 2**32))
        picks = rng.integers(len(images), size=batch)
        return torch.stack([random_crop(images[i], size, rng) for i in picks])

    with ThreadPoolExecutor(threads) as pool:
        ahead: list[Future[Tensor]] = [pool.submit(make, first_step + i) for i in range(threads)]
        step = first_step + threads
        while True:
            ahead.append(pool.submit(make, step))
            step += 1
            yield ahead.pop(0).result()
