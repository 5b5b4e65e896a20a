"""Names of what leaves an archive: no two keys share one, and none leaves its folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from urllib.parse import quote

from pipeline.archive import layout, table
from pipeline.archive.table import Row
from pipeline.out import jsons
from pipeline.plan import Plan, ShardSpec
from pipeline.store.storage import Store

MAX_NAME = 200  # characters; file systems take 255 bytes


class NoSuchShard(Exception):
    """A shard that an archive does not have."""


def choose_shards(archive: Store, wanted: Sequence[str]) -> list[ShardSpec]:
    """The shards of the listing, or those of them that were asked for.

    Raises:
        NoSuchShard: names those that are not in it.
    """
    listed = table.read_listing(archive.get(layout.LISTING))
    unknown = sorted(set(wanted) - {spec.shard_id for spec in listed})
    if unknown:
        raise NoSuchShard(
            f"--shard {' '.join(unknown)}: not in this archive; its first is {listed[0].shard_id}"
        )
    return [spec for spec in listed if not wanted or spec.shard_id in wanted]


def file_name(key: str) -> str:
    """A key as a file name: no two keys share one, and none leaves its folder.

    Everything but letters, digits, ``_``, ``-`` and ``~`` becomes %XX; a long name is cut and gets
    a hash behind ``%-``, which no escape looks like.
    """
    name = quote(key, safe="").replace(".", "%2E")
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 40]}%-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def member_key(key: str) -> str:
    """A key as it stands in a tar: untouched, unless extracting it would be unsafe."""
    plain = re.fullmatch(r"[^%\0\\]+", key) and not {"", ".", ".."} & set(key.split("/"))
    return key if plain else file_name(key)


def kept_members(row: Row, plan: Plan) -> dict[str, bytes]:
    """The text members that a row has kept whole, by extension."""
    members = {}
    for column in plan.kept:
        value = row.kept.get(column.name)
        if column.is_text and isinstance(value, str):
            is_json = column.extension.split(".")[-1] == "json"
            members[column.extension] = jsons.member(value) if is_json else value.encode()
    return members
