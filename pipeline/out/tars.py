"""Tars of what leaves an archive: for each shard one or several, none larger than was agreed.

    <shard>.000.tar <shard>.001.tar ... <shard>.tar

The last one has the plain name and is written last, so that it says that the shard is out; a small
shard has no other.  Each is written whole or not at all, and always has the same bytes: the limit
is in the mark of the output, which the first command writes, so that the next one cuts at the same
places.  Memory: one tar, or one sample where that is larger.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Any

import webdataset

from pipeline.plan import Plan, PlanMismatch
from pipeline.store.storage import Store

WHOLE = 4 << 30  # bytes of a tar in outputs of before, below the 5 GiB of one PUT


def begin(output: Store, name: str, plan: Plan, tar_bytes: int, **more: object) -> int:
    """Mark the output as being of this plan, so that two archives never mix; the limit that its
    tars have.

    Raises:
        pipeline.plan.PlanMismatch: it holds what another archive gave.
    """
    record = {"plan_digest": plan.digest, "tar_bytes": tar_bytes, **more}
    mark = (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
    if output.put_if_absent(name, mark):
        return tar_bytes
    try:
        there: dict[str, Any] = json.loads(output.get(name))
        same = there["plan_digest"] == plan.digest
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise PlanMismatch(
            f"{output.url(name)}: what is there is of another archive: choose another output"
        )
    return int(there.get("tar_bytes", WHOLE))


class Tars:
    """The tars of one shard; a block that ends well writes the last one."""

    def __init__(self, output: Store, shard_id: str, limit: int) -> None:
        self.output, self.shard_id, self.limit = output, shard_id, limit
        self.there = output.info(f"{shard_id}.tar") is not None and self._in_a_row()
        self.counts: dict[str, int] = {}  # of samples, by tar
        self._begin()

    def _in_a_row(self) -> bool:
        """Whether no tar is missing among those before the last one that are there."""
        name = re.compile(re.escape(self.shard_id) + r"\.(\d{3,})\.tar")
        found = map(name.fullmatch, self.output.names(f"{self.shard_id}."))
        numbers = sorted(int(match[1]) for match in found if match)
        return numbers == list(range(len(numbers)))

    def _begin(self) -> None:
        self._sink, self._count = io.BytesIO(), 0
        self._tar = webdataset.TarWriter(self._sink, encoder=False, mtime=0)

    def write(self, sample: Mapping[str, object]) -> None:
        """One sample, into the next tar if this one would become too large.

        Raises:
            PlanMismatch: somebody else's tar is in its place.
        """
        size = sum(1024 + len(data) for data in sample.values() if isinstance(data, bytes))
        if self._count and self._sink.tell() + size > self.limit:
            self._end(f"{self.shard_id}.{len(self.counts):03d}.tar")
            self._begin()
        self._tar.write(sample)
        self._count += 1

    def close(self) -> None:
        """Write the last one."""
        self._end(f"{self.shard_id}.tar")

    def _end(self, name: str) -> None:
        self._tar.close()
        self.counts[name] = self._count
        if self.there and self.output.info(name) is not None:
            return
        if not self.output.put_if_absent(name, self._sink.getvalue()):
            raise PlanMismatch(
                f"{self.output.url(name)}: another tar is there, of another version or by another "
                "hand: remove it, and run the same command again"
            )
