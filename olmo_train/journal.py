"""A file of lines on a file system that may fail: what could not be written is kept and written later, each line once."""

import errno
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from olmo_train.errors import CheckpointError
from olmo_train.files import sync_folder

log = logging.getLogger(__name__)


class Journal:
    """Appends whole lines. A line cut short by a full disk is cut off again before the next is written.

    What was written since the last `sync` stays in memory: a network file system may take lines and lose them when it brings
    them to its disks, and then they are written again.
    """

    def __init__(self, path: Path, check: Callable[[], None]) -> None:
        """`check`: called with the file open, before each write; what it raises ends the writing (Fence.check)."""
        self.path, self._check = path, check
        self._durable: int | None = None  # bytes of the file that are on disk for good; None: not looked yet
        self._tail = bytearray()  # all that comes after them
        self._written = 0  # bytes of the tail that the file system has taken
        self._failing = self._has_name = False
        self._turn = threading.RLock()

    def append(self, text: str) -> None:
        """Write whole lines, or keep them for later if the file system refuses (an error in the log)."""
        with self._turn:
            self._tail += text.encode()
            self._flush()

    def sync(self) -> None:
        """Bring every line to disk.

        Raises:
            CheckpointError: the file system refuses; the lines are kept.
        """
        with self._turn:
            n = len(self._tail)
            if not self._flush():
                raise CheckpointError(f"{self.path}: lines cannot be written; free space or mend the file system")
        try:
            if not self.path.exists():
                return
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # not in the turn: a slow file system must not make training wait for it
            finally:
                os.close(descriptor)
            if not self._has_name:
                sync_folder(self.path.parent)
        except OSError as error:
            with self._turn:
                self._written = 0
            raise CheckpointError(f"{self.path}: {error.strerror}; free space or mend the file system") from error
        with self._turn:
            self._has_name = True
            if self._durable is not None:
                self._durable += n
                del self._tail[:n]
                self._written = max(self._written - n, 0)

    def _flush(self) -> bool:
        """Whether everything is written."""
        if self._written == len(self._tail):
            return True
        try:
            self._write()
        except OSError as error:
            self._say(error)
            return False
        if self._failing:
            log.warning("%s is written again; no line is missing", self.path)
            self._failing = False
        return True

    def _write(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            self._check()
            self._put(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        try:
            os.close(descriptor)
        except OSError:  # NFS tells only now that it could not write
            self._written = 0
            raise

    def _put(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        if self._durable is None:
            self._durable = size
        if size < self._durable + self._written:  # the file system has lost lines, or somebody cut the file
            self._durable, self._written = min(self._durable, size), 0
        at = end = self._durable + self._written
        if size > end:
            os.ftruncate(descriptor, end)  # a line that a full disk cut short
        rest = memoryview(bytes(self._tail[self._written :]))
        self._written = 0  # until all of it is there
        try:
            while rest:
                n = os.pwrite(descriptor, rest, at)
                if n == 0:
                    raise OSError(errno.EIO, "nothing more is written")
                at, rest = at + n, rest[n:]
        except OSError:
            self._written = end - self._durable
            os.ftruncate(descriptor, end)
            raise
        self._written = len(self._tail)

    def _say(self, error: OSError) -> None:
        self._failing = True
        n = bytes(self._tail[self._written :]).count(b"\n")
        reason = error.strerror or error
        log.error("%s: %s; %d lines are kept in memory and written when it works again", self.path, reason, n)
