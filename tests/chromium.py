"""Chromium without a window, told what to do over its DevTools pipe."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """A browser that is told what to do; its pages know nothing of each other."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._rest, self._number = to, back, b"", 0

    def call(self, method: str, params: dict[str, Any], page: "Page | None" = None) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if page is not None:
            message["sessionId"] = page.session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            told = self._read()
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            if page is None or told.get("sessionId") != page.session:
                continue
            if told.get("method") == "Runtime.exceptionThrown":
                page.errors.append(json.dumps(told["params"]["exceptionDetails"])[:500])
            if told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                page.errors.append(told["params"]["entry"]["text"])

    @contextmanager
    def page(self) -> Iterator["Page"]:
        """A page with cookies and storage of its own."""
        context = self.call("Target.createBrowserContext", {})
        target = self.call("Target.createTarget", {"url": "about:blank"} | context)["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        yield Page(self, session)
        self.call("Target.disposeBrowserContext", context)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._back, 2**16)
            assert chunk, "Chromium has ended"
            self._rest += chunk
        text, self._rest = self._rest.split(b"\0", 1)
        return json.loads(text)


class Page:
    """One page; `call` is a command of the DevTools protocol."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self.session = browser, session
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, params, self)

    def run(self, code: str) -> Any:
        """The value of an expression."""
        told = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, code: str, seconds: float = 20) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(code)):
            assert time.monotonic() < end, f"not within {seconds} s: {code}\n{self.run('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def open(self, url: str, width: int = 1100, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def draw(self, points: list[tuple[float, float]]) -> None:
        """A stroke with the mouse."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*points, points[-1]], strict=True):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def screenshot(self, to: Path) -> None:
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        to.write_bytes(base64.b64decode(data))


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser that ends with the block."""
    assert CHROMIUM is not None
    (theirs_in, to), (back, theirs_out) = os.pipe(), os.pipe()
    # It speaks over descriptors 3 and 4.
    shell = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    command = ["bash", "-c", shell, "bash", CHROMIUM, *options, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(
        command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as browser:
        try:
            yield Browser(to, back)
        finally:
            browser.kill()
            for descriptor in (theirs_in, to, back, theirs_out):
                os.close(descriptor)
