"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=2000,1300",
    "--remote-debugging-address=127.0.0.1",
    "--remote-debugging-port=0",
)


def chromium() -> str | None:
    """Path of a Chromium; None where there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.enable")
        self.call("Page.navigate", url=url)

    @property
    def text(self) -> str:
        """All text that the page shows."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Wait until the page shows a text; returns all text."""
        deadline = time.monotonic() + seconds
        while text not in (shown := self.text):
            assert time.monotonic() < deadline, f"no {text!r} in:\n{shown}"
            time.sleep(0.3)
        return shown

    def click(self, selector: str, index: int = 0) -> None:
        """Click the element of a CSS selector, once it is there."""
        element = f"document.querySelectorAll({json.dumps(selector)})[{index}]"
        deadline = time.monotonic() + 30
        while not self.evaluate(f"Boolean({element})"):
            assert time.monotonic() < deadline, f"no {selector!r} in:\n{self.text}"
            time.sleep(0.2)
        self.evaluate(f"{element}.click()")

    def screenshot(self, path: Path) -> None:
        """Write what the page shows as a PNG."""
        time.sleep(2)  # Its charts move into place.
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a new Chromium with its profile in a folder of the test."""
    program = chromium()
    assert program is not None
    environment = {**os.environ, "HOME": str(profile.parent)}
    process = subprocess.Popen(
        [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = _devtools_port(profile / "DevToolsActivePort")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            address = next(t for t in json.load(answer) if t["type"] == "page")
        with connect(
            address["webSocketDebuggerUrl"], max_size=None, proxy=None, open_timeout=30
        ) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _devtools_port(file: Path) -> int:
    deadline = time.monotonic() + 60
    while not (file.is_file() and file.read_text().count("\n")):
        assert time.monotonic() < deadline, "Chromium did not start"
        time.sleep(0.1)
    return int(file.read_text().splitlines()[0])
