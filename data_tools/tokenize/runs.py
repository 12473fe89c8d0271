"""Runs: the encoded documents of one input file in scratch, sorted by key in segments of bounded size.

<scratch>/runs/<part>.tokens   ids of the documents, one after the other
<scratch>/runs/<part>.keys     uint64 per document: where it comes in the order of its source, sorted within each segment
<scratch>/runs/<part>.rows     ROW per document, aligned with the keys
<scratch>/runs/<part>.names    the ids of the documents, UTF-8
<scratch>/runs/<part>.hashes   HASH per document, sorted by hash within each segment; where keys are hashes: none
<scratch>/runs/<part>.json     segments: [source, first row, one after the last]
"""

import bisect
import json
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_tools.files import BLOCK
from data_tools.work.part import PartContext

ROW = np.dtype(
    [("place", "<u8"), ("start", "<u8"), ("tokens", "<u8"), ("text_bytes", "<u8"), ("name", "<u8"), ("name_bytes", "<u4")]
)
"""place: of the document (see place_of); start: offset in .tokens; name: offset in .names."""
KEY = np.dtype("<u8")
HASH = np.dtype([("hash", "<u8"), ("row", "<u8")])
"""hash: of the document's id (see document_key)."""
DTYPES = {"keys": KEY, "rows": ROW, "hashes": HASH}
LINE_BITS = 40
ENDINGS = ("tokens", "keys", "rows", "names", "hashes", "json")
BATCH_TOKENS = 2**20
"""Ids that are brought together for one write."""
DOCUMENT_BYTES = 400
"""Of one document in memory, beside its ids."""


def place_of(file: int, line: int) -> int:
    """Number of the file and line in one integer, which sorts as the corpus does."""
    return file << LINE_BITS | line


def split_place(place: int) -> tuple[int, int]:
    """(file, line)."""
    return place >> LINE_BITS, place & ((1 << LINE_BITS) - 1)


def run_path(folder: Path, run: str, ending: str) -> Path:
    """Of one file of a run; `folder`: of the stage."""
    return folder / "scratch" / "runs" / f"{run}.{ending}"


class Entry(NamedTuple):
    """What is known of a document beside its ids."""

    source: int
    key: int
    place: int
    text_bytes: int
    hash: int
    name: bytes


class RunWriter:
    """Writes the run of one part, in segments of at most `limit` bytes in memory."""

    def __init__(self, context: PartContext, dtype: str, frame: tuple[list[int], list[int]], limit: int) -> None:
        """`frame`: ids before and after every document."""
        self._files = {
            name: open(context.output(run_path(context.folder, context.part.name, name)), "wb")  # noqa: SIM115 - closed by close
            for name in ENDINGS
        }
        self._dtype, self._limit = np.dtype(dtype).newbyteorder("<"), limit
        self._before, self._after = (np.array(ids, self._dtype) for ids in frame)
        self._sources: dict[str, int] = {}
        self._segments: list[tuple[str, int, int]] = []
        self._rows = self._tokens = self._names = 0
        self._entries: list[Entry] = []
        self._ids: list[np.ndarray] = []
        self._held = 0

    def source(self, name: str) -> int:
        """Number of a source, for an Entry."""
        return self._sources.setdefault(name, len(self._sources))

    @property
    def n_frame(self) -> int:
        """Ids added to each document."""
        return len(self._before) + len(self._after)

    def add(self, entry: Entry, ids: np.ndarray) -> None:
        """One document; `ids` without frame."""
        self._entries.append(entry)
        self._ids.append(ids)
        self._held += ids.nbytes + DOCUMENT_BYTES
        if self._held >= self._limit:
            self.flush()

    def narrow(self, ids: np.ndarray) -> np.ndarray:
        """Ids in the type they are written in."""
        return ids.astype(self._dtype)

    def open_long(self) -> "LongDocument":
        """A document whose ids come bit by bit: a segment of its own."""
        self.flush()
        return LongDocument(self)

    def flush(self) -> None:
        """Sort what is held and write it."""
        if not self._entries:
            return
        columns = np.array([entry[:5] for entry in self._entries], np.uint64)
        order = np.lexsort((columns[:, 2], columns[:, 1], columns[:, 0]))
        lengths = np.array([len(ids) for ids in self._ids], np.int64)[order] + self.n_frame
        self._write_ids(order.tolist())
        self._write_rows(columns[order], lengths, [self._entries[i].name for i in order.tolist()])
        self._entries, self._ids, self._held = [], [], 0

    def _write_ids(self, order: list[int]) -> None:
        pieces: list[np.ndarray] = []
        pending = 0
        for i in order:
            pieces += (self._before, self._ids[i], self._after)
            pending += len(self._ids[i])
            if pending >= BATCH_TOKENS:
                self._files["tokens"].write(np.concatenate(pieces).data)
                pieces, pending = [], 0
        if pieces:
            self._files["tokens"].write(np.concatenate(pieces).data)

    def _write_rows(self, columns: np.ndarray, lengths: np.ndarray, names: list[bytes]) -> None:
        """Of documents whose ids were written just now, sorted by source and key."""
        rows = np.zeros(len(columns), ROW)
        name_bytes = np.array([len(name) for name in names], np.int64)
        rows["place"], rows["text_bytes"], rows["tokens"], rows["name_bytes"] = columns[:, 2], columns[:, 3], lengths, name_bytes
        rows["start"] = self._tokens + np.cumsum(lengths) - lengths
        rows["name"] = self._names + np.cumsum(name_bytes) - name_bytes
        self._files["rows"].write(rows.tobytes())
        self._files["keys"].write(columns[:, 1].astype(KEY).tobytes())
        self._files["names"].write(b"".join(names))
        listed = list(self._sources)
        begins = [0, *(np.flatnonzero(np.diff(columns[:, 0])) + 1).tolist(), len(columns)]
        for first, last in pairwise(begins):
            if np.any(columns[first:last, 1] != columns[first:last, 4]):  # keys are places
                self._files["hashes"].write(_hashes(columns[first:last, 4], self._rows + first).tobytes())
            self._segments.append((listed[int(columns[first, 0])], self._rows + first, self._rows + last))
        self._rows += len(columns)
        self._tokens += int(lengths.sum())
        self._names += int(name_bytes.sum())

    def close(self) -> None:
        """Everything is in the files."""
        self.flush()
        self._files["json"].write(json.dumps(self._segments).encode())
        for file in self._files.values():
            file.close()


def _hashes(hashes: np.ndarray, first: int) -> np.ndarray:
    order = np.argsort(hashes, kind="stable")
    found = np.zeros(len(hashes), HASH)
    found["hash"], found["row"] = hashes[order], first + order
    return found


class LongDocument:
    """Takes the ids of one document bit by bit."""

    def __init__(self, writer: RunWriter) -> None:
        self._writer, self.tokens = writer, 0
        self.write(writer._before)

    def write(self, ids: np.ndarray) -> None:
        """The next ids."""
        self._writer._files["tokens"].write(np.ascontiguousarray(ids, self._writer._dtype).data)
        self.tokens += len(ids)

    def discard(self) -> None:
        """It is no document after all: its ids lie there, and no row leads to them."""
        self._writer._tokens += self.tokens

    def close(self, entry: Entry) -> None:
        """All ids were given."""
        self.write(self._writer._after)
        columns = np.array([entry[:5]], np.uint64)
        self._writer._write_rows(columns, np.array([self.tokens], np.int64), [entry.name])


# ---- reading -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """Rows [first, last) of a run, sorted by key, of one source."""

    run: str
    first: int
    last: int


def segments_of(folder: Path, runs: list[str], source: str) -> list[Segment]:
    """All segments of one source, in the order of the input files."""
    found = []
    for run in runs:
        for name, first, last in json.loads(run_path(folder, run, "json").read_bytes()):
            if name == source:
                found.append(Segment(run, first, last))
    return found


def find_rows(folder: Path, segment: Segment, low: int, high: int, ending: str = "keys") -> Segment:
    """The part of a segment with keys (or hashes) in [low, high), by binary search on disk."""
    size = DTYPES[ending].itemsize
    descriptor = os.open(run_path(folder, segment.run, ending), os.O_RDONLY)
    try:

        def key(row: int) -> int:
            return int.from_bytes(os.pread(descriptor, KEY.itemsize, row * size), "little")

        rows = range(segment.first, segment.last)
        first = segment.first + bisect.bisect_left(rows, low, key=key)
        last = segment.first + bisect.bisect_left(rows, high, key=key)
    finally:
        os.close(descriptor)
    return Segment(segment.run, first, last)


def read_column(folder: Path, segment: Segment, ending: str) -> np.ndarray:
    """Keys, rows or hashes of a segment."""
    dtype = DTYPES[ending]
    data = read_bytes(run_path(folder, segment.run, ending), segment.first * dtype.itemsize, segment.last * dtype.itemsize)
    return np.frombuffer(data, dtype)


def read_name(folder: Path, run: str, row: np.void) -> str:
    """The id of a document."""
    start = int(row["name"])
    return read_bytes(run_path(folder, run, "names"), start, start + int(row["name_bytes"])).decode("utf-8")


def read_bytes(path: Path, start: int, end: int) -> bytearray:
    """Bytes [start, end) of a file of scratch; it was written whole, or its part would be done again."""
    data = bytearray(end - start)
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        view, at = memoryview(data), 0
        while at < len(data):
            size = file.readinto(view[at : at + 64 * BLOCK])
            assert size, f"{path}: ends at {start + at}, wanted {end}"
            at += size
    return data
