"""Real photographs for tests, out of the example shards."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.tars.samples import Sample, ShardReader

SHARDS = sorted((Path(__file__).parent.parent / "examples" / "shards").glob("*.tar"))


def samples(shard: Path = SHARDS[0]) -> list[Sample]:
    """Every sample of an example shard."""
    with open(shard, "rb") as stream:
        return list(ShardReader(stream, shard.stat().st_size))


def photograph(index: int = 1) -> torch.Tensor:
    """One intact photograph, uint8 [1,3,H,W]."""
    data = [s.members["jpg"] for s in samples() if "jpg" in s.members][index]
    array = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).copy()
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()
