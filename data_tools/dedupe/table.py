"""What is known of the documents of a file while duplicates are looked for, so that no text is read twice.

<file>.rows: uint64 (documents, 6), see Row. <file>.names: `{"id":..,"source":..` of each, as its line of attributes begins; then
the names of the sources as JSON, and where these begin (8 bytes).
"""

import os
from array import array
from collections.abc import Iterator
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from data_tools.documents import Line

BLOCK = 2**14
"""Documents that are read or written at once."""


class Row(IntEnum):
    """Columns."""

    OFFSET = 0
    """Of its name."""
    LINE = 1
    CHARACTERS = 2
    BYTES = 3
    """Of its text in UTF-8."""
    ITEMS = 4
    """Paragraphs up to its end."""
    SOURCE = 5
    """Its number among the sources of the file."""


class TableWriter:
    """Both paths are a PartContext's outputs."""

    def __init__(self, names: Path, rows: Path) -> None:
        self._names: BinaryIO = open(names, "wb")  # noqa: SIM115 - closed by close
        self._rows: BinaryIO = open(rows, "wb")  # noqa: SIM115
        self._sources, self._offset = dict[str, int](), 0
        self._pending = array("Q")

    def add(self, line: Line, characters: int, size: int, items: int = 0) -> None:
        """The next document; `items` with all before it."""
        name = msgspec.json.encode({"id": line.id, "source": line.source})[:-1]
        source = self._sources.setdefault(line.source, len(self._sources))
        self._pending.extend((self._offset, line.line, characters, size, items, source))
        self._names.write(name)
        self._offset += len(name)
        if len(self._pending) >= 6 * BLOCK:
            self._flush()

    def _flush(self) -> None:
        self._rows.write(self._pending.tobytes())
        self._pending = array("Q")

    def close(self) -> None:
        """Everything is written."""
        self._flush()
        self._rows.close()
        self._names.write(msgspec.json.encode(list(self._sources)) + self._offset.to_bytes(8, "little"))
        self._names.close()


class Table:
    """Reader; nothing is held but what is asked for."""

    def __init__(self, names: Path, rows: Path) -> None:
        self._names: BinaryIO = open(names, "rb")  # noqa: SIM115 - closed with the table
        self._rows: BinaryIO = open(rows, "rb")  # noqa: SIM115
        size = names.stat().st_size - 8
        self._end = int.from_bytes(self._read_names(size, size + 8), "little")
        self.sources: list[str] = msgspec.json.decode(self._read_names(self._end, size))
        self._n = rows.stat().st_size // (8 * len(Row))

    def __len__(self) -> int:
        return self._n

    def rows(self, begin: int, end: int) -> np.ndarray:
        """uint64 (documents, 6) of [begin, end), as far as there are so many."""
        width = 8 * len(Row)
        data = os.pread(self._rows.fileno(), (min(end, self._n) - begin) * width, begin * width)
        return np.frombuffer(data, np.uint64).reshape(-1, len(Row))

    def _read_names(self, first: int, last: int) -> bytes:
        return os.pread(self._names.fileno(), last - first, first)

    def names(self, begin: int, end: int) -> Iterator[bytes]:
        """Of the documents of [begin, end): JSON without its last brace."""
        for first in range(begin, end, BLOCK):
            last = min(first + BLOCK, end)
            offsets = self.rows(first, last + 1)[:, Row.OFFSET].tolist()
            if last == self._n:
                offsets.append(self._end)
            data = self._read_names(offsets[0], offsets[-1])
            for start, stop in pairwise(offsets):
                yield data[start - offsets[0] : stop - offsets[0]]

    def sums(self, ordinals: np.ndarray) -> Iterator[tuple[str, int, int]]:
        """(source, documents, bytes of text) of these documents, which ascend."""
        for first in range(0, len(ordinals), BLOCK):
            mine = ordinals[first : first + BLOCK].astype(np.int64)
            for source, number, size, _ in self._sums(np.concatenate([self.rows(i, i + 1) for i in mine.tolist()])):
                yield source, number, size

    def totals(self) -> list[tuple[str, int, int, int]]:
        """(source, documents, bytes, characters of text) of all, by the numbers of the sources."""
        found = {source: np.zeros(3, np.int64) for source in self.sources}
        for first in range(0, len(self), BLOCK):
            for source, *numbers in self._sums(self.rows(first, first + BLOCK)):
                found[source] += numbers
        return [(name, int(n), int(size), int(characters)) for name, (n, size, characters) in found.items()]

    def _sums(self, rows: np.ndarray) -> Iterator[tuple[str, int, int, int]]:
        for number in np.unique(rows[:, Row.SOURCE]).tolist():
            mine = rows[rows[:, Row.SOURCE] == number]
            yield self.sources[number], len(mine), int(mine[:, Row.BYTES].sum()), int(mine[:, Row.CHARACTERS].sum())

    def place(self, ordinal: int, path: str) -> dict[str, Any]:
        """id, source, path, line."""
        name = next(self.names(ordinal, ordinal + 1))
        return {**msgspec.json.decode(name + b"}"), "path": path, "line": int(self.rows(ordinal, ordinal + 1)[0, Row.LINE])}
