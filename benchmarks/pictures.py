"""What strict reading costs beside the bare JPEG decoder: pqmim.pictures against simplejpeg.

    python -m benchmarks.pictures examples/shards/*.tar

Every JPEG of the tars is decoded by both in turns, the order alternating, so that a slow minute
of the machine hits both alike; the least times are added up.  The bare decoder has no look at
sizes, orientation, profiles or second pictures.
"""

from __future__ import annotations

import contextlib
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from simplejpeg import decode_jpeg

from pqmim.pictures.picture import BadPicture
from pqmim.pictures.read import is_jpeg, read

ROUNDS = 40


def files(tars: list[str]) -> list[bytes]:
    """The sound JPEG members of some tars."""
    found = []
    for name in tars:
        with tarfile.open(Path(name)) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                data = stream.read() if stream else b""
                with contextlib.suppress(BadPicture):
                    found += [data] if is_jpeg(data) and read(data) else []
    return found


def seconds(work: Callable[[bytes], object], data: bytes) -> float:
    """CPU time of one call."""
    begin = time.thread_time()
    work(data)
    return time.thread_time() - begin


def main() -> None:
    """Print the sums of the least times, and their ratio."""
    pictures = files(sys.argv[1:])
    bare = strict = 0.0
    for data in pictures:
        times: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(ROUNDS):
            for is_bare in (turn % 2 == 0, turn % 2 != 0):
                times[is_bare].append(seconds(decode_jpeg if is_bare else read, data))
        bare += min(times[True])
        strict += min(times[False])
    sys.stdout.write(
        f"{len(pictures)} JPEGs: bare decoder {1e3 * bare:.1f} ms, strict reading "
        f"{1e3 * strict:.1f} ms, {100 * (strict / bare - 1):+.1f} %\n"
    )


if __name__ == "__main__":
    main()
