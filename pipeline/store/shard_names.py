"""The object names of shards: one for each URL, and none for two.

An archive keeps the names that it was begun with (``inputs.parquet``): those of before had 32 bits
of hash, of which 100,000 shards called data.tar share some with 69 %.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable

from pipeline.store.errors import StorageError
from pipeline.store.listing import stem

HEX_DIGITS = 16  # of the hash: 64 bits, two of a million shards are alike with 3e-8


def shard_id(url: str) -> str:
    """A readable object name: slug of the URL's last part, and a hash of the whole."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", stem(posixpath.basename(url.rstrip("/"))))
    digest = hashlib.sha256(url.encode()).hexdigest()[:HEX_DIGITS]
    return f"{slug.strip('-.')[:80] or 'shard'}-{digest}"


def check_unique(named: Iterable[tuple[str, str]]) -> None:
    """Refuse a listing, as (id, URL), in which two shards would be one.

    Raises:
        StorageError: names the two.
    """
    seen: dict[str, str] = {}
    for name, url in named:
        if name in seen:
            raise StorageError(
                f"{seen[name]} and {url} would both be called {name} in the archive: encode one of "
                "them into another archive, or give its file another name"
            )
        seen[name] = url
