"""A page on this machine alone, made anew whenever what it shows has changed."""

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, Protocol

from influcoder_ray.errors import UserError

LOOPBACK = "127.0.0.1"
_NAMES = frozenset({LOOPBACK, "localhost"})
_PATHS = frozenset({"/", "/report.html"})
_IDLE_SECONDS = 10.0


class Source(Protocol):
    """What is served: a page, and a key that changes when the page would."""

    def key(self) -> str: ...

    def html(self) -> str: ...


class Renewed:
    """A source's page, made again only when its key has changed; safe to be asked by several threads."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._key: str | None = None
        self._page = b""

    def page(self) -> bytes:
        """The page as UTF-8."""
        with self._lock:
            key = self._source.key()
            if key != self._key:
                # Taken before the page is made: what changes meanwhile makes it anew the next time.
                self._page = self._source.html().encode("utf-8")
                self._key = key
            return self._page


def serve(source: Source, port: int, ready: Callable[[str], object]) -> None:
    """Serve a page on 127.0.0.1 until Ctrl-C.

    Args:
        port: 0 for a free one.
        ready: told the address once it can be opened.

    Raises:
        UserError: the port cannot be had.
    """
    with _server(source, port) as server:
        ready(f"http://{LOOPBACK}:{server.server_address[1]}/")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            # How a person ends it: there is nothing that it leaves undone.
            return


def _server(source: Source, port: int) -> ThreadingHTTPServer:
    renewed = Renewed(source)
    handler = type("_Handler", (_PageHandler,), {"renewed": renewed})
    try:
        return ThreadingHTTPServer((LOOPBACK, port), handler)
    except OSError as error:
        raise UserError(
            f"--port: {port} on {LOOPBACK} cannot be had ({error.strerror}); give another, or 0 for any"
        ) from error


def answers_to(host: str | None) -> bool:
    """Whether a request's Host names this machine: another name that leads here is another site's.

    A page elsewhere could otherwise point a name of its own at 127.0.0.1 and read the report.
    """
    return host is not None and host.rsplit(":", 1)[0].lower() in _NAMES


class _PageHandler(BaseHTTPRequestHandler):
    renewed: ClassVar[Renewed]
    timeout = _IDLE_SECONDS
    server_version = "influcoder-ray"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a page that loads itself again would fill the terminal."""

    def _answer(self, *, with_body: bool) -> None:
        if not answers_to(self.headers.get("Host")):
            self._send(
                HTTPStatus.MISDIRECTED_REQUEST, b"not served under this name\n", "text/plain", with_body
            )
        elif self.path.split("?", 1)[0] not in _PATHS:
            self._send(HTTPStatus.NOT_FOUND, b"there is one page here: /\n", "text/plain", with_body)
        else:
            try:
                page = self.renewed.page()
            except UserError as error:
                self._send(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode(), "text/plain", with_body)
            else:
                self._send(HTTPStatus.OK, page, "text/html", with_body)

    def _send(self, status: HTTPStatus, body: bytes, kind: str, with_body: bool) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)
