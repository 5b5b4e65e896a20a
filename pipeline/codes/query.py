"""What is asked of the tables: columns beside the codes, and filters, as callers write them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.archive import table
from pipeline.archive.manifest import Manifest
from pipeline.codes.errors import MissingColumn, NoCodes

GRID = ("status", "grid_w", "grid_h")
OPERATORS = ("=", "==", "!=", "<", "<=", ">", ">=", "in", "not in")  # those of pyarrow's filters
VALID = "is valid"  # ours: the column is not null

Filter = tuple[str, str, object]


@dataclass(frozen=True)
class Query:
    """What is read of a row group."""

    columns: tuple[str, ...]  # besides the key
    where: tuple[Filter, ...]
    codes: bool = True
    checksums: bool = True

    @classmethod
    def of(
        cls,
        columns: str | Sequence[str] | None,
        where: Filter | Sequence[Filter] | None,
        checksums: bool,
    ) -> Query:
        """As callers write it: one name or several, one filter or several, tuples or lists."""
        names = (columns,) if isinstance(columns, str) else tuple(columns or ())
        names = tuple(dict.fromkeys(names))
        filters = list[Filter]()
        alone = not isinstance(where, list | tuple) or (where and isinstance(where[0], str))
        for one in [where] if where and alone else where or ():
            if not (isinstance(one, tuple | list) and len(one) == 3 and isinstance(one[0], str)):
                raise MissingColumn(
                    f"where {one!r}: a filter is (column, operator, value), as in "
                    "where=[('width', '>=', 256), ('json.label', 'in', [3, 7])]"
                )
            filters.append((one[0], str(one[1]), one[2]))
        return cls(names, tuple(filters), checksums=checksums)

    @property
    def names(self) -> list[str]:
        """Columns to read, each once."""
        codes = ("codes",) if self.codes else ()
        filters = (column for column, _, _ in self.where)
        return list(dict.fromkeys(["key", *GRID, *codes, *self.columns, *filters]))


def check_query(manifest: Manifest, query: Query, root: str) -> None:
    """Refuse what these tables cannot give.

    Raises:
        NoCodes, MissingColumn: with the way out.
    """
    if query.codes and not manifest.plan.stores_codes:
        raise NoCodes(
            f"{root}: has bitstreams, no raw codes: run python -m jobs.transcode --archive {root} "
            "--output NEW --store codes, then python -m jobs.finish --archive NEW"
        )
    there = table.schema(manifest.plan).names
    for name in (*query.columns, *(column for column, _, _ in query.where)):
        if name not in there or name in ("codes", "bitstream"):
            kept = ", ".join(column.name for column in manifest.plan.kept) or "none"
            raise MissingColumn(
                f"{root}: no column {name!r} to read beside the codes (kept columns: {kept}): "
                "labels and the like come in with jobs.encode --keep"
            )
    for one in query.where:
        _check_filter(one, table.schema(manifest.plan).field(one[0]).type)


def _check_filter(one: Filter, kind: pa.DataType) -> None:
    """Refuse an operator that there is not, and a value that the column cannot be compared with."""
    column, sign, value = one
    if sign not in (*OPERATORS, VALID):
        raise MissingColumn(f"where {column!r} {sign!r}: one of {OPERATORS} or {VALID!r}")
    if sign == VALID or value is None:
        if not isinstance(value, bool):
            raise MissingColumn(f"where {one!r}: missing values are ({column!r}, {VALID!r}, False)")
        return
    if sign.endswith("in") and (isinstance(value, str | bytes) or not isinstance(value, Iterable)):
        raise MissingColumn(f"where {one!r}: {sign!r} takes a list of values")
    try:
        pa.table({column: pa.array([], kind)}).filter(pq.filters_to_expression([one]))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise MissingColumn(f"where {one!r}: the column is {kind}: {error}") from error


def whole(name: str, value: object, least: int) -> int:
    """A whole number of any type, as a plain one that JSON takes.

    Raises:
        ValueError: it is none, or is below ``least``.
    """
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None
    if found < least:
        raise ValueError(f"{name} {found}: from {least}")
    return found
