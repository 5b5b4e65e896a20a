"""What a job reads: expand inputs into shards, open one of them.

Local paths and ``s3://`` behind the same few calls; storage.py has the archive.  Cost: names that
share a prefix are found by listing it, a page a thousand; single names by a HEAD each.
"""

from __future__ import annotations

import functools
import itertools
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.store import folders, listing, patterns
from pipeline.store.errors import NotFound, StorageError, retry
from pipeline.store.local import LocalFiles, ObjectInfo
from pipeline.store.reader import Reader
from pipeline.store.s3 import THREADS, S3Objects

LIST_FROM = 9  # named objects from which on a listing is cheaper than a HEAD each
LIST_SLACK = 100  # give a listing up when it is this many times longer than what is looked for


def absolute(url: str) -> str:
    """The one spelling of a URL: ``s3://bucket/key`` or an absolute path, no slash at the end.

    Raises:
        StorageError: another scheme, or nothing that a path can be.
    """
    if not url.strip():
        raise StorageError(f"{url!r}: an empty path: is a variable in the command not set?")
    if why := listing.why_not_text(url):
        raise StorageError(f"{listing.printable(url)}: {why}")
    if url.startswith("s3://"):
        if not url[5:].strip("/"):
            raise StorageError(f"{url}: names no bucket: s3://BUCKET/PREFIX")
        return "s3://" + url[5:].rstrip("/")
    path = url.removeprefix("file://")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise StorageError(
            f"{url}: no such storage here: give a local path, file:// or s3:// "
            "(for other clouds set AWS_ENDPOINT_URL to their S3 endpoint)"
        )
    return os.path.abspath(os.path.expanduser(path))  # a shell leaves the ~ of --output=~/x alone


def backend_of(url: str) -> S3Objects | LocalFiles:
    """What serves a URL; holds no state."""
    return S3Objects() if url.startswith("s3://") else LocalFiles()


def expand(inputs: Sequence[str]) -> list[ObjectInfo]:
    """Every shard that the inputs name, sorted by URL, each file once.

    An input is a path or URL with braces or glob, a directory or prefix (all shards below it, see
    listing.py), or ``@file``, a list of such inputs, one a line.

    Raises:
        NotFound: an input, or one of the names it stands for, matches nothing; shards are missing.
        StorageError: an input is of no use; names it.
    """
    origin = _names(inputs)
    if not origin:
        raise NotFound(f"{' '.join(inputs) or 'the input'}: names no shard: check --input")
    found = listing.Found()
    found.take(_listed([name for name in origin if not patterns.has_magic(name)]))
    with ThreadPoolExecutor(THREADS) as pool:
        rest = [name for name in origin if name not in found.shards]
        for some in pool.map(lambda name: _resolve(name, origin[name]), rest):
            found.add(some)
    found.say()
    return folders.each_file_once(found.shards.values())


def holder(inputs: Sequence[str], output: str) -> str | None:
    """The input that is a folder, or a glob of any depth, around ``output``, if one is."""
    place = absolute(output)
    for name in _names(inputs):
        if patterns.has_magic(name) and "**" not in name:
            continue
        around = posixpath.dirname(patterns.static_prefix(name)) if "**" in name else name
        pairs = [(around, place)]
        if not place.startswith("s3://"):
            pairs.append((os.path.realpath(around), os.path.realpath(place)))
        if any(f"{inner}/".startswith(f"{outer}/") for outer, inner in pairs):
            return name
    return None


def left_out_now(infos: Sequence[ObjectInfo], chosen: Sequence[str]) -> bool:
    """Whether these are all still there, and a listing that has chosen others leaves them out: as
    hidden, or as a link's name for one of the others."""
    urls = [*chosen, *(info.url for info in infos)]
    root = posixpath.dirname(os.path.commonprefix(urls))
    real = {os.path.realpath(url) for url in chosen if not url.startswith("s3://")}
    return all(
        (listing.hidden_part(info.url, root) or os.path.realpath(info.url) in real)
        and retry(lambda i=info: backend_of(i.url).info(i.url), info.url) == info  # type: ignore[misc]
        for info in infos
    )


def _names(inputs: Sequence[str]) -> dict[str, str]:
    """The names that the inputs stand for, and the input that each is of."""
    return {absolute(n): text for text in _entries(inputs) for n in patterns.braces(text)}


def _entries(inputs: Iterable[str]) -> Iterator[str]:
    """The inputs, with ``@file`` replaced by the lines of that file."""
    for text in inputs:
        if not text.startswith("@"):
            yield text
            continue
        url = absolute(text[1:])
        data = retry(functools.partial(backend_of(url).get, url), url)
        yield from listing.lines_of(data, url)


def _listed(names: list[str]) -> list[ObjectInfo]:
    """Those of many S3 names that a listing of their common prefix shows.

    The listing is given up when the prefix holds far more than what is looked for.
    """
    found = list[ObjectInfo]()
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
        found += [info for info in shown if info.url in wanted]
    return found


def _resolve(name: str, pattern: str) -> listing.Found:
    """What one name without braces stands for; something at least."""
    local = not name.startswith("s3://")
    info = folders.named(name) if local else retry(lambda: S3Objects().info(name), name)
    found, hint = listing.Found(), "matches no object"
    if info is not None:
        found.take([info])
        return found
    if patterns.has_magic(name):
        if local:
            found = folders.matching(name)
        else:
            found.take(_shown(S3Objects().glob(name), name))
    elif local:
        exists = os.path.isdir(name)
        found = folders.below(name) if exists else found
        hint = "holds no *.tar" if exists else "does not exist"
    else:
        hint = "does not exist"
        for info in S3Objects().list(name + "/"):
            found.see(info, name)
            hint = "holds no *.tar"
    if not found.shards and not found.missing:
        said = listing.some(sorted(found.alike | found.hidden))
        there = f"; {said} is there, and is not read" if said else ""
        raise NotFound(
            f"{name}: {hint} (input {pattern!r}){there}: check the spelling; shards are "
            f"{listing.KINDS}"
        )
    return found


def _shown(infos: Iterator[ObjectInfo], pattern: str) -> Iterator[ObjectInfo]:
    """Those that are not hidden below the first letters of the pattern, unless it asks for such."""
    root = posixpath.dirname(patterns.static_prefix(pattern))
    dotted = "/." in pattern[len(root) :]
    return (info for info in infos if dotted or not listing.hidden_part(info.url, root))


def open_read(url: str, info: ObjectInfo | None = None) -> Reader:
    """A sequential reader of an object; with ``info``, of exactly the version that was listed."""
    url = absolute(url)
    return Reader(url, backend_of(url).open, info)
