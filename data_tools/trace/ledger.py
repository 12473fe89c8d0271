"""Which steps were skipped and which rows masked: the marks in a run's data.jsonl, found without parsing its other lines."""

import json
import mmap
import re
import threading
from pathlib import Path

from data_tools.trace.answer import Mark
from olmo_train.errors import ShardError

_MARK = re.compile(rb'"(?:masked_rows":\s*\[\s*\d|skipped":\s*")')
"""In a line with a mark. Every line has both names, but few have a value: a million lines are scanned in about a second."""
_SEAM = 256
"""Bytes before the place where reading stopped; if they are other ones now, the file was written anew."""


class Ledger:
    """`data.jsonl` of a run that may still be going on: read as far as it is there, then only what was added. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path, self.is_there, self.last_step = path, False, 0
        self._skipped: set[int] = set()
        self._masked: dict[int, frozenset[int]] = {}
        self._end, self._seam, self._stamp = 0, b"", (0, 0)
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Read what was added since the last time; costs one `stat` if nothing was.

        Raises:
            ShardError: a line is damaged.
        """
        try:
            status = self.path.stat()
        except OSError:
            return
        stamp = (status.st_mtime_ns, status.st_size)
        with self._lock:
            self.is_there = True
            if stamp != self._stamp and status.st_size:
                self._read()
                self._stamp = stamp

    def mark(self, step: int, row: int) -> Mark:
        """What became of a row of a step that training has done."""
        if step in self._skipped:
            return Mark.SKIPPED
        return Mark.MASKED if row in self._masked.get(step, frozenset()) else Mark.LEARNED

    def _read(self) -> None:
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[max(0, self._end - _SEAM) : self._end] != self._seam:
                self._skipped, self._masked, self._end = set(), {}, 0
            end = data.rfind(b"\n") + 1  # the last line may be half written
            at = self._end
            while (match := _MARK.search(data, at, end)) is not None:
                start, at = data.rfind(b"\n", 0, match.start()) + 1, data.find(b"\n", match.start()) + 1
                self._keep(self._parse(data[start:at], start))
            if end > self._end:
                start = data.rfind(b"\n", 0, end - 1) + 1
                self.last_step = int(self._parse(data[start:end], start)["step"])
            self._end, self._seam = end, data[max(0, end - _SEAM) : end]

    def _keep(self, line: dict) -> None:
        step = int(line["step"])
        if line["skipped"] is not None:
            self._skipped.add(step)
        if line["masked_rows"]:
            self._masked[step] = frozenset(line["masked_rows"])

    def _parse(self, line: bytes, start: int) -> dict:
        try:
            values = json.loads(line)
            return {name: values[name] for name in ("step", "skipped", "masked_rows")}
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(
                f"{self.path}: the line at byte {start} is damaged ({error}); restore the file: without it nobody knows which "
                "steps were skipped and which rows masked"
            ) from error
