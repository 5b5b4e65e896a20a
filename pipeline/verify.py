"""Read an archive back and say what is proved of it.

Every shard of the listing: ledger entry, table bytes against the ledger's sha256, footer against
plan and listing, page checksums, counts, keys, crc32 and size of every row's raw codes, and whether
the source is still the object that was listed.  Then a sample of pictures, spread evenly and always
the same, is decoded and compared with the sources; of a row with a bitstream, that it decodes to
codes with the row's crc32.  Nothing is repaired and every problem is named.

Cost: every table is read once, as many at a time as there are threads, and those of the sample once
more; a source is read up to its last sampled image.  A picture that is not in the sample is proved
to be the payload that was written, not to look like its source: decoding all bitstreams would cost
more than encoding did.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pipeline import commit, images, storage, table
from pipeline.decoder import check_grid, check_table, decode_table, row_codes, stream_codes
from pipeline.encoder import printable
from pipeline.plan import Plan, ShardResult, ShardSpec, Status, listing_digest
from pipeline.replica import Replica
from pipeline.shards import ShardReader
from pipeline.storage import NotFound, StorageError, Store, TransientStorage
from pipeline.table import BadTable, Row
from pqmim.metrics import psnr

MAX_SHARD_PROBLEMS = 20  # kept of one shard
SHOWN = 50  # problems in the text; verify.json has all that are kept
COUNTS = {
    "shards": "shards with a ledger entry that says done",
    "tables": "tables with the size and sha256 of the ledger, of this plan and listing",
    "rows": "rows read, page checksums right",
    "images": "images with the payload that the plan stores and the grid of their size",
    "codes": "images whose raw codes have their crc32 and the size of their grid",
    "bitstreams": "images whose bitstream was decoded, to codes that have their crc32",
    "sources": "sources that are the object that was listed (size and ETag)",
    "compared": "images decoded and compared with their source",
}


@dataclass
class Verdict:
    """What was found of one shard, or of the whole archive."""

    proved: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    not_proved: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)  # dB, of the compared images

    def add(self, other: Verdict) -> None:
        """Add what was found elsewhere."""
        for name, count in other.proved.items():
            self.proved[name] += count
        more = len(other.problems) - MAX_SHARD_PROBLEMS
        self.problems += other.problems[:MAX_SHARD_PROBLEMS]
        if more > 0:
            self.problems.append(f"{other.problems[0].split(':')[0]}: and {more} more problems")
        self.not_proved += other.not_proved
        self.psnr += other.psnr

    @property
    def complete(self) -> bool:
        """Every shard is done and every check passed."""
        return not self.problems

    def record(self, expected: int) -> dict[str, object]:
        """``verify.json``."""
        psnr = {"mean": float(np.mean(self.psnr)), "min": min(self.psnr)} if self.psnr else None
        return {
            "complete": self.complete, "shards_listed": expected, "proved": self.proved,
            "psnr_db": psnr, "not_proved": self.not_proved, "problems": self.problems,
        }  # fmt: skip

    def text(self, expected: int) -> str:
        """The record for a person."""
        lines = [f"{'complete' if self.complete else 'NOT complete'}: {expected} shards listed"]
        lines += [f"{self.proved[name]:>12,}  {what}" for name, what in COUNTS.items()]
        if self.psnr:
            mean, low = float(np.mean(self.psnr)), min(self.psnr)
            lines.append(f"PSNR against the source: mean {mean:.2f} dB, lowest {low:.2f} dB")
        lines += [f"not proved: {what}" for what in self.not_proved]
        lines += [f"problem: {what}" for what in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"and {len(self.problems) - SHOWN} more problems, in verify.json")
        return "\n".join(lines)


def verify_tables(
    store: Store, plan: Plan, specs: Sequence[ShardSpec], sources: bool, threads: int
) -> tuple[Verdict, list[int]]:
    """Check every shard without a model; also gives the number of good images of each shard."""
    verdict, good = Verdict(), list[int]()
    if listing_digest(list(specs)) != plan.inputs_digest or len(specs) != plan.inputs:
        verdict.problems.append("inputs.parquet: is not the listing that plan.json was made for")
    given_up = commit.quarantined(store)
    with ThreadPoolExecutor(threads) as pool:
        for one in pool.map(lambda spec: _check_shard(store, plan, spec, sources, given_up), specs):
            verdict.add(one)
            good.append(one.proved["images"] if not one.problems else 0)
    verdict.problems += _foreign(store, {spec.shard_id for spec in specs})
    if not sources:
        verdict.not_proved.append("the sources were not looked at")
    if plan.stores_bitstream:
        verdict.not_proved.append(
            "bitstreams outside the sample were not decoded: page checksums and the ledger's "
            "sha256 prove that they are the bytes that were written, nothing more"
        )
    return verdict, good


def _check_shard(
    store: Store,
    plan: Plan,
    spec: ShardSpec,
    sources: bool,
    given_up: dict[str, commit.Quarantined],
) -> Verdict:
    found = Verdict()
    say = _Sayer(found, spec.shard_id)
    entry = _ledger_entry(store, spec, say, given_up)
    if entry is not None:
        _check_entry(entry, spec, say)
        found.proved["shards"] = int(not found.problems)
        _check_table(store, plan, spec, entry, say)
    if sources:
        try:
            storage.open_read(spec.url, storage.ObjectInfo(spec.url, spec.size, spec.etag)).close()
            found.proved["sources"] = 1
        except TransientStorage:
            raise
        except StorageError as error:
            say(f"source: {error}")
    return found


@dataclass(frozen=True)
class _Sayer:
    """Notes problems of one shard under its name."""

    verdict: Verdict
    shard_id: str

    def __call__(self, message: str) -> None:
        self.verdict.problems.append(f"{self.shard_id}: {' '.join(message.split())}")


def _ledger_entry(
    store: Store, spec: ShardSpec, say: _Sayer, given_up: dict[str, commit.Quarantined]
) -> ShardResult | None:
    try:
        return ShardResult.from_json(store.get(commit.ledger_name(spec.shard_id)))
    except NotFound:
        record = given_up.get(spec.shard_id)
        if record is not None:
            say(f"quarantined after {record.attempts} attempts: {record.reason}")
        elif store.info(commit.table_name(spec.shard_id)) is not None:
            say("a table without ledger entry: run the same jobs.encode command again")
        else:
            say("not encoded yet: run the same jobs.encode command again")
    except (ValueError, TypeError, KeyError) as error:
        say(f"damaged ledger entry {commit.ledger_name(spec.shard_id)}: {error}")
    return None


def _check_entry(entry: ShardResult, spec: ShardSpec, say: _Sayer) -> None:
    there = ShardSpec(entry.shard_id, entry.url, entry.source_size, entry.source_etag)
    if there != spec:
        say(f"the ledger entry is of {there}, the listing has {spec}")
    if entry.outcome != "done":
        say(f"{entry.outcome}: {'; '.join(entry.damage) or 'no reason given'}")


def _check_table(
    store: Store, plan: Plan, spec: ShardSpec, entry: ShardResult, say: _Sayer
) -> None:
    """The table's bytes against the ledger, its footer against plan and listing, then its rows."""
    proved, before = say.verdict.proved, len(say.verdict.problems)
    try:
        data = store.get(commit.table_name(spec.shard_id))
        footer = table.read_footer(data)
    except NotFound:
        return say("the ledger has it, but the table is gone")
    except BadTable as error:
        return say(f"table: {error}")
    if len(data) != entry.table_bytes:
        say(f"the table has {len(data)} bytes, the ledger says {entry.table_bytes}")
    elif hashlib.sha256(data).hexdigest() != entry.table_sha256:
        say("the table's sha256 is not the ledger's: the object was changed after the commit")
    expected = {
        "plan_digest": plan.digest, "model": plan.model, "shard_id": spec.shard_id,
        "source_url": spec.url, "source_size": str(spec.size), "source_etag": spec.etag,
        "rows": json.dumps(entry.rows, sort_keys=True),
    }  # fmt: skip
    for name, value in expected.items():
        if footer.get(name) != value:
            say(f"the table's footer has {name} {footer.get(name)!r}, expected {value!r}")
    proved["tables"] = int(len(say.verdict.problems) == before)
    try:
        if footer.get("plan_digest") == plan.digest:
            check_table(footer, plan)
        _check_rows(data, plan, entry, say)
    except BadTable as error:
        say(f"table: {error}")


def _check_rows(data: bytes, plan: Plan, entry: ShardResult, say: _Sayer) -> None:
    """Every row by itself, and their totals against the ledger."""
    proved, keys = say.verdict.proved, set[str]()
    counts: dict[str, int] = {}
    pixels = code_bytes = 0
    for row in table.read_rows(data):
        proved["rows"] += 1
        counts[row.status.value] = counts.get(row.status.value, 0) + 1
        code_bytes += row.payload_bytes
        if (row.key in keys) != (row.status is Status.DUPLICATE_KEY):
            say(f"key {row.key!r}: status {row.status.value}, {_times(row.key in keys)}")
        keys.add(row.key)
        if row.status is not Status.OK:
            if row.codes is not None or row.bitstream is not None:
                say(f"key {row.key!r}: status {row.status.value}, but it has codes")
            continue
        try:
            _check_payload(row, plan)
        except BadTable as error:
            say(str(error))
            continue
        proved["images"] += 1
        proved["codes"] += plan.stores_codes
        width, height = images.encoded_size(row.width, row.height, plan)
        pixels += width * height
    for name, here, there in (
        ("rows by status", counts, entry.rows),
        ("encoded pixels", pixels, entry.pixels),
        ("bytes of payload", code_bytes, entry.code_bytes),
    ):
        if here != there:
            say(f"{name}: the table has {here}, the ledger says {there}")


def _check_payload(row: Row, plan: Plan) -> None:
    """An ok row has the columns that the plan stores; without the model, a bitstream is opaque.

    Raises:
        BadTable: it has others, or its raw codes or its grid are wrong.
    """
    for name, there, wanted in (
        ("codes", row.codes is not None, plan.stores_codes),
        ("bitstream", row.bitstream is not None, plan.stores_bitstream),
    ):
        if there != wanted:
            has = f"a {name} column" if there else f"no {name}"
            raise BadTable(f"key {row.key!r}: the row has {has}, the plan says {plan.store!r}")
    if row.crc32 is None:
        raise BadTable(f"key {row.key!r}: status {row.status.value}, but it has no crc32")
    if plan.stores_codes:
        row_codes(row, plan)
    else:
        check_grid(row, plan)


def _times(again: bool) -> str:
    return "but the key occurs before" if again else "but the key does not occur before"


def _foreign(store: Store, shard_ids: set[str]) -> Iterator[str]:
    """Objects among the tables and ledger entries that belong to no shard of the listing."""
    for prefix, name_of in (("codes/", commit.table_name), ("ledger/", commit.ledger_name)):
        own = {name_of(shard_id) for shard_id in shard_ids}
        for name in store.names(prefix):
            if name not in own:
                yield f"{name}: belongs to no shard of the listing"


# Pictures against their sources -------------------------------------------------------------------


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
) -> Verdict:  # fmt: skip
    """Decode the chosen images and compare each with its source, preprocessed as for encoding.

    Without sources only the bitstreams are decoded, and held against their crc32.
    """
    found = Verdict()
    for shard, places in chosen.items():
        one = Verdict()
        try:
            data = store.get(commit.table_name(specs[shard].shard_id))
            keys = _keys(data, set(places))
            if plan.store == "both" or not sources:  # else decoded for the comparison
                one.proved["bitstreams"] = _decode_streams(data, plan, keys, replica)
            if sources:
                _compare_shard(data, plan, specs[shard], keys, replica, min_psnr, one)
        except TransientStorage:
            raise
        except (BadTable, StorageError) as error:
            one.problems.append(f"{specs[shard].shard_id}: {error}")
        found.add(one)
    return found


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
    say = _Sayer(found, spec.shard_id)
    sources = _sources(spec, plan, set(keys))
    for row, pixels in decode_table(data, plan, replica, lambda row: row.key in keys):
        found.proved["bitstreams"] += not plan.stores_codes
        member = sources.pop(row.key, None)
        if member is None:
            say(f"key {row.key!r}: the source has no image of that key")
            continue
        _compare(row, pixels, member, plan, min_psnr, say)


def _compare(
    row: Row, pixels: np.ndarray, member: bytes, plan: Plan, min_psnr: float, say: _Sayer
) -> None:
    try:
        picture = images.decode(member, plan)
    except images.BadImage as error:
        return say(f"key {row.key!r}: status ok, but the source does not decode: {error}")
    if (picture.width, picture.height) != (row.width, row.height):
        return say(
            f"key {row.key!r}: the row says {row.width} x {row.height}, the source is "
            f"{picture.width} x {picture.height}"
        )
    value = psnr(pixels, picture.pixels)
    say.verdict.proved["compared"] += 1
    say.verdict.psnr.append(value)
    if value < min_psnr:
        say(f"key {row.key!r}: PSNR {value:.2f} dB against its source, below {min_psnr:g} dB")


def _sources(spec: ShardSpec, plan: Plan, keys: set[str]) -> dict[str, bytes]:
    """The image files of some keys, from the first sample of each; reads no further than needed."""
    found: dict[str, bytes] = {}
    left = set(keys)
    with storage.open_read(spec.url, storage.ObjectInfo(spec.url, spec.size, spec.etag)) as stream:
        for sample in ShardReader(stream, spec.size, wanted=set(plan.image_keys).__contains__):
            key = printable(sample.key)
            if key not in left:
                continue
            left.remove(key)
            extension = next((e for e in plan.image_keys if e in sample.members), None)
            if extension is not None:
                found[key] = sample.members[extension]
            if not left:
                break
    return found
