"""What can go wrong with storage: every error in one of six classes, and the one retry loop.

Every exception of the operating system, botocore, aiohttp and s3fs is sorted here by what the
caller has to do about it; the tables below say why.  The layers below are told not to retry
(s3.py), so that each repetition is counted, logged and bounded in one place: three nested loops
would multiply to minutes for one dead endpoint.  Cost: a request that a layer below could have
repeated at once waits for our back-off instead.

A request is given up after ATTEMPTS, or when RETRY_S have passed since the first one: at the
latest RETRY_S and one time-out (s3.READ_TIMEOUT_S without a byte) after it began.
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

ATTEMPTS = 8  # per request; 16 to 32 s of waiting in all with the two values below
BACKOFF_S = 0.25  # doubles each time; jittered to between half and all of it
BACKOFF_MAX_S = 20.0
RETRY_S = 240.0  # no attempt begins later than this after the first, however slow they fail

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


Kind = type[StorageError]

# The retry classes: error code of an S3 reply -> class, reason.  A code decides before the status.
CODES: dict[str, tuple[Kind, str]] = {
    "BadDigest": (TransientStorage, "the body was damaged on its way"),
    "ConditionalRequestConflict": (TransientStorage, "AWS: two conditional PUTs at once"),
    "IncompleteBody": (TransientStorage, "the body was cut on its way"),
    "InternalError": (TransientStorage, "the server's own fault"),
    "OperationAborted": (TransientStorage, "another operation on the same object or bucket"),
    "RequestTimeout": (TransientStorage, "the body came too slowly; status 400"),
    "ServiceUnavailable": (TransientStorage, "overloaded"),
    "SlowDown": (TransientStorage, "throttled"),
    "Throttling": (TransientStorage, "throttled"),
    "ThrottlingException": (TransientStorage, "throttled"),
    "XAmzContentSHA256Mismatch": (TransientStorage, "the body was damaged on its way"),
    "QuotaExceeded": (NotWritable, "Ceph: the bucket or user is full; status 403"),
    "ExpiredToken": (AccessDenied, "the credentials have expired; status 400"),
    "ExpiredTokenException": (AccessDenied, "the credentials have expired; status 400"),
    "TokenRefreshRequired": (AccessDenied, "the credentials have expired; status 400"),
    "RequestExpired": (AccessDenied, "the credentials have expired"),
    "InvalidToken": (AccessDenied, "the credentials are malformed; status 400"),
    "AuthorizationHeaderMalformed": (AccessDenied, "a wrong region; status 400"),
    "RequestTimeTooSkewed": (AccessDenied, "the clock of this machine is wrong"),
}
# HTTP status -> class, reason, for the codes not above and for HEAD, whose reply has no body.
STATUSES: dict[int, tuple[Kind, str]] = {
    400: (AccessDenied, "HEAD gives no cause; expired credentials are the usual one"),
    401: (AccessDenied, "not signed, or by nobody known"),
    403: (AccessDenied, "not permitted, also for objects that do not exist where listing is not"),
    404: (NotFound, "no such object or bucket"),
    408: (TransientStorage, "the request came too slowly"),
    409: (StorageError, "in conflict with the state of the bucket"),
    412: (AlreadyThere, "If-None-Match or If-Match did not hold"),
    429: (TransientStorage, "throttled"),
    500: (TransientStorage, "the server's own fault"),
    502: (TransientStorage, "a gateway without its server"),
    503: (TransientStorage, "overloaded or throttled"),
    504: (TransientStorage, "a gateway without its server"),
}
# errno -> class, reason.
ERRNOS: dict[int, tuple[Kind, str]] = {
    errno.EAGAIN: (TransientStorage, "no memory or slot just now"),
    errno.EBUSY: (TransientStorage, "in use just now"),
    errno.EHOSTUNREACH: (TransientStorage, "network"),
    errno.EINTR: (TransientStorage, "a signal"),
    errno.EIO: (TransientStorage, "network file systems report a lost server so"),
    errno.ENETDOWN: (TransientStorage, "network"),
    errno.ENETUNREACH: (TransientStorage, "network"),
    errno.ESTALE: (TransientStorage, "NFS: the server was restarted"),
    errno.ENOSPC: (NotWritable, "full"),
    errno.EDQUOT: (NotWritable, "over quota"),
    errno.EROFS: (NotWritable, "read-only"),
    errno.EISDIR: (NotWritable, "a directory is where a file must be"),
}
# Exception type -> class, for those of Python itself; the libraries' are in _library_errors.
TYPES: tuple[tuple[tuple[type[BaseException], ...], Kind], ...] = (
    ((FileExistsError,), AlreadyThere),
    ((FileNotFoundError, NotADirectoryError), NotFound),
    ((PermissionError,), AccessDenied),
    ((TimeoutError, ConnectionError, socket.gaierror), TransientStorage),
)
_RENEW = "renew them, then run the same command again: what is committed is kept"
_WAY_OUT: dict[Kind, str] = {
    StorageError: "see the cause",
    NotFound: "check the spelling, and that the bucket or directory exists",
    AccessDenied: "check the AWS_* environment or role and the bucket policy, or file permissions",
    NotWritable: "free space there or choose another output",
    AlreadyThere: "it was written or replaced by somebody else",
}
_TRY = "check the network and AWS_ENDPOINT_URL, then run the same command again"


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


def _sort(exc: BaseException) -> tuple[Kind, str, str]:
    """Class, reason and name of an exception, by the tables above."""
    code, status = _reply(exc)
    if code or status:
        kind, reason = CODES.get(code) or STATUSES.get(status) or (StorageError, "")
        if status == 400 and code not in ("", "400", *CODES):
            kind, reason = StorageError, ""  # the server says what is wrong with the request
        return kind, reason, type(exc).__name__ if code.isdigit() or not code else code
    name = type(exc).__name__
    for types, kind in TYPES:
        if isinstance(exc, types):
            return kind, "", name
    if isinstance(exc, OSError) and exc.errno in ERRNOS:
        return *ERRNOS[exc.errno], name
    if isinstance(exc, _library_errors()[0]):
        return TransientStorage, "", name
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return AccessDenied, "", name
    return StorageError, "", name


def classify(exc: Exception, url: str) -> StorageError:
    """Sort any exception of a storage call into one class; a StorageError stays what it is."""
    if isinstance(exc, StorageError):
        return exc
    kind, reason, name = _sort(exc)
    cause = " ".join(str(exc).split()) or type(exc).__name__
    why = f" ({reason})" if reason else ""
    way_out = _RENEW if "expired" in reason else _WAY_OUT.get(kind)  # retry() adds the missing one
    return kind(f"{url}: {name}{why}: {cause}" + (f"; {way_out}" if way_out else ""))


class _Count:
    """A number that threads may add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = 0
        self._taken = 0

    def add(self) -> None:
        with self._lock:
            self.total += 1

    def take(self) -> int:
        with self._lock:
            fresh, self._taken = self.total - self._taken, self.total
            return fresh


_RETRIES = _Count()


def retries() -> int:
    """How often this process has repeated a storage request so far."""
    return _RETRIES.total


def take_retries() -> int:
    """The repetitions since the last call: each is counted in the result of one shard, though not
    always in its own when several are in flight, so that the sum over shards is right."""
    return _RETRIES.take()


def _guard(action: Callable[[], T], url: str) -> T:
    """``action()``, with whatever storage raises made a StorageError."""
    try:
        return action()
    except (StorageError, OSError) as exc:
        raise classify(exc, url) from exc
    except _library_errors()[1] as exc:
        raise classify(exc, url) from exc


def retry(action: Callable[[], T], url: str) -> T:
    """Run ``action`` until it succeeds, fails for good, or was tried long and often enough.

    Raises:
        StorageError: of the class that says what to do; never a bare library exception.
    """
    begin, attempt = time.monotonic(), 0
    while True:
        attempt += 1
        try:
            return _guard(action, url)
        except TransientStorage as exc:
            pause_s = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
            passed_s = time.monotonic() - begin
            if attempt >= ATTEMPTS or passed_s + pause_s > RETRY_S:
                raise TransientStorage(
                    f"{exc}; gave up after {attempt} attempts in {passed_s:.0f} s: {_TRY}"
                ) from exc
            log.warning("%s; attempt %d of %d, next in %.2f s", exc, attempt, ATTEMPTS, pause_s)
        _RETRIES.add()
        time.sleep(pause_s)
