"""A headless Chromium, spoken to over a pipe in its own protocol (CDP): no driver and no further package."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str:
    """The browser's program; the test is skipped if there is none."""
    for name in NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")


class Page:
    """A page in the browser.

    Attributes:
        requests: the addresses of all requests, those of the page itself included.
        problems: errors of the console and exceptions.
    """

    def __init__(self, call: Callable[..., dict[str, Any]], events: list[dict[str, Any]]) -> None:
        self._call, self._events = call, events

    @property
    def requests(self) -> list[str]:
        self.evaluate("1")  # reads what has come
        return [
            event["params"]["request"]["url"]
            for event in self._events
            if event["method"] == "Network.requestWillBeSent"
        ]

    @property
    def problems(self) -> list[str]:
        self.evaluate("1")
        found = []
        for event in self._events:
            match event["method"], event["params"]:
                case "Runtime.exceptionThrown", told:
                    found.append(json.dumps(told["exceptionDetails"]))
                case "Log.entryAdded", told if told["entry"]["level"] in ("error", "warning"):
                    found.append(told["entry"]["text"])
                case "Runtime.consoleAPICalled", told if told["type"] in ("error", "warning", "assert"):
                    found.append(json.dumps(told["args"]))
        return found

    def open(self, address: str) -> None:
        """Go to an address and wait until it is loaded."""
        self._call("Page.navigate", url=address)
        for _ in range(300):
            if self.evaluate("document.readyState + location.href") == f"complete{address}":
                return
            time.sleep(0.05)
        raise TimeoutError(address)

    def evaluate(self, script: str) -> Any:
        """The value of an expression, a promise's once it is kept."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=width < 600,
        )  # fmt: skip

    def prefer(self, theme: str) -> None:
        """``light`` or ``dark``, as the system would say."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def point_at(self, selector: str) -> None:
        """Move the mouse to the middle of an element, which is scrolled to."""
        x, y = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const b = e.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        self._drawn()  # the event of the scroll has come
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self._drawn()

    def _drawn(self) -> None:
        """Wait until the page has been drawn twice."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=9)
        self._drawn()

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write a PNG of the page, all of it or what the window shows."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextlib.contextmanager
def browser_page() -> Iterator[Page]:
    """A page of a browser that ends with the block."""
    program = chromium()
    to_browser, ours = os.pipe()
    theirs, from_browser = os.pipe()[::-1]
    # Processes that the browser has started may write to its profile for a moment longer than it runs.
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        flags = (
            "headless=new remote-debugging-pipe no-sandbox disable-gpu no-first-run disable-extensions "
            "disable-background-networking disable-component-update disable-dev-shm-usage hide-scrollbars "
            "font-render-hinting=none allow-file-access-from-files"
        )
        options = [f"--{flag}" for flag in flags.split()]
        command = [program, *options, f"--user-data-dir={profile}", "about:blank"]
        # The browser reads descriptor 3 and writes descriptor 4.
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (to_browser, theirs)]

        def place() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        process = subprocess.Popen(
            command,
            preexec_fn=place,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (to_browser, theirs, *high):
            os.close(descriptor)
        try:
            connection = _Connection(ours, from_browser)
            target = connection.call("Target.createTarget", url="about:blank")["targetId"]
            session = connection.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

            def call(method: str, **parameters: Any) -> dict[str, Any]:
                return connection.call(method, session, **parameters)

            for domain in ("Page", "Runtime", "Log", "Network"):
                call(f"{domain}.enable")
            yield Page(call, connection.events)
        finally:
            process.terminate()
            process.wait(20)
            os.close(ours)
            os.close(from_browser)


class _Connection:
    """Numbered calls over a pipe, each a JSON text that ends with a zero byte; events are kept."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read = write, read
        self.number, self.buffer = 0, b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            if "method" in answer:
                self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], 60)
            assert ready, "the browser does not answer"
            part = os.read(self.read, 1 << 16)
            assert part, "the browser has ended"
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message
