"""Who works on a part: a file beside its record, so that processes and machines that share a file system share the work.

Claims save work, they protect nothing: a part gives the same files whoever does it, and they appear by a rename. A claim whose
holder died is taken over: at once if it was a process of this machine, else when its time stamp has not moved for STALE_S of the
clock of who waits (no two machines' clocks are compared).
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

BEAT_S = 5.0
STALE_S = 60.0


def _start_of(pid: int) -> str:
    """When a process began, so that another one with its number is not taken for it; empty: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


class Claims:
    """The claims that this process holds, kept alive by a thread while any is held."""

    def __init__(self) -> None:
        self._held: set[Path] = set()
        self._lock = threading.Lock()
        self._seen: dict[Path, tuple[int, float]] = {}
        self._thread: threading.Thread | None = None
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "start": _start_of(os.getpid())}

    def take(self, path: Path) -> bool:
        """Claim a part, or take over the claim of somebody who died; False: somebody works on it."""
        for _ in range(2):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                if not self._is_dead(path):
                    return False
                self._put_aside(path)
                continue
            with os.fdopen(descriptor, "w") as file:
                json.dump(self._me, file)
            with self._lock:
                self._held.add(path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, daemon=True)
                self._thread.start()
            return True
        return False

    def release(self, path: Path) -> None:
        """Give a claim back."""
        with self._lock:
            self._held.discard(path)
        path.unlink(missing_ok=True)

    def release_all(self) -> None:
        """Give all back."""
        for path in list(self._held):
            self.release(path)

    def _is_dead(self, path: Path) -> bool:
        try:
            stamp = path.stat().st_mtime_ns
            holder = json.loads(path.read_text() or "{}")
        except (OSError, ValueError):
            return False  # it goes just now, or is being written; whoever waits looks again
        if holder.get("host") == self._me["host"]:
            return _start_of(int(holder.get("pid", 0))) != holder.get("start")
        before = self._seen.get(path)
        if before is None or before[0] != stamp:
            self._seen[path] = (stamp, time.monotonic())
            return False
        return time.monotonic() - before[1] > STALE_S

    def _put_aside(self, path: Path) -> None:
        """By a rename, which only one of several waiting ones can do."""
        aside = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:12]}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, aside)
            aside.unlink()

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            with self._lock:
                held = list(self._held)
            for path in held:
                with contextlib.suppress(OSError):
                    os.utime(path)
