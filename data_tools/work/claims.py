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
from typing import Any

BEAT_S = 5.0
STALE_S = 60.0


def _machine() -> str:
    """Where process ids mean the same: containers and copies of a machine may share a host name."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(facts)


def _start_of(pid: Any) -> str:
    """When a process began, so that another one with its number is not taken for it; empty: there is none, or it has ended."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if facts[0] in "ZX" else facts[19]  # one that ended keeps its number until its parent asks for it
    except (OSError, IndexError):
        return ""


class Claims:
    """The claims that this process holds, kept alive by a thread while any is held."""

    def __init__(self, stale_s: float = STALE_S) -> None:
        """`stale_s`: after which one of another machine counts as dead if it has not been renewed."""
        self._held: dict[Path, str] = {}
        self._lock = threading.Lock()
        self._seen: dict[Path, tuple[int, float]] = {}
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()
        self._me = {"machine": _machine(), "pid": os.getpid(), "start": _start_of(os.getpid())}
        self._stale_s, self._beat_s = stale_s, min(BEAT_S, stale_s / 4)

    def take(self, path: Path) -> bool:
        """Claim a part, or take over the claim of somebody who died; False: somebody works on it.

        Raises:
            OSError: the disk; no claim is left.
        """
        if self._create(path):
            return True
        if not self._is_dead(path):
            return False
        lock = path.with_name(f"{path.name}.claim")  # or one of several would take away what another has just taken
        if not self.take(lock):
            return False
        try:
            if self._is_dead(path):
                path.unlink(missing_ok=True)
            return self._create(path)
        finally:
            self.release(lock)

    def _create(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        text = json.dumps({**self._me, "id": uuid.uuid4().hex})
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        with self._lock:
            self._held[path] = text
        self._seen.pop(path, None)
        if self._thread is None:
            self._is_over = threading.Event()
            self._thread = threading.Thread(target=self._beat, args=(self._is_over,), daemon=True, name="claims")
            self._thread.start()
        return True

    def release(self, path: Path) -> None:
        """Give a claim back; one that another has taken over meanwhile is left to him."""
        with self._lock:
            text = self._held.pop(path, None)
        with contextlib.suppress(OSError):
            if text is not None and path.read_text() == text:
                path.unlink()

    def release_all(self) -> None:
        """Give all back, and end the thread; `take` starts another."""
        for path in list(self._held):
            self.release(path)
        if self._thread is not None:
            self._is_over.set()
            self._thread = None

    def _is_dead(self, path: Path) -> bool:
        """Whether the holder of a claim died, as far as one can see."""
        try:
            with open(path, "rb") as file:  # opened first: a network file system then looks at the time stamp anew
                stamp, text = os.fstat(file.fileno()).st_mtime_ns, file.read()
        except OSError:
            return False  # it goes just now; whoever waits looks again
        try:
            holder = json.loads(text)
        except ValueError:
            holder = None  # killed, or out of space, while it was written; or it is being written
        if isinstance(holder, dict) and holder.get("machine") == self._me["machine"]:
            return _start_of(holder.get("pid")) != holder.get("start")
        before = self._seen.get(path)
        if before is None or before[0] != stamp:
            self._seen[path] = (stamp, time.monotonic())
            return False
        return time.monotonic() - before[1] > self._stale_s

    def _beat(self, is_over: threading.Event) -> None:
        while not is_over.wait(self._beat_s):
            with self._lock:
                held = list(self._held)
            for path in held:
                with contextlib.suppress(OSError):
                    os.utime(path)
