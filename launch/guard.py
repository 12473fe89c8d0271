"""Two supervisors for one job: the one that works gives signs of life, the other takes over when they end.

An allocation that survives a lost node (--no-kill) also survives the loss of the node of its batch script, and would then stand
idle until the time limit. So a guard waits on another node.
"""

import json
import os
import secrets
import threading
import time
from pathlib import Path

from olmo_train.attempt import node_name
from olmo_train.files import write_atomic

FILE = "supervisor.json"


class Heart:
    """Signs of life of the supervisor that works, in a file of the job folder."""

    def __init__(self, folder: Path, every_s: float) -> None:
        self.path = folder / FILE
        self.me = secrets.token_hex(4)
        self.is_mine = True
        self._beats = True
        self._every_s = every_s
        self._count = 0
        self._beat()
        threading.Thread(target=self._run, daemon=True).start()

    def confirm(self) -> bool:
        """Whether this one works, after a moment in which a second one that began at the same time has claimed too."""
        time.sleep(2.0)
        seen = read(self.path)
        self.is_mine = self.is_mine and seen is not None and seen["who"] == self.me
        return self.is_mine

    def pause(self) -> None:
        """No signs of life until `go_on`: another may take over."""
        self._beats = False

    def go_on(self) -> None:
        """Give signs of life again."""
        self._beats = True

    def _run(self) -> None:
        while self.is_mine:
            time.sleep(self._every_s)
            if self.check() and self._beats:
                self._beat()

    def check(self) -> bool:
        """Whether this one still works, and no other has claimed; asked also while it gives no signs of life."""
        seen = read(self.path)
        if seen is not None and seen["who"] != self.me:
            self.is_mine = False
        return self.is_mine

    def _beat(self) -> None:
        try:
            self._count += 1
            values = {"who": self.me, "node": node_name(), "pid": os.getpid(), "beat": self._count}
            write_atomic(self.path, json.dumps(values).encode())
        except OSError:
            return  # a file system that fails for a while; if for long, the guard takes over


def read(path: Path) -> dict[str, object] | None:
    """The last sign of life, or None."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def wait_for_silence(folder: Path, silent_s: float) -> str | None:
    """Return when nobody has given a sign of life for `silent_s` by this node's own clock; with the node that was last heard.

    None: another supervisor works now, with a guard of its own.
    """
    last, since = read(folder / FILE), time.monotonic()
    while time.monotonic() - since < silent_s:
        time.sleep(min(1.0, silent_s / 10))
        seen = read(folder / FILE)
        if seen is not None and last is not None and seen["who"] != last["who"]:
            return None
        if seen is not None and seen != last:
            last, since = seen, time.monotonic()
    return str((last or {}).get("node", "an unknown node"))
