"""How far a phase is: bytes of input read, rate, time left; told while it runs."""

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

EVERY_S = 30.0
"""Between two lines where nobody looks (a log); a terminal is told every half second, in place."""


class Progress:
    """Tells of a phase from a thread. As a context manager."""

    def __init__(
        self, name: str, n_parts: int, total: int, done: Callable[[], tuple[int, int]], out: TextIO | None = None
    ) -> None:
        """`done` returns (parts, bytes) done by everybody."""
        self._name, self._n_parts, self._total, self._done = name, n_parts, total, done
        self._out = out or sys.stderr
        self._is_terminal = self._out.isatty()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._began = time.monotonic()
        self._first = done()[1]

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if self._is_terminal:
            print("\r\033[K", end="", file=self._out, flush=True)

    def line(self) -> str:
        """Where it stands."""
        parts, size = self._done()
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = max(size - self._first, 0) / seconds
        left = f", {say_time((self._total - size) / rate)} left" if rate > 0 and size < self._total else ""
        megabytes = f"{size / 1e6:,.1f} of {self._total / 1e6:,.1f} MB"
        return f"{self._name}: {parts:,} of {self._n_parts:,} parts, {megabytes}, {rate / 1e6:,.1f} MB/s{left}"

    def _run(self) -> None:
        while not self._end.wait(0.5 if self._is_terminal else EVERY_S):
            text = f"\r\033[K{self.line()}" if self._is_terminal else f"{self.line()}\n"
            print(text, end="", file=self._out, flush=True)


def say_time(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
