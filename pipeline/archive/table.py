"""The code table: one Parquet file a shard, one row a sample, in tar order.

    key string | status string | error string? | width height int32 | grid_w grid_h int16
    codes binary? [h, w, M] row-major | bitstream binary? | crc32 int64? of the raw codes
    psnr float32? | source_sha256 binary? | dropped list<string>? | kept columns

``binary`` rather than lists, which read about 20 times slower.  Payload columns are uncompressed
(they are dense already) and have no dictionary or statistics; text is zstd.  Page checksums are on:
without them a flipped bit in a page goes unnoticed.  The same rows give the same bytes.

``dropped`` names what the source had and the codes do not hold (pqmim/pictures); tables of format
version 1 have no such column.  The ``error`` of an ok row is a note.

``--store`` decides which of codes and bitstream an ok row has: one of them, or both.  The bitstream
is the bare output of the range coder: size and grid are in the row, the model, the stage plan and
the coder in the footer.

The footer says what the table is (``pqmim.*`` keys): format, plan, codec, coder, source object and
row counts, and the deterministic part of the ledger entry, from which a lost ledger is rebuilt.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.plan import Facts, Plan, ShardResult, ShardSpec, Status

ROW_GROUP = 1024  # rows
MAX_GRID = (1 << 15) - 1  # positions along a side, of int16
MAX_ERROR = 200  # characters
PREFIX = "pqmim."
STRINGS = ("key", "status", "error")
IMAGE_NOTE = "image: "  # how a note on an image begins; others are on kept columns
# What a flipped byte raises: found by flipping every byte of a table (bad UTF-8 is a ValueError).
REFUSED = (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError)
UNREADABLE = (pa.ArrowException, OSError, ValueError)


class BadTable(Exception):
    """A code table that cannot be read or is not what its name says."""


@dataclass(frozen=True)
class Row:
    """One sample."""

    key: str
    status: Status
    error: str | None = None  # first MAX_ERROR characters
    width: int = 0  # of the source, upright; 0 when unknown
    height: int = 0
    grid_w: int = 0
    grid_h: int = 0
    codes: bytes | None = None
    bitstream: bytes | None = None
    crc32: int | None = None
    psnr: float | None = None
    source_sha256: bytes | None = None
    kept: dict[str, object] = field(default_factory=dict)
    dropped: tuple[str, ...] | None = None  # None: nothing, or not recorded

    @property
    def noted(self) -> bool:
        """Whether some pixels of the image may be wrong."""
        return self.status is Status.OK and (self.error or "").startswith(IMAGE_NOTE)

    @property
    def payload_bytes(self) -> int:
        """Size of what stands for the image: the bitstream if it is there, else the codes."""
        return len(self.codes or b"" if self.bitstream is None else self.bitstream)


def schema(plan: Plan) -> pa.Schema:
    """Columns of the plan's tables."""
    columns = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("grid_w", pa.int16(), nullable=False),
        pa.field("grid_h", pa.int16(), nullable=False),
        pa.field("codes", pa.binary()),
        pa.field("bitstream", pa.binary()),
        pa.field("crc32", pa.int64()),
        pa.field("psnr", pa.float32()),
        pa.field("source_sha256", pa.binary()),
    ]
    if plan.has_dropped:
        columns.append(pa.field("dropped", pa.list_(pa.string())))
    columns += [pa.field(k.name, pa.type_for_alias(k.type)) for k in plan.kept]
    return pa.schema(columns)


@functools.cache
def _versions() -> str:
    """Libraries that decide codes or file bytes."""
    return json.dumps({name: version(name) for name in ("torch", "pyarrow")}, sort_keys=True)


def fit(rows: Sequence[Row], plan: Plan) -> list[Row]:
    """The rows as a table can hold them, one for one: what cannot be text is escaped, and of a row
    that Arrow refuses go its kept columns, or all but its key, with the reason."""
    fitting = [_encodable(row) for row in rows]
    try:
        _to_arrow(fitting, plan)
    except REFUSED as error:
        if len(fitting) > 1:
            half = len(fitting) // 2
            return fit(fitting[:half], plan) + fit(fitting[half:], plan)
        return [_without_what_is_refused(fitting[0], plan, error)]
    return fitting


def _without_what_is_refused(row: Row, plan: Plan, error: Exception) -> Row:
    why = text(f"a table cannot hold it: {' '.join(str(error).split())}")
    plain = replace(row, kept={}, error=text(f"kept columns: {why}")[:MAX_ERROR])
    try:
        _to_arrow([plain], plan)
        return plain
    except REFUSED:
        return Row(row.key, Status.DECODE_ERROR, why[:MAX_ERROR])


def _encodable(row: Row) -> Row:
    kept = {k: text(v) if isinstance(v, str) else v for k, v in row.kept.items()}
    dropped = None if row.dropped is None else tuple(map(text, row.dropped))
    error = None if row.error is None else text(row.error)
    return replace(row, key=text(row.key), error=error, kept=kept, dropped=dropped)


def text(value: str) -> str:
    """As UTF-8 can have it: half a surrogate pair, or a byte that was none, becomes ``\\udcXX``."""
    return value.encode("utf-8", "backslashreplace").decode()


def _to_arrow(rows: Sequence[Row], plan: Plan) -> pa.Table:
    columns = schema(plan)
    kept = {column.name for column in plan.kept}
    data: dict[str, list[object]] = {
        name: [row.kept.get(name) if name in kept else getattr(row, name) for row in rows]
        for name in columns.names
    }
    data["status"] = [row.status.value for row in rows]
    return pa.table(data, schema=columns)


def write_table(rows: Sequence[Row], plan: Plan, spec: ShardSpec, result: ShardResult) -> bytes:
    """The Parquet file of a shard; of ``result`` only what two runs share enters the footer.

    Raises:
        pyarrow.ArrowException: rows that :func:`fit` has not seen.
    """
    footer = {
        "format_version": str(plan.format_version),
        "plan_digest": plan.digest,
        "model": plan.model,
        "subcodes": str(plan.quality),
        "codewords": str(plan.codewords),
        "stride": str(plan.stride),
        "preprocessing": json.dumps({"resize": plan.resize, "crop": plan.crop}, sort_keys=True),
        "shard_id": spec.shard_id,
        "source_url": spec.url,
        "source_size": str(spec.size),
        "source_etag": spec.etag,
        "rows": json.dumps(result.rows, sort_keys=True),
        "result": json.dumps(_facts(result), sort_keys=True),
        "versions": _versions(),
    }  # fmt: skip
    if plan.stores_bitstream:
        coder = {"stages": plan.stages, "constriction": version("constriction")}
        footer["coder"] = json.dumps(coder, sort_keys=True)
    return to_parquet(_to_arrow(rows, plan), footer)


def _facts(result: ShardResult) -> dict[str, object]:
    """What two runs share of a ledger entry."""
    facts: dict[str, object] = {
        "outcome": result.outcome, "rows": result.rows, "pixels": result.pixels,
        "code_bytes": result.code_bytes, "damage": result.damage,
    }  # fmt: skip
    later = {"dropped": result.dropped, "skipped": result.skipped, "filled": result.filled}
    return facts | {name: value for name, value in later.items() if value}


def to_parquet(table: pa.Table, footer: dict[str, str]) -> bytes:
    """The file of a code table, and of several of them joined."""
    names = table.schema.names
    strings = {*STRINGS, *(n for n in names if table.schema.field(n).type == pa.string())}
    table = table.replace_schema_metadata({PREFIX + k: v for k, v in footer.items()})
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink, table.schema, version="2.6", use_dictionary=["status"],
        compression={
            "dropped.list.element": "zstd", **{n: "zstd" if n in strings else "none" for n in names}
        },
        write_statistics=["key", "width", "height"], write_page_index=True,
        write_page_checksum=True,
    ) as writer:  # fmt: skip
        if table.num_rows:  # a row group of no rows is more than load_dataset can read
            writer.write_table(table, row_group_size=ROW_GROUP)
    return sink.getvalue()


def warm_up(plan: Plan) -> None:
    """Write a table of one row: the first one takes a second, for imports."""
    spec = ShardSpec("", "", 0, "")
    write_table([Row("", Status.MISSING_IMAGE)], plan, spec, ShardResult.of(spec, Facts({})))


def read_footer(data: bytes) -> dict[str, str]:
    """The ``pqmim.*`` metadata of a table, without the prefix.

    Raises:
        BadTable: not Parquet, truncated, or not a code table.
    """
    try:
        metadata = pq.read_schema(pa.BufferReader(data)).metadata or {}
        footer = {k.decode(): v.decode() for k, v in metadata.items()}
    except UNREADABLE as error:
        raise BadTable(f"not a readable Parquet file: {error}") from error
    found = {k.removeprefix(PREFIX): v for k, v in footer.items() if k.startswith(PREFIX)}
    if "plan_digest" not in found:
        raise BadTable("a Parquet file, but not a code table: its footer has no pqmim.plan_digest")
    return found


def read_rows(data: bytes, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a table, page checksums verified; columns not asked for keep their defaults.

    Raises:
        BadTable: damaged bytes, at the latest when the damaged row group is reached.
    """
    footer = read_footer(data)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        own = set(Row.__dataclass_fields__)
        if footer.get("format_version") == "1":
            own.remove("dropped")  # a kept column may have that name there
        for group in range(file.num_row_groups):
            for record in file.read_row_group(group, columns=columns).to_pylist():
                fixed = {k: v for k, v in record.items() if k in own}
                fixed["status"] = Status(fixed.get("status", Status.OK))
                fixed.setdefault("key", "")
                if fixed.get("dropped") is not None:
                    fixed["dropped"] = tuple(fixed["dropped"])
                yield Row(**fixed, kept={k: v for k, v in record.items() if k not in own})
    except UNREADABLE as error:
        raise BadTable(f"damaged table: {error}") from error


def write_listing(specs: Sequence[ShardSpec]) -> bytes:
    """``inputs.parquet``: the frozen input listing of an archive."""
    names = ("shard_id", "url", "size", "etag")
    sink = io.BytesIO()
    pq.write_table(pa.table({n: [getattr(s, n) for s in specs] for n in names}), sink)
    return sink.getvalue()


def read_listing(data: bytes) -> list[ShardSpec]:
    """Read :func:`write_listing` output."""
    try:
        return [ShardSpec(**record) for record in pq.read_table(pa.BufferReader(data)).to_pylist()]
    except (*UNREADABLE, TypeError) as error:
        raise BadTable(f"inputs.parquet is damaged: {error}") from error
