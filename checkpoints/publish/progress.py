"""What publishing says on the terminal: which revision, how much of it, how fast."""

import sys
import threading
import time

EVERY_S = 10.0
"""Between lines where nobody watches."""


class Progress:
    """Of one revision after the other; threads may tell it of bytes."""

    def __init__(self) -> None:
        self.name, self.total, self.done, self.began, self.told = "", 0, 0, 0.0, 0.0
        self.lock = threading.Lock()
        self.is_watched = sys.stdout.isatty()

    def say(self, text: str) -> None:
        """A line."""
        with self.lock:
            print(f"\r\x1b[K{text}" if self.is_watched else text, flush=True)

    def begin(self, name: str, total: int) -> None:
        """A revision of `total` bytes."""
        self.name, self.total, self.done, self.began = name, total, 0, time.monotonic()
        self.told = self.began

    def moved(self, size: int) -> None:
        """So many bytes more are there; those that were there already count too."""
        with self.lock:
            self.done += size
            now = time.monotonic()
            if self.is_watched:
                print(f"\r\x1b[K{self.status()}", end="", flush=True)
            elif now - self.told >= EVERY_S:
                self.told = now
                print(self.status(), flush=True)

    def status(self) -> str:
        """Of the revision in progress."""
        seconds = max(time.monotonic() - self.began, 1e-6)
        return f"{self.name}: {amount(self.done)} of {amount(self.total)}, {amount(int(self.done / seconds))}/s"

    def end(self, text: str) -> None:
        """The revision is published."""
        seconds = max(time.monotonic() - self.began, 1e-6)
        self.say(f"{self.name}: {text}, {amount(self.total)} in {seconds:.1f} s ({amount(int(self.total / seconds))}/s)")


def amount(size: int) -> str:
    """Bytes for people."""
    for unit, one in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size} B"
