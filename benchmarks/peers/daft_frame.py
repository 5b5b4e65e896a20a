"""Daft as its documentation has it: read_webdataset, a function for decoding, a class with a model.

Runs in an environment of its own, for it needs pyarrow < 26.
"""

from __future__ import annotations

import daft
import numpy as np
from daft import DataType, Series

from benchmarks.peers import shared

ARGS = shared.arguments(__doc__)
BYTES = 3 * shared.SIDE * shared.SIDE


@daft.func(return_dtype=DataType.binary())
def decode(image: daft.File) -> bytes:
    """A file to pixels."""
    with image.open() as file:
        return shared.decoded(file.read()).tobytes()


@daft.cls(max_concurrency=ARGS.models, use_process=True)
class Encode:
    """One model."""

    def __init__(self, threads: int) -> None:
        self.model = shared.Model(threads)

    @daft.method.batch(return_dtype=DataType.binary(), batch_size=ARGS.batch)
    def codes(self, pixels: Series) -> list[bytes]:
        """A batch of pixels to codes."""
        flat = [np.frombuffer(data, np.uint8, BYTES) for data in pixels.to_pylist()]
        return self.model.codes(np.stack(flat).reshape(-1, 3, shared.SIDE, shared.SIDE))


def main() -> None:
    """Run it."""
    encode = Encode(ARGS.threads)
    found = daft.read_webdataset(ARGS.shards)
    found = found.select(found["__key__"].alias("key"), decode(found["jpg"]).alias("pixels"))
    found.select(found["key"], encode.codes(found["pixels"]).alias("codes")).write_parquet(
        ARGS.output
    )


if __name__ == "__main__":
    main()
