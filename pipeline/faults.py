"""What can go wrong with storage, and the one retry loop.

Every exception of the operating system, botocore, aiohttp and s3fs is sorted here into a few
classes by what the caller has to do about it.  The layers below are told not to retry (storage.py),
so that each repetition is counted, logged and bounded in one place: three nested loops would
multiply to minutes for one dead endpoint.  Cost: a request that a layer below could have repeated
at once waits for our back-off instead.
"""

from __future__ import annotations

import errno
import functools
import http.client
import logging
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

ATTEMPTS = 8  # per request; about 30 s in all with the two values below
BACKOFF_S = 0.25  # doubles each time
BACKOFF_MAX_S = 20.0

T = TypeVar("T")


class StorageError(Exception):
    """A storage operation failed for good; the message names object, cause and way out."""


class NotFound(StorageError):
    """No such object, file or bucket."""


class AccessDenied(StorageError):
    """Credentials or permissions are missing or wrong."""


class TransientStorage(StorageError):
    """Throttling, time-out, reset, 5xx, short body: worth another try."""


class NotWritable(StorageError):
    """The output cannot take data: read-only, full, or something else is in its place."""


class AlreadyThere(StorageError):
    """A precondition failed: create-only on an existing object, or If-Match on a replaced one."""


_WAY_OUT = {
    StorageError: "see the cause",
    NotFound: "check the spelling, and that the bucket or directory exists",
    AccessDenied: "check the AWS_* environment or role and the bucket policy, or file permissions",
    NotWritable: "free space there or choose another output",
    AlreadyThere: "it was written or replaced by somebody else",
}
_TRY = "check the network and AWS_ENDPOINT_URL, then run the same command again"
_TRANSIENT_CODES = {
    "BadDigest",
    "ConditionalRequestConflict",  # AWS: two conditional PUTs at once; the answer is to try again
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentSHA256Mismatch",
}
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
_DENIED_CODES = {"ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed"}  # status 400
_TRANSIENT_ERRNO = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ESTALE,  # NFS
}
_NOT_WRITABLE_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EISDIR}


@functools.cache
def _library_errors() -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """(transient, all) exception types that are no OSError.  Late: a local run imports no S3."""
    import aiohttp
    from botocore import exceptions, parsers

    transient: tuple[type[Exception], ...] = (
        aiohttp.ClientError,
        exceptions.ConnectionError,
        exceptions.FlexibleChecksumError,
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        http.client.IncompleteRead,
        parsers.ResponseParserError,  # a throttled reply that is no XML, s3fs issue 484
    )
    return transient, (*transient, exceptions.BotoCoreError, exceptions.ClientError)


def _reply(exc: BaseException) -> tuple[str, int]:
    """Error code and HTTP status that the server gave, if any of the causes carries them.

    s3fs reports a lost conditional PUT as FileExistsError or as OSError(EINVAL), depending on the
    server; the reply is what they have in common.
    """
    cause: BaseException | None = exc
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response.get("Error", {}).get("Code", "")), int(status)
        cause = cause.__cause__
    return "", 0


def _class_of_reply(code: str, status: int) -> type[StorageError]:
    """The class for an answer of an S3 server."""
    if code in _TRANSIENT_CODES or status in _TRANSIENT_STATUS:
        return TransientStorage
    if code == "QuotaExceeded":  # Ceph; status 403
        return NotWritable
    if code in _DENIED_CODES:
        return AccessDenied
    by_status = {401: AccessDenied, 403: AccessDenied, 404: NotFound, 412: AlreadyThere}
    return by_status.get(status, StorageError)


def _class_of_type(exc: BaseException) -> type[StorageError]:
    """The class for an exception without an answer."""
    table: tuple[tuple[tuple[type[BaseException], ...], type[StorageError]], ...] = (
        ((FileExistsError,), AlreadyThere),
        ((FileNotFoundError, NotADirectoryError), NotFound),
        ((PermissionError,), AccessDenied),
        ((TimeoutError, ConnectionError, socket.gaierror), TransientStorage),
    )
    for types, kind in table:
        if isinstance(exc, types):
            return kind
    if isinstance(exc, OSError) and exc.errno in _TRANSIENT_ERRNO:
        return TransientStorage
    if isinstance(exc, OSError) and exc.errno in _NOT_WRITABLE_ERRNO:
        return NotWritable
    if isinstance(exc, _library_errors()[0]):
        return TransientStorage
    if type(exc).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return AccessDenied
    return StorageError


def classify(exc: Exception, url: str) -> StorageError:
    """Sort any exception of a storage call into one class; a StorageError stays what it is."""
    if isinstance(exc, StorageError):
        return exc
    code, status = _reply(exc)
    kind = _class_of_reply(code, status) if code or status else _class_of_type(exc)
    cause = " ".join(str(exc).split()) or type(exc).__name__
    label = code if code and not code.isdigit() else type(exc).__name__
    way_out = f"; {_WAY_OUT[kind]}" if kind in _WAY_OUT else ""  # retry() adds the missing one
    return kind(f"{url}: {label}: {cause}{way_out}")


class _Count:
    """A number that threads may add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value = 0

    def add(self) -> None:
        with self._lock:
            self._value += 1

    def value(self) -> int:
        return self._value


_RETRIES = _Count()


def retries() -> int:
    """How often this process has repeated a storage request so far."""
    return _RETRIES.value()


def _guard(action: Callable[[], T], url: str) -> T:
    """``action()``, with whatever storage raises made a StorageError."""
    try:
        return action()
    except (StorageError, OSError) as exc:
        raise classify(exc, url) from exc
    except _library_errors()[1] as exc:
        raise classify(exc, url) from exc


def retry(action: Callable[[], T], url: str) -> T:
    """Run ``action`` until it succeeds, fails for good, or has failed ATTEMPTS times.

    Raises:
        StorageError: of the class that says what to do; never a bare library exception.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            return _guard(action, url)
        except TransientStorage as exc:
            if attempt >= ATTEMPTS:
                raise TransientStorage(f"{exc}; gave up after {attempt} attempts: {_TRY}") from exc
            pause_s = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
            log.warning("%s; attempt %d of %d, next in %.2f s", exc, attempt, ATTEMPTS, pause_s)
        _RETRIES.add()
        time.sleep(pause_s)
