"""What strict reading costs beside the bare JPEG decoder: pqmim.pictures against simplejpeg.

    python -m benchmarks.pictures examples/shards/*.tar

Every JPEG of the tars is decoded by both in turns, the order alternating, so that a slow moment
of the machine hits both alike.  Of each picture the median of what strict reading took more than
the bare decoder beside it counts: least times of either come from different moments, and their
ratio moved by 3 % from run to run.  The bare decoder has no look at sizes, orientation, profiles
or second pictures.
"""

from __future__ import annotations

import contextlib
import statistics
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
    """Print the sums of the medians, and their ratio."""
    pictures = files(sys.argv[1:])
    bare = more = 0.0
    for data in pictures:
        alone, beyond = [], []
        for turn in range(ROUNDS):
            calls = (decode_jpeg, read) if turn % 2 else (read, decode_jpeg)
            times = {call: seconds(call, data) for call in calls}
            alone.append(times[decode_jpeg])
            beyond.append(times[read] - times[decode_jpeg])
        bare += statistics.median(alone)
        more += statistics.median(beyond)
    sys.stdout.write(
        f"{len(pictures)} JPEGs: bare decoder {1e3 * bare:.1f} ms, strict reading "
        f"{1e3 * more:.2f} ms more, {100 * more / bare:+.1f} %\n"
    )


if __name__ == "__main__":
    main()
