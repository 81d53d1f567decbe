"""A server that answers as the Hugging Face Hub does where its filesystem reads data sets."""

import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

_REVISION = "main"


class FakeHub:
    """The server, as a context, with one data set.

    Args:
        repository: its name, "owner/name".
        files: its files by path.
        token: without it every request is answered as for a private data set: 401.
        gated: its files, and the question whether they may be read, are answered with 403.

    `busy` holds how many of the next requests for a file's bytes are answered with 429, `asked` counts
    requests by their kind: "info", "tree", "bytes".
    """

    def __init__(
        self, repository: str, files: dict[str, bytes], *, token: str = "", gated: bool = False
    ) -> None:
        self.repository = repository
        self.files = files
        self.token = token
        self.gated = gated
        self.busy = 0
        self.asked: Counter[str] = Counter()
        outer = self

        class Handler(_Handler):
            hub = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def tree(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """What the Hub lists below a folder, folders first; empty where there is none."""
        prefix = f"{folder}/" if folder else ""
        below = {path: data for path, data in self.files.items() if path.startswith(prefix)}
        folders, listed = set(), []
        for path, data in sorted(below.items()):
            parts = path.removeprefix(prefix).split("/")
            folders |= {prefix + "/".join(parts[: i + 1]) for i in range(len(parts) - 1)}
            if recursive or len(parts) == 1:
                oid = hashlib.sha1(data).hexdigest()
                listed.append({"type": "file", "oid": oid, "size": len(data), "path": path})
        shown = sorted(f for f in folders if recursive or "/" not in f.removeprefix(prefix))
        return [{"type": "directory", "oid": "0" * 40, "size": 0, "path": f} for f in shown] + listed


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path, name = unquote(address.path), re.escape(self.hub.repository)
        if self.hub.token and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self._refuse(401, "RepoNotFound")
        elif re.fullmatch(rf"/api/datasets/{name}(/revision/{_REVISION})?", path):
            self.hub.asked["info"] += 1
            self._say({"id": self.hub.repository, "sha": "1" * 40, "siblings": [], "tags": []})
        elif self.hub.gated and re.fullmatch(rf"(/api)?/datasets/{name}/(auth-check|resolve/.*)", path):
            self._refuse(403, "GatedRepo")
        elif path == f"/api/datasets/{self.hub.repository}/auth-check":
            self._say({})
        elif found := re.fullmatch(rf"/api/datasets/{name}/tree/{_REVISION}(?:/(.*))?", path):
            self.hub.asked["tree"] += 1
            listed = self.hub.tree(found[1] or "", "recursive=true" in address.query.lower())
            self._say(listed) if listed else self._refuse(404, "EntryNotFound")
        elif found := re.fullmatch(rf"/datasets/{name}/resolve/{_REVISION}/(.*)", path):
            self.hub.asked["bytes"] += 1
            self._give(found[1])
        else:
            self._refuse(404, "RepoNotFound" if name not in re.escape(path) else "RevisionNotFound")

    def _give(self, path: str) -> None:
        if self.hub.busy:
            self.hub.busy -= 1
            self._refuse(429, "")
            return
        if path not in self.hub.files:
            self._refuse(404, "EntryNotFound")
            return
        data, asked = self.hub.files[path], self.headers.get("range")
        if asked is None:
            self._answer(200, data, {})
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        end = min(int(last) + 1, len(data)) if last else len(data)
        given = {"Content-Range": f"bytes {first}-{end - 1}/{len(data)}"}
        self._answer(206, data[int(first) : end], given)

    def _say(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"", {"X-Error-Code": code} if code else {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test's output is its own."""
