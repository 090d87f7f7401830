"""A browser on the PATH, driven over its debugging pipe (Chrome DevTools Protocol), without a driver or a port."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
TIMEOUT_SECONDS = 60.0
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--mute-audio",
    "--remote-debugging-pipe",
)
# The browser reads commands from descriptor 3 and writes to 4.
_CONNECT = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


def find_chromium() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


class BrowserError(Exception):
    """The browser refused a command, threw an exception, or does not answer."""


class Browser:
    """One headless browser with one page; ``problems`` collects errors of its console and exceptions."""

    def __init__(self, profile: Path) -> None:
        path = find_chromium()
        assert path is not None, "no Chromium on the PATH"
        commands, self._commands = os.pipe()
        self._events, events = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, events)]  # not 3 or 4 themselves
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CONNECT, *map(str, ends), path, *_OPTIONS, f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=ends,
        )
        for descriptor in (commands, events, *ends):
            os.close(descriptor)
        self._numbers = itertools.count(1)
        self._pending = b""
        self._session: str | None = None
        self._seen: list[str] = []
        self.problems: list[str] = []
        self.requests: list[str] = []
        page = self.send("Target.createTarget", url="about:blank")
        attached = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._events)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error'].get('message')}")
                return dict(answer["result"])

    def open(self, path: Path) -> float:
        """Load a file; returns the seconds until its ``load`` event."""
        self._seen.clear()
        self.problems.clear()
        self.requests.clear()
        started = time.perf_counter()
        self.send("Page.navigate", url=path.absolute().as_uri())
        while "Page.loadEventFired" not in self._seen:
            self._receive()
        return time.perf_counter() - started

    def run(self, script: str) -> Any:
        """The value of an expression on the page; promises are waited for."""
        result = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description") or details["text"])
        return result["result"].get("value")

    def resize(self, width: int, height: int, *, dark: bool = False, scale: float = 1.0) -> None:
        """``dark`` is what the system prefers."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=width < 600,
        )  # fmt: skip
        preference = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[preference])

    def screenshot(self, path: Path, *, full: bool = False) -> None:
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(picture["data"]))

    def pdf(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.printToPDF", printBackground=True)["data"]))

    def _receive(self) -> Mapping[str, Any]:
        while b"\0" not in self._pending:
            if not select.select([self._events], [], [], TIMEOUT_SECONDS)[0]:
                raise BrowserError(f"no answer within {TIMEOUT_SECONDS:.0f} s")
            data = os.read(self._events, 1 << 20)
            if not data:
                raise BrowserError("the browser has ended")
            self._pending += data
        line, self._pending = self._pending.split(b"\0", 1)
        message = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return dict(message)

    def _note(self, method: str, parameters: Mapping[str, Any]) -> None:
        self._seen.append(method)
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.problems.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.problems.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"].split(",", 1)[0])
