"""Who may write a name of an object store: claims, so that one revision never gets files of two contents.

Object stores have no rename, and not all have a write that fails if the object exists. All have lists that show what was written
before. So: write a claim of one's own, then list. Whoever sees a claim for another content takes its own back; of two at once at
least one sees the other. Claims for the same content do not exclude each other, for they write the same bytes.

A claim counts its beats. One that stands still for `expiry_s`, by the watcher's clock alone, is left over and is removed; on the
same machine a dead process is known at once.
"""

import json
import os
import random
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from checkpoints.publish.file_store import FileStore
from olmo_train.errors import CheckpointError

CLAIMS = ".publishing"
"""Folder beside the revisions."""


@dataclass(frozen=True)
class Timing:
    """Of claims, in seconds."""

    beat_s: float = 20.0
    expiry_s: float = 120.0


class Claim:
    """A context in which only one content is written under a name."""

    def __init__(self, store: FileStore, name: str, content: str, timing: Timing) -> None:
        self.store, self.name, self.content, self.timing = store, name, content, timing
        self.path = store.path(CLAIMS, name, f"{secrets.token_hex(8)}.json")
        self.beats, self.failed = 0, ""
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Claim":
        """Wait until nobody writes another content under this name."""
        while True:
            self._write()
            others = [path for path, claim in self._claims().items() if path != self.path and claim["content"] != self.content]
            if not others:
                self.thread.start()
                return self
            self._remove(self.path)
            for path in others:
                self._watch(path)
            time.sleep(random.uniform(0.5, 1.0) * min(1.0, self.timing.beat_s))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop.set()
        self.thread.join()
        self._remove(self.path)

    def check(self) -> None:
        """Raises:
        CheckpointError: this process stood still for so long that another one took its claim for a leftover.
        """
        if not self.failed and self._read(self.path) is None:
            self.failed = "its claim is gone"
        if self.failed:
            raise CheckpointError(
                f"{self.store.where}/{self.name}: {self.failed}: this process stood still longer than "
                f"{self.timing.expiry_s:.0f} s, and another one may write there now; the same command goes on"
            )

    def _write(self) -> None:
        self.beats += 1
        claim = {"content": self.content, "machine": machine(), "pid": os.getpid(), "beats": self.beats}
        self.store.call(lambda: self.store.fs.pipe_file(self.path, json.dumps(claim).encode()), f"{CLAIMS}/{self.name}")

    def _beat(self) -> None:
        while not self.stop.wait(self.timing.beat_s):
            try:
                if self._read(self.path) is None:
                    self.failed = "its claim is gone"
                    return
                self._write()
            except Exception as error:  # told by check(), in the thread that publishes
                self.failed = str(error)
                return

    def _watch(self, path: str) -> None:
        """Return when a claim is gone, removing it if it is a leftover."""
        seen, since = self._read(path), time.monotonic()
        if seen is not None:
            self.store.said(
                f"{self.store.where}/{self.name}: another process (on {seen['machine'].split()[0]}) writes there, waiting"
            )
        while seen is not None:
            if seen["machine"] == machine() and not _lives(seen["pid"]):
                self._remove(path)
                return
            if time.monotonic() - since > self.timing.expiry_s:
                self._remove(path)
                return
            time.sleep(min(self.timing.beat_s / 4, 1.0))
            now = self._read(path)
            if now is not None and now != seen:
                since = time.monotonic()
            seen = now

    def _claims(self) -> dict[str, dict[str, Any]]:
        def listed() -> list[str]:
            self.store.fs.invalidate_cache()
            return list(self.store.fs.find(self.store.path(CLAIMS, self.name)))

        found = {path: self._read(path) for path in self.store.call(listed, CLAIMS)}
        return {path: claim for path, claim in found.items() if claim is not None}

    def _read(self, path: str) -> dict[str, Any] | None:
        def once() -> bytes | None:
            try:
                return bytes(self.store.fs.cat_file(path))
            except FileNotFoundError:
                return None

        text = self.store.call(once, f"{CLAIMS}/{self.name}")
        return json.loads(text) if text else None

    def _remove(self, path: str) -> None:
        def once() -> None:
            try:
                self.store.fs.rm_file(path)
            except FileNotFoundError:
                return

        self.store.call(once, f"{CLAIMS}/{self.name}")


def machine() -> str:
    """This machine and its space of process ids (containers may share a host's name, and have ids of their own)."""
    return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid') if os.path.exists('/proc/self/ns/pid') else ''}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
