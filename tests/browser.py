"""Headless Chromium for tests: a page from a file, at a size, without a network, driven by the DevTools protocol over two pipes."""

import base64
import json
import os
import subprocess
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--disable-component-update",
    "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip


class Page:
    """A tab. What it logs, throws and asks for is kept in `problems` and `requests`."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM.exists(), f"{CHROMIUM} is missing, the report cannot be tested: run `bash tests/install_chromium.sh`"
        from_us, to_it = os.pipe()
        from_it, to_us = os.pipe()
        self._process = subprocess.Popen(
            [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=lambda: _place(from_us, to_us),
        )
        os.close(from_us)
        os.close(to_us)
        self._out, self._in = os.fdopen(to_it, "wb", buffering=0), os.fdopen(from_it, "rb")
        self._n, self._session, self._events = 0, None, deque[dict[str, Any]]()
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._out.close()
        self._in.close()
        self._process.terminate()
        self._process.wait(30)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Run one method of the protocol and wait for its answer."""
        self._n += 1
        message = {"id": self._n, "method": method, "params": params} | ({"sessionId": self._session} if self._session else {})
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._n:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def open(self, path: Path, width: int, height: int = 800, scheme: str = "light", touch: bool = False) -> None:
        """Load a file and wait until it is there."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.send("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        self.requests.clear()
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()

    def run(self, script: str) -> Any:
        """The value of an expression in the page; exceptions fail the test."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def hover(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        """Move the mouse to a fraction of the width and height of the first element."""
        x, y = self._place_of(selector, across, down)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def tap(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        """Touch it with a finger."""
        x, y = self._place_of(selector, across, down)
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def focus(self, selector: str) -> None:
        """As by the Tab key; the page has scrolled there when this returns."""
        self._place_of(selector, 0, 0)
        self.run(f"document.querySelector({json.dumps(selector)}).focus({{preventScroll: true}})")

    def press(self, key: str) -> None:
        """Press and release a key, by its DOM name."""
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Save a picture of the page."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _place_of(self, selector: str, across: float, down: float) -> tuple[float, float]:
        box = self.run(
            f"(async () => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            "for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);"  # the scroll event comes with a frame
            "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )
        return box[0] + across * box[2], box[1] + down * box[3]

    def _read(self) -> dict[str, Any]:
        """The next message; events are kept."""
        text = bytearray()
        while not text.endswith(b"\0"):
            byte = self._in.read(1)
            assert byte, "chromium ended"
            text += byte
        message: dict[str, Any] = json.loads(text[:-1])
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(str(message["params"]["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.problems.append(f"console: {message['params']['args']}")
            case "Log.entryAdded":
                self.problems.append(message["params"]["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
        if "method" in message:
            self._events.append(message)
        return message


def _place(commands: int, answers: int) -> None:
    """In the child: the protocol's pipes are file descriptors 3 and 4."""
    commands, answers = os.dup(commands), os.dup(answers)  # neither may be 3 or 4 when the other is put there
    high = [os.dup(fd) for fd in (commands, answers)]
    os.dup2(high[0], 3)
    os.dup2(high[1], 4)
