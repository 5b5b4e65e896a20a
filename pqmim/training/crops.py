"""Training images out of WebDataset shards, whole or damaged, as uint8 in memory."""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pqmim.pictures.picture import BadPicture
from pqmim.pictures.read import read

log = logging.getLogger(__name__)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


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
