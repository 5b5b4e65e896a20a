"""What a job reads: expand inputs into shards, open one of them.

Local paths and ``s3://`` behind the same few calls; storage.py has the archive.  Cost: names that
share a prefix are found by listing it, a page a thousand; single names by a HEAD each.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.store import patterns
from pipeline.store.errors import NotFound, StorageError, retry
from pipeline.store.local import LocalFiles, ObjectInfo
from pipeline.store.reader import Reader
from pipeline.store.s3 import THREADS, S3Objects

LIST_FROM = 9  # named objects from which on a listing is cheaper than a HEAD each
LIST_SLACK = 100  # give a listing up when it is this many times longer than what is looked for


def absolute(url: str) -> str:
    """The one spelling of a URL: ``s3://bucket/key`` or an absolute path, no slash at the end.

    Raises:
        StorageError: another scheme.
    """
    if url.startswith("s3://"):
        return "s3://" + url[5:].rstrip("/")
    path = url.removeprefix("file://")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise StorageError(
            f"{url}: no such storage here: give a local path, file:// or s3:// "
            "(for other clouds set AWS_ENDPOINT_URL to their S3 endpoint)"
        )
    return os.path.abspath(path)


def backend_of(url: str) -> S3Objects | LocalFiles:
    """What serves a URL; holds no state."""
    return S3Objects() if url.startswith("s3://") else LocalFiles()


def expand(inputs: Sequence[str]) -> list[ObjectInfo]:
    """Every shard that the inputs name, sorted by URL, each once.

    An input is a path or URL with braces or glob, a directory or prefix (all ``*.tar`` below it),
    or ``@file``, a list of such inputs, one a line.

    Raises:
        NotFound: an input, or one of the names it stands for, matches nothing.
    """
    origin = {absolute(n): text for text in _entries(inputs) for n in patterns.braces(text)}
    if not origin:
        raise NotFound(f"{' '.join(inputs) or 'the input'}: names no shard: check --input")
    found = _listed([name for name in origin if not patterns.has_magic(name)])
    with ThreadPoolExecutor(THREADS) as pool:
        rest = [name for name in origin if name not in found]
        for infos in pool.map(lambda name: _resolve(name, origin[name]), rest):
            found.update((info.url, info) for info in infos)
    return [found[url] for url in sorted(found)]


def _entries(inputs: Iterable[str]) -> Iterator[str]:
    """The inputs, with ``@file`` replaced by the lines of that file."""
    for text in inputs:
        if not text.startswith("@"):
            yield text
            continue
        url = absolute(text[1:])
        lines = retry(functools.partial(backend_of(url).get, url), url).decode().splitlines()
        yield from (line for line in map(str.strip, lines) if line and line[0] != "#")


def _listed(names: list[str]) -> dict[str, ObjectInfo]:
    """Those of many S3 names that a listing of their common prefix shows.

    The listing is given up when the prefix holds far more than what is looked for.
    """
    found: dict[str, ObjectInfo] = {}
    buckets: dict[str, list[str]] = {}
    for name in names:
        if re.match("s3://[^/]+/", name):
            buckets.setdefault(name.split("/")[2], []).append(name)
    for group in buckets.values():
        if len(group) < LIST_FROM:
            continue
        listing = S3Objects().list(os.path.commonprefix(group))
        wanted = set(group)
        shown = itertools.islice(listing, LIST_SLACK * len(group))
        found.update((info.url, info) for info in shown if info.url in wanted)
    return found


def _resolve(name: str, pattern: str) -> list[ObjectInfo]:
    """The objects that one name without braces stands for; at least one."""
    backend = backend_of(name)
    info = retry(lambda: backend.info(name), name)
    if info is not None:
        return [info]
    if patterns.has_magic(name):
        found = list(backend.glob(name))
        hint = "matches no object"
    else:
        below = list(backend.list(name + "/"))
        found = [info for info in below if info.url.endswith(".tar")]
        hint = "does not exist" if not below else "holds no *.tar"
    if not found:
        raise NotFound(f"{name}: {hint} (input {pattern!r}): check the spelling and the listing")
    return found


def open_read(url: str, info: ObjectInfo | None = None) -> Reader:
    """A sequential reader of an object; with ``info``, of exactly the version that was listed."""
    url = absolute(url)
    return Reader(url, backend_of(url).open, info)
