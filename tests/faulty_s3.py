"""A server that stands before an S3 server, passes requests on, and injures some of them as told."""

import contextlib
import http.client
import random
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Injury:
    """What befalls the first request of a method whose path matches, once.

    `kind`: "busy" (a 503), "cut read" (half of the body that S3 gave, then the line is cut), "cut upload"
    (half of the body that was sent is taken, then the line is cut), "silence" (no answer for
    `silence_seconds`), "lost answer" (S3 does it, and nobody hears of it), "lie" (a bulk deletion that
    answers 200 and deletes nothing).
    """

    kind: str
    method: str
    path: str


class FaultyS3:
    """The server, as a context.

    Args:
        upstream: the endpoint that requests are passed on to.
        injuries: each befalls one request.
        busy_share: share of all other requests that are answered with 503 SlowDown.
        seed: of which ones these are.

    `injured` counts what was done to requests, by kind; `requests` counts all that came, `asked` are their
    methods and paths, and `bytes_given` those of the bodies that went back.
    """

    def __init__(
        self,
        upstream: str,
        *,
        injuries: tuple[Injury, ...] = (),
        busy_share: float = 0.0,
        seed: int = 0,
        silence_seconds: float = 3.0,
    ) -> None:
        self.upstream = urlsplit(upstream)
        self.injured: Counter[str] = Counter()
        self.requests = 0
        self.asked: list[tuple[str, str]] = []
        self.bytes_given = 0
        self.silence_seconds = silence_seconds
        self._waiting = list(injuries)
        self._busy_share = busy_share
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        outer = self

        class Handler(_Handler):
            server_of_faults = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultyS3":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def injure(self, *injuries: Injury) -> None:
        with self._lock:
            self._waiting += injuries

    def forget(self) -> None:
        """Let what has not befallen a request yet befall none."""
        with self._lock:
            self._waiting.clear()

    @property
    def outstanding(self) -> list[Injury]:
        """The injuries that have befallen no request yet."""
        return list(self._waiting)

    def gave(self, size_bytes: int) -> None:
        with self._lock:
            self.bytes_given += size_bytes

    def fate_of(self, method: str, path: str) -> str | None:
        with self._lock:
            self.requests += 1
            self.asked.append((method, path))
            fate = None
            for injury in self._waiting:
                if injury.method == method and re.search(injury.path, path):
                    self._waiting.remove(injury)
                    fate = injury.kind
                    break
            else:
                if self._chance.random() < self._busy_share:
                    fate = "slow down"
            if fate:
                self.injured[fate] += 1
            return fate


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_faults: FaultyS3

    def _serve(self) -> None:
        server = self.server_of_faults
        fate = server.fate_of(self.command, self.path)
        length = int(self.headers.get("Content-Length", 0))
        if fate == "cut upload":
            self.rfile.read(length // 2)
            return self._cut()
        body = self.rfile.read(length)
        if fate == "silence":
            time.sleep(server.silence_seconds)
            return self._cut()
        if fate in ("busy", "slow down"):
            code = "ServiceUnavailable" if fate == "busy" else "SlowDown"
            return self._answer(503, {}, f"<Error><Code>{code}</Code><Message>x</Message></Error>".encode())
        if fate == "lie":
            failed = "<Error><Key>x</Key><Code>InternalError</Code><Message>x</Message></Error>"
            return self._answer(200, {}, f"<DeleteResult>{failed}</DeleteResult>".encode())
        upstream = http.client.HTTPConnection(str(server.upstream.hostname), server.upstream.port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "expect")}
        upstream.request(self.command, self.path, body, headers)
        reply = upstream.getresponse()
        data = reply.read()
        upstream.close()
        server.gave(len(data))
        if fate == "lost answer":
            return self._cut()
        return self._answer(reply.status, dict(reply.getheaders()), data, cut=fate == "cut read")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _answer(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        length = headers.pop("Content-Length", str(len(data)))
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._cut()

    def _cut(self) -> None:
        # The client may have hung up first.
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        return
