"""A headless Chromium, spoken to in the DevTools protocol over two pipes: no driver and no socket between."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_SECONDS = 30.0
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowRight": 39}


def find_chromium() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One browser with one tab.

    Args:
        program: the browser.
        profile: a new, empty folder for its profile.
    """

    def __init__(self, program: str, profile: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The protocol is spoken on descriptors 3 and 4, which may be one of these: so first out of the way.
        moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10) for number in (theirs_in, theirs_out)]
        self._process = os.posix_spawn(
            program,
            [program, *FLAGS, f"--user-data-dir={profile}"],
            os.environ,
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)),
                *((os.POSIX_SPAWN_DUP2, number, at) for number, at in zip(moved, (3, 4), strict=True)),
            ],
        )
        for number in (theirs_in, theirs_out, *moved):
            os.close(number)
        self._number = 0
        self._received = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        # A tab of its own: the one that it begins with may not be there yet.
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        """A command's result; what the browser tells on the way is added to `events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": fields}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, address: str, *, width: int, height: int, scheme: str, script: bool = True) -> None:
        """Load a page at a window's size; what the page before has told is forgotten."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ],
        )
        # Another address in between: one that differs in its fragment alone would not be loaded again.
        for visited in ("about:blank", address):
            self.events.clear()
            self.call("Page.navigate", url=visited)
            self._wait_for("Page.loadEventFired")

    def run(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"]))
        return result["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys one after the other, each by its name (`Tab`) or its character."""
        for key in keys:
            code = _KEYS.get(key, ord(key[0].upper()))
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            fields = {"key": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **fields)
            self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def requests(self) -> list[str]:
        """The addresses that the page has asked for since it was opened, its own included."""
        return [
            it["params"]["request"]["url"]
            for it in self.events
            if it["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the page was opened, uncaught exceptions included."""
        found = []
        for it in self.events:
            fields = it["params"]
            if it["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(fields["exceptionDetails"]))
            elif it["method"] == "Log.entryAdded" and fields["entry"]["level"] in ("error", "warning"):
                found.append(fields["entry"]["text"])
            elif it["method"] == "Runtime.consoleAPICalled" and fields["type"] in (
                "error",
                "warning",
                "assert",
            ):
                found.append(json.dumps(fields["args"]))
        return found

    def screenshot(self, path: Path, clip: Sequence[float] | None = None) -> None:
        """The window as a PNG, or `clip` of the page: left, top, width and height in pixels."""
        names = ("x", "y", "width", "height")
        area = {"clip": dict(zip(names, clip, strict=True)) | {"scale": 1}} if clip else {}
        data = self.call("Page.captureScreenshot", captureBeyondViewport=clip is not None, **area)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._session = None
        self.call("Browser.close")
        os.waitpid(self._process, 0)
        os.close(self._out)
        os.close(self._in)

    def _wait_for(self, event: str) -> None:
        while not any(it["method"] == event for it in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + _SECONDS
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            part = os.read(self._in, 1 << 20) if ready else b""
            if not part:
                os.kill(self._process, signal.SIGKILL)
                raise RuntimeError("the browser says nothing more")
            self._received += part
        message, self._received = self._received.split(b"\0", 1)
        parsed: dict[str, Any] = json.loads(message)
        return parsed
