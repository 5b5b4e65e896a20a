"""The S3 half of storage: one request a call, by way of s3fs.

Any server that AWS_ENDPOINT_URL names.  An object is written in one PUT, whatever its size: the
store has it whole or not at all, and nothing is left of an upload that was broken off.  The reply
carries the ETag, so that no HEAD is needed after it.  Cost: an object is in memory as a whole when
it is written, and must be below 5 GiB, the limit of one PUT.

Every wait is bounded: CONNECT_TIMEOUT_S for a connection, READ_TIMEOUT_S for the next byte of a
reply.  Never use any of this across a fork: s3fs then deadlocks.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline.store import patterns
from pipeline.store.errors import NotFound, StorageError, retry
from pipeline.store.local import ObjectInfo

READ_BLOCK = 5 << 20  # bytes of one ranged GET; smaller ones are bound by latency
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60  # AWS closes an idle connection after 20 s; Ceph recovers a disk within 30 s
THREADS = 32  # concurrent small requests


@functools.lru_cache(maxsize=4)
def _connect(_process: int, read_timeout_s: float, *_environment: str | None) -> Any:
    """One connection pool per process and set of credentials; requests are repeated by us alone."""
    import fsspec  # here, with s3fs: half a second that a job on files need not spend

    connection = fsspec.filesystem(
        "s3",
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": read_timeout_s,
            "max_pool_connections": 2 * THREADS,
            "retries": {"mode": "standard", "total_max_attempts": 1},
        },
    )
    connection.retries = 1
    return connection


def _s3fs() -> Any:
    """The s3fs file system of this process and environment."""
    names = (
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ACCESS_KEY_ID",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
    )
    return _connect(os.getpid(), READ_TIMEOUT_S, *(os.environ.get(name) for name in names))


class S3Objects:
    """One request a call; ``list`` and ``glob`` alone repeat by themselves, page by page."""

    def info(self, url: str) -> ObjectInfo | None:
        bucket, key, _ = _s3fs().split_path(url)
        if not key:
            return None
        try:
            head = _s3fs().call_s3("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return None
        return ObjectInfo(url, head["ContentLength"], _etag(head))

    def get(self, url: str) -> bytes:
        return _s3fs().cat_file(url, max_concurrency=1)  # more would ask for the size first

    def get_range(self, url: str, start: int, length: int) -> bytes:
        return _s3fs().cat_file(url, start=start, end=start + length)

    def create(self, url: str, data: bytes) -> ObjectInfo:
        return self._put(url, data, IfNoneMatch="*")

    def put(self, url: str, data: bytes) -> ObjectInfo:
        return self._put(url, data)

    def _put(self, url: str, data: bytes, **condition: str) -> ObjectInfo:
        # Not in parts: Ceph ignores If-None-Match on multipart completion.
        bucket, key, _ = _s3fs().split_path(url)
        reply = _s3fs().call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        if not reply.get("ETag"):
            raise StorageError(f"{url}: the reply to the PUT has no ETag: this is no S3 server")
        return ObjectInfo(url, len(data), _etag(reply))

    def delete(self, url: str) -> None:
        _s3fs().rm_file(url)

    def open(self, url: str) -> tuple[BinaryIO, ObjectInfo]:
        file = _s3fs().open(url, "rb", block_size=READ_BLOCK, cache_type="readahead")
        details = file.details  # from a HEAD; each GET then carries its ETag in If-Match
        if details["type"] != "file":
            raise FileNotFoundError(url)
        return file, ObjectInfo(url, details["size"], _etag(details))

    def list(self, prefix: str, delimiter: str = "") -> Iterator[ObjectInfo]:
        """Pages of 1,000, each asked for when the one before it is used up."""
        bucket, key, _ = _s3fs().split_path(prefix)
        if "/" not in prefix.removeprefix("s3://"):
            raise NotFound(f"{prefix}: a bucket name without '/' cannot be a prefix")
        request = {"Bucket": bucket, "Prefix": key, "Delimiter": delimiter}
        while True:
            call = functools.partial(_s3fs().call_s3, "list_objects_v2", **request)
            page = retry(call, prefix)
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):  # a console's placeholder for a folder
                    url = f"s3://{bucket}/{entry['Key']}"
                    yield ObjectInfo(url, entry["Size"], _etag(entry))
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def glob(self, pattern: str) -> Iterator[ObjectInfo]:
        prefix = patterns.static_prefix(pattern)
        deep = "/" in pattern[len(prefix) :] or "**" in pattern
        regex = patterns.glob_regex(pattern)
        found = self.list(prefix, delimiter="" if deep else "/")
        return (info for info in found if regex.fullmatch(info.url))


def _etag(reply: Any) -> str:
    return str(reply["ETag"]).strip('"')
