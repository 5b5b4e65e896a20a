"""An HTTP proxy in front of an S3 server that breaks chosen requests, or a share of all.

A rule is a method, a part of the path and a fault; it is used once.  ``at_random`` breaks a share
of the requests that no rule is for, the same ones for the same seed and order.  Faults:

    500, 503, 403   that status with the error code below, without asking the server
    SlowDown        503 with that code: throttling
    ExpiredToken    400 with that code, as AWS answers expired credentials
    reset           closes the connection without asking the server
    lost            lets the server do it, then closes the connection without a reply
    cut             half of the body, then closes the connection: of the request if it has one, and
                    then the server is not asked, else of the reply
    slow            answers after ``slow_s``, later than the client waits; the server did it

``expires_at`` is the number of requests from which on each fails so.  ``create_only`` is what
becomes of ``If-None-Match: *``: ``pass`` it on, ``ignore`` it as some servers do, or ``check``
first and write then, which is not atomic.
"""

from __future__ import annotations

import http.client
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_PRECONDITION = b"<Error><Code>PreconditionFailed</Code><Message>no</Message></Error>"
REPLIES = {
    "403": (403, "AccessDenied"),
    "500": (500, "InternalError"),
    "503": (503, "ServiceUnavailable"),
    "SlowDown": (503, "SlowDown"),
    "ExpiredToken": (400, "ExpiredToken"),
}
TRANSIENT = ("500", "503", "SlowDown", "reset", "lost", "cut", "slow")


class FaultyS3(ThreadingHTTPServer):
    """The proxy; ``log`` is every request as (method, path)."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.create_only = "pass"
        self.rules: list[tuple[str, str, str]] = []
        self.log: list[tuple[str, str]] = []
        self.injected: Counter[str] = Counter()
        self.expires_at = math.inf
        self.slow_s = 0.0
        self._share, self._chance, self._faults = 0.0, random.Random(), TRANSIENT
        self._lock = threading.Lock()

    def at_random(self, share: float, seed: int, faults: Sequence[str] = TRANSIENT) -> None:
        """Break this share of the requests from now on."""
        with self._lock:
            self._share, self._chance, self._faults = share, random.Random(seed), tuple(faults)

    def fault(self, method: str, path: str) -> str:
        """The fault for this request, if there is one."""
        with self._lock:
            self.log.append((method, path))
            expired = len(self.log) > self.expires_at
            found = "ExpiredToken" if expired else self._choose(method, path)
            if found:
                self.injected[found] += 1
            return found

    def _choose(self, method: str, path: str) -> str:
        for rule in self.rules:
            if rule[0] == method and rule[1] in path:
                self.rules.remove(rule)
                return rule[2]
        if self._chance.random() < self._share:
            return self._chance.choice(self._faults)
        return ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyS3

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        fault = self.server.fault(self.command, self.path)
        half = fault == "cut" and length > 0
        body = self.rfile.read(length // 2 if half else length)
        if fault in REPLIES:
            status, code = REPLIES[fault]
            message = f"<Error><Code>{code}</Code><Message>injected</Message></Error>"
            self._reply(status, {}, message.encode())
        elif fault == "reset" or half:
            self.close_connection = True
        else:
            self._answer(fault, *self._forward(body))

    def _answer(self, fault: str, status: int, headers: dict[str, str], data: bytes) -> None:
        """What the server said, or what is left of it."""
        if fault == "slow":
            time.sleep(self.server.slow_s)
        if fault in ("lost", "slow"):
            self.close_connection = True
        else:
            self._reply(status, headers, data, cut=fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = dict(self.headers.items())
        headers.pop("Expect", None)
        policy = self.server.create_only
        conditional = policy != "pass" and headers.pop("If-None-Match", "")
        if conditional and policy == "check":
            head = {k: v for k, v in headers.items() if k.lower() != "content-length"}
            if self._ask("HEAD", head, b"")[0] == 200:
                return 412, {}, _PRECONDITION
            time.sleep(0.02)
        return self._ask(self.command, headers, body)

    def _ask(
        self, method: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=30)
        try:
            connection.request(method, self.path, body or None, headers)
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()

    def _reply(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        head = self.command == "HEAD"
        length = headers.get("Content-Length", "0") if head else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if not head:
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def faulty_s3(upstream: str) -> Iterator[FaultyS3]:
    """Run the proxy while the block lasts."""
    server = FaultyS3(upstream)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
