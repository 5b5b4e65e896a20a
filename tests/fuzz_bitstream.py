"""Mutated .pqm files until the time is over: a typed error or the exact image, never else.

    python -m tests.fuzz_bitstream --minutes 5 --seed 7

Prints the file that broke the promise, in hex, and exits with 1.
"""

from __future__ import annotations

import argparse
import functools
import random
import re
import sys
import time
from collections import Counter

import torch

from pqmim.codec import Codec
from pqmim.files.container import BitstreamError
from tests.models import tiny_codec

MAX_PIXELS = 64 * 64
SLOW_S = 10.0  # of one file
VALUES = re.compile(r"\(.*?\)|b'.*|b\".*|\b[0-9a-f]*\d[0-9a-f]*\b|\b[0-9a-f]{6,}\b")


@functools.cache
def codec() -> Codec:
    """The tiny model with its entropy model."""
    return tiny_codec(prior=True)


@functools.cache
def seeds() -> list[tuple[bytes, torch.Tensor]]:
    """Valid files and their images: all qualities, several plans, one cut to its first stages."""
    found = []
    for quality, plan, stages in ((1, (1,), None), (2, (2,), None), (4, (1, 130), None),
                                  (3, (1, 1), 1), (4, (2, 1), 2)):  # fmt: skip
        generator = torch.Generator().manual_seed(quality)
        image = torch.randint(0, 256, (3, 9 + quality, 20), dtype=torch.uint8, generator=generator)
        data = codec().compress(image, quality, plan, stages, price=0)
        found.append((data, codec().decompress(data)))
    return found


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four edits: bit flips, bytes, cuts, insertions, swaps of words, foreign ends."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 8)))
        elif kind == 4:
            out += rng.choice((bytes(4), b"\xff" * 4, rng.randbytes(4)))
        elif kind == 5:
            out[24:] = rng.randbytes(4 * rng.randrange(12))
        else:
            del out[at : at + rng.choice((1, 4))]
    return bytes(out)


def outcome(data: bytes, image: torch.Tensor | None) -> str:
    """What decoding does; the image is what the unmutated file shows, None if it had none.

    Raises:
        AssertionError: wrong pixels without an error, or too slow.
    """
    begin = time.process_time()
    try:
        decoded = codec().decompress(data, max_pixels=MAX_PIXELS)
        assert image is not None and torch.equal(decoded, image), "wrong pixels without an error"
        result = "the exact image"
    except BitstreamError as error:
        result = VALUES.sub("#", str(error))
    assert time.process_time() - begin < SLOW_S, "too slow"
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng, seen = random.Random(arguments.seed), Counter[str]()
    end = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < end:
        data, image = rng.choice(seeds())
        data = mutate(data, rng)
        try:
            seen[outcome(data, image)] += 1
        except Exception:
            sys.stderr.write(f"{data.hex()}\n")
            raise
    for name, count in seen.most_common():
        sys.stdout.write(f"{count:8d}  {name}\n")
    sys.stdout.write(f"{seen.total():8d}  files, seed {arguments.seed}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
