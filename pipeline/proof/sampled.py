"""A few pictures of a whole archive against their sources, spread evenly and always the same.

For a quick look, or where the sources are too many to read: a table of the sample is read once
more, and a source up to its last sampled image.  Of a row with a bitstream it is shown that it
decodes to codes with the row's crc32.  proofs.py does this for every image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.archive import layout, table
from pipeline.archive.table import BadTable, Row
from pipeline.plan import Plan, ShardSpec, Status
from pipeline.proof.tables import Sayer
from pipeline.proof.verdict import Verdict
from pipeline.store import storage
from pipeline.store.storage import AccessDenied, StorageError, Store, TransientStorage
from pipeline.tars.samples import ShardReader
from pipeline.work import images
from pipeline.work.decoder import check_table, decode_table, stream_codes
from pipeline.work.replica import Replica
from pqmim.metrics import psnr


def spread(good: Sequence[int], count: int) -> dict[int, list[int]]:
    """Which images to look at: shard -> places among its good images, evenly over all of them."""
    total = sum(good)
    count = min(count, total)
    ends = np.cumsum(good)
    chosen: dict[int, list[int]] = {}
    for i in range(count):
        place = (2 * i + 1) * total // (2 * count)
        shard = int(np.searchsorted(ends, place, side="right"))
        chosen.setdefault(shard, []).append(place - int(ends[shard]) + good[shard])
    return chosen


def compare_sample(
    store: Store, plan: Plan, specs: Sequence[ShardSpec], chosen: dict[int, list[int]],
    replica: Replica, min_psnr: float, sources: bool = True,
) -> Iterator[Verdict]:  # fmt: skip
    """Decode the chosen images and compare each with its source, preprocessed as for encoding.

    Without sources only the bitstreams are decoded, and held against their crc32.
    """
    for shard, places in chosen.items():
        found = Verdict()
        try:
            data = store.get(layout.table_name(specs[shard].shard_id))
            keys = _keys(data, set(places))
            if plan.store == "both" or not sources:  # else decoded for the comparison
                found.proved["bitstreams"] = _decode_streams(data, plan, keys, replica)
            if sources:
                _compare_shard(data, plan, specs[shard], keys, replica, min_psnr, found)
        except (TransientStorage, AccessDenied):
            raise
        except (BadTable, StorageError) as error:
            found.problems.append(f"{specs[shard].shard_id}: {error}")
        yield found


def _keys(data: bytes, places: set[int]) -> set[str]:
    """The keys of a table's good images at these places."""
    ok = [row.key for row in table.read_rows(data, ["key", "status"]) if row.status is Status.OK]
    return {ok[place] for place in places}


def _decode_streams(data: bytes, plan: Plan, keys: set[str], replica: Replica) -> int:
    """Decode the bitstreams of some images to their codes; how many there were.

    Raises:
        BadTable: one does not decode to codes with its crc32; raw codes have been held against it.
    """
    if not plan.stores_bitstream:
        return 0
    check_table(table.read_footer(data), plan)
    rows = [r for r in table.read_rows(data) if r.status is Status.OK and r.key in keys]
    for row in rows:
        stream_codes([row], plan, replica)
    return len(rows)


def _compare_shard(
    data: bytes, plan: Plan, spec: ShardSpec, keys: set[str], replica: Replica,
    min_psnr: float, found: Verdict,
) -> None:  # fmt: skip
    say = Sayer(found, spec.shard_id)
    sources = _sources(spec, plan, set(keys))
    for row, pixels in decode_table(data, plan, replica, lambda row: row.key in keys):
        found.proved["bitstreams"] += not plan.stores_codes
        found.proved["pictures"] += 1
        member = sources.pop(row.key, None)
        if member is None:
            say(f"key {row.key!r}: the source has no image of that key")
            continue
        _compare(row, pixels, member, plan, min_psnr, say)


def _compare(
    row: Row, pixels: np.ndarray, member: bytes, plan: Plan, min_psnr: float, say: Sayer
) -> None:
    try:
        picture = images.decode(member, plan.pictures)
    except images.BadImage as error:
        return say(f"key {row.key!r}: status ok, but the source does not decode: {error}")
    if (picture.width, picture.height) != (row.width, row.height):
        return say(
            f"key {row.key!r}: the row says {row.width} x {row.height}, the source is "
            f"{picture.width} x {picture.height}"
        )
    judge(row.key, psnr(pixels, picture.pixels), min_psnr, say)


def judge(key: str, value: float, min_psnr: float, say: Sayer) -> None:
    """Count a comparison; one below the limit is a problem."""
    say.verdict.proved["compared"] += 1
    say.verdict.psnr.see(value)
    if value < min_psnr:
        say(f"key {key!r}: PSNR {value:.2f} dB against its source, below {min_psnr:g} dB")


def _sources(spec: ShardSpec, plan: Plan, keys: set[str]) -> dict[str, bytes]:
    """The image files of some keys, from the first sample of each; reads no further than needed."""
    found: dict[str, bytes] = {}
    left = set(keys)
    with storage.open_read(spec.url, storage.ObjectInfo(spec.url, spec.size, spec.etag)) as stream:
        wanted = set(plan.image_keys).__contains__
        for sample in ShardReader(stream, spec.size, wanted, skip_apple=plan.exact):
            key = table.text(sample.key)
            if key not in left:
                continue
            left.remove(key)
            extension = next((e for e in plan.image_keys if e in sample.members), None)
            if extension is not None:
                found[key] = sample.members[extension]
            if not left:
                break
    return found
