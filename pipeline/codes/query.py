"""What is asked of the tables: columns beside the codes, and filters, as callers write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        cls, columns: str | Sequence[str], where: Filter | Sequence[Filter], checksums: bool
    ) -> Query:
        """As callers write it: one name or several, one filter or several, tuples or lists."""
        names = (columns,) if isinstance(columns, str) else tuple(columns)
        filters = list[Filter]()
        for one in [where] if where and isinstance(where[0], str) else where:
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
    for column, operator, _ in query.where:
        if operator not in (*OPERATORS, VALID):
            raise MissingColumn(f"where {column!r} {operator!r}: one of {OPERATORS} or {VALID!r}")
