"""The work on one shard, whatever it is: what is committed already, rows, table, commit.

encoder.py, transcoder.py and generator.py say how the rows are made.
"""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from pipeline.archive import commit, table
from pipeline.archive.table import Row
from pipeline.plan import Facts, Plan, ShardResult, ShardSpec, Status
from pipeline.signals import BPP_STEP, MOST_STEPS, PSNR_STEP, Glance
from pipeline.store.storage import Store
from pipeline.work import images
from pipeline.work.replica import Clock, Replica, resident_bytes

ERRORS = 3  # rows of a shard that are shown
Make = Callable[[Clock], tuple[Sequence[Row], Facts]]


def run_shard(
    spec: ShardSpec, plan: Plan, store: Store, replica: Replica, attempt: int, make: Make
) -> ShardResult:
    """Make the rows of one shard and commit its table; what is committed is returned as it is.

    Raises:
        pipeline.store.storage.StorageError: by class of recovery.
        pipeline.plan.PlanMismatch: the source or the plan is not the one of the committed table.
    """
    found = commit.find_committed(store, plan, spec)
    if found is not None:
        return found
    begin, clock = time.perf_counter(), Clock()
    replica.clocks[spec.shard_id] = clock
    rows, facts = make(clock)
    trim_memory()
    result = ShardResult.of(spec, facts, attempt=attempt)
    with clock.stage("write"):
        data = table.write_table(rows, plan, spec, result)
    result = replace(result, glance=glance(rows, plan), **cost(clock, begin))
    return commit.commit(store, plan, result, data)


def glance(rows: Sequence[Row], plan: Plan) -> Glance:
    """What a person is shown of the rows."""
    bpp, psnr = Counter[int](), Counter[int]()
    for row in rows:
        if row.status is Status.OK and min(row.width, row.height) > 0:
            width, height = images.encoded_size(row.width, row.height, plan.pictures)
            bpp[_step(8 * row.payload_bytes / (width * height) / BPP_STEP)] += 1
        if row.psnr is not None:
            psnr[_step(row.psnr / PSNR_STEP)] += 1
    bad = (row for row in rows if row.status is not Status.OK)
    errors = tuple((r.key, r.status.value, r.error or "") for r in islice(bad, ERRORS))
    return Glance(dict(bpp), dict(psnr), errors)


def _step(steps: float) -> int:
    """Of a histogram; a picture that comes back as it was has an infinite PSNR."""
    return int(min(max(steps, 0.0), MOST_STEPS))


def cost(clock: Clock, begin: float) -> dict[str, Any]:
    """What a shard took: fields of its ShardResult."""
    return {
        "seconds": {stage: round(seconds, 4) for stage, seconds in clock.seconds.items()},
        "cpu": {stage: round(seconds, 4) for stage, seconds in clock.cpu.items()},
        "wall_s": round(time.perf_counter() - begin, 4),
        "rss_bytes": resident_bytes(),
    }


def payload_bytes(rows: Sequence[Row]) -> int:
    """Of the images in rows."""
    return sum(row.payload_bytes for row in rows)


def trim_memory() -> None:
    """Give freed heap pages back to the system.

    glibc keeps them in an arena of each thread: 400 MiB more at rest after 30 shards with pictures
    of 9 megapixels, and growing (benchmarks.memory).  Other C libraries have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
