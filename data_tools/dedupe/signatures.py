"""MinHash signatures of documents: made in one pass over a file, kept on disk by place, read back for any documents.

A document's *place* is file << 40 | (line - 1) << 8 | priority of its source: places of one file follow each other. Its *number*
is the same with the priority first (`number_of`): of equal documents the one with the smallest number is kept.

Per file, in the scratch folder: `<part>.keys` (pairs of band key and number), `<part>.values` (the low byte of each MinHash
value, N a line), `<part>.documents` (DOCUMENT, one a line) and `<part>.ids` (UTF-8, one after the other).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_tools.dedupe import minhash_kernels as kernels
from data_tools.dedupe.config import MinhashConfig
from data_tools.dedupe.sorted_pairs import PairWriter
from data_tools.documents import Line
from data_tools.tokenize.encoder import Encoder
from data_tools.work.counts import count
from data_tools.work.part import PartContext

DOCUMENT = np.dtype([("id_end", "<u8"), ("bytes", "<u8"), ("chars", "<u4"), ("source", "<u4")])
"""End of its id in the file of ids, size of its text in UTF-8 and in characters, the source's place in the part's `by_source`."""
NO_DOCUMENT = 2**32 - 1
"""Source of a line that is no document."""
_BUFFER = 4096
"""Lines that are written at once, and looked up at once."""
_EIGHT, _FIFTY_SIX = np.uint64(8), np.uint64(56)


Places = TypeVar("Places", np.ndarray, np.uint64)


def number_of(place: Places) -> Places:
    """Numbers of places."""
    return (place >> _EIGHT) | (place << _FIFTY_SIX)


def place_of(number: Places) -> Places:
    """Places of numbers."""
    return (number << _EIGHT) | (number >> _FIFTY_SIX)


def file_and_line(place: int) -> tuple[int, int]:
    """Of a place: index of the file, and of the line in it, both from 0."""
    return place >> 40, place >> 8 & 0xFFFFFFFF


class Hasher:
    """Signatures of one document after the other."""

    def __init__(self, config: MinhashConfig) -> None:
        n = config.bands * config.rows
        rng = np.random.Generator(np.random.PCG64(config.seed))
        self._multiply = rng.integers(0, 2**32, n, dtype=np.uint32) | np.uint32(1)
        self._power = np.uint64(pow(int(kernels.BASE), config.shingle, 2**64))
        self._state = np.zeros(kernels.RING + config.shingle, np.uint64)
        self._encoder = Encoder(Path(config.tokenizer)) if config.tokenizer else None
        self._bands, self._shingle = config.bands, config.shingle
        self.least = np.empty(n, np.uint32)
        """The MinHash values of the last document."""
        self.is_short = False
        """Whether the last document has words, but no more than one shingle."""

    def hash(self, line: Line) -> tuple[np.ndarray, int, int]:
        """(keys, UTF-8 bytes, characters) of a document. No keys: it has no word. One: it has no more words than one shingle, and
        is compared as a whole. Else one for each band."""
        self._state[:] = 0
        self.least[:] = 2**32 - 1
        n_bytes = n_chars = 0
        for piece in line.pieces():
            data = piece.encode()
            n_bytes, n_chars = n_bytes + len(data), n_chars + len(piece)
            if self._encoder is None:
                kernels.add_text(np.frombuffer(data, np.uint8), self._state, self._power, self._multiply, self.least)
            else:
                ids = self._encoder.encode([piece])[0]
                kernels.add_tokens(ids, self._state, self._power, self._multiply, self.least)
        words = kernels.end_text(self._state, self._power, self._multiply, self.least)
        self.is_short = 0 < words <= self._shingle
        if words <= self._shingle:
            return self._state[kernels.EXACT : kernels.EXACT + (words > 0)].copy(), n_bytes, n_chars
        keys = np.empty(self._bands, np.uint64)
        kernels.band_keys(self.least, keys)
        return keys, n_bytes, n_chars


@dataclass(frozen=True)
class Scratch:
    """Where the signatures of all files lie."""

    folder: Path
    names: list[str]
    """Of the parts, in the order of the files."""
    config: MinhashConfig
    priority: list[str]

    @property
    def n_values(self) -> int:
        """Of a signature."""
        return self.config.bands * self.config.rows

    def path(self, file: int, ending: str) -> Path:
        """Of one file's `keys`, `values`, `documents` or `ids`."""
        return self.folder / f"{self.names[file]}.{ending}"

    def values_of(self, places: np.ndarray) -> np.ndarray:
        """Signatures [documents, values] of a few places, read from disk."""
        found = np.empty((len(places), self.n_values), np.uint8)
        for file, lines, at in _by_file(places):
            values = np.memmap(self.path(file, "values"), np.uint8, "r").reshape(-1, self.n_values)
            found[at] = values[lines]
        return found

    def names_of(self, places: np.ndarray) -> list[tuple[str, int]]:
        """(id, number of the source among those of its file) of a few places."""
        found = [("", 0)] * len(places)
        for file, lines, at in _by_file(places):
            documents = np.memmap(self.path(file, "documents"), DOCUMENT, "r")
            with open(self.path(file, "ids"), "rb") as ids:
                for line, i in zip(lines.tolist(), at.tolist(), strict=True):
                    start = int(documents[line - 1]["id_end"]) if line else 0
                    ids.seek(start)
                    id = ids.read(int(documents[line]["id_end"]) - start).decode()
                    found[i] = (id, int(documents[line]["source"]))
        return found

    def similarities(self, places: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Estimated Jaccard similarities (float32) of pairs of documents, by the low bytes of their values: of two that share
        nothing one in 256 is equal by chance, which is taken off. Standard error: sqrt(s * (1 - s) / values).

        Source: P. Li, A. C. Koenig, b-Bit minwise hashing, WWW 2010.
        """
        found = np.empty(len(places), np.float32)
        for start in range(0, len(places), _BUFFER):
            some = slice(start, start + _BUFFER)
            equal = (self.values_of(places[some]) == self.values_of(others[some])).mean(1)
            found[some] = np.maximum(0, (equal - 1 / 256) / (1 - 1 / 256))
        return found


def _by_file(places: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(file, lines, indices into `places`) of each file among them."""
    files, lines = (places >> np.uint64(40)).astype(np.int64), (places >> _EIGHT & np.uint64(0xFFFFFFFF)).astype(np.int64)
    order = np.argsort(places, kind="stable")
    for some in np.split(order, np.flatnonzero(np.diff(files[order])) + 1):
        if len(some):
            yield int(files[some[0]]), lines[some], some


def write_signatures(context: PartContext, scratch: Scratch) -> None:
    """Phase: one file of documents. `payload`: (number of the file, DocumentFile)."""
    number, file = context.part.payload
    counts = context.counts
    writer = _Writer(context, scratch, number)
    hasher = Hasher(scratch.config)
    sources: dict[str, int] = {}
    ranks = {source: rank for rank, source in enumerate(scratch.priority)}
    by_source = counts.setdefault("by_source", {})
    counts.update(documents_without_words=0, short_documents=0)
    for line in context.read(file.path):
        keys, n_bytes, n_chars = hasher.hash(line)
        source = sources.setdefault(line.source, len(sources))
        rank = ranks.get(line.source, len(ranks))
        writer.add(line, (n_bytes, n_chars, source, rank), keys, hasher.least)
        counts["documents_without_words"] += int(len(keys) == 0)
        counts["short_documents"] += int(hasher.is_short)
        for row in (counts, by_source.setdefault(line.source, {})):
            count(row, "documents", 1)
            count(row, "text_bytes", n_bytes)
        del line  # as in read_lines
    writer.close()


class _Writer:
    """The four files of one part."""

    def __init__(self, context: PartContext, scratch: Scratch, number: int) -> None:
        self._number, self._n_values = number, scratch.n_values
        self._keys = PairWriter(context.output(scratch.path(number, "keys")))
        endings = ("values", "documents", "ids")
        self._files = [open(context.output(scratch.path(number, ending)), "wb") for ending in endings]  # noqa: SIM115
        self._values = np.zeros((_BUFFER, scratch.n_values), np.uint8)
        self._documents = np.zeros(_BUFFER, DOCUMENT)
        self._ids: list[bytes] = []
        self._some_keys: list[np.ndarray] = []
        self._some_numbers: list[np.ndarray] = []
        self._done = self._n = self._id_end = 0

    def add(self, line: Line, facts: tuple[int, int, int, int], keys: np.ndarray, least: np.ndarray) -> None:
        """The next document; lines before it that are none get an empty entry. `facts`: bytes, characters, source, rank."""
        n_bytes, n_chars, source, rank = facts
        while self._done + self._n < line.line - 1:
            self._entry(0, 0, NO_DOCUMENT)
        place = np.uint64(self._number << 40 | (line.line - 1) << 8 | rank)
        if len(keys):
            self._some_keys.append(keys)
            self._some_numbers.append(np.full(len(keys), number_of(place)))
        self._values[self._n] = least  # the low bytes
        id = line.id.encode()
        self._ids.append(id)
        self._id_end += len(id)
        self._entry(n_bytes, n_chars, source)

    def _entry(self, n_bytes: int, n_chars: int, source: int) -> None:
        self._documents[self._n] = (self._id_end, n_bytes, n_chars, source)
        self._n += 1
        if self._n == _BUFFER:
            self._flush()

    def _flush(self) -> None:
        values, documents, ids = self._files
        self._values[: self._n].tofile(values)
        self._documents[: self._n].tofile(documents)
        ids.write(b"".join(self._ids))
        if self._some_keys:
            self._keys.add(np.concatenate(self._some_keys), np.concatenate(self._some_numbers))
        self._done, self._n = self._done + self._n, 0
        self._ids, self._some_keys, self._some_numbers = [], [], []
        self._values[:] = 0

    def close(self) -> None:
        """Everything is in the files."""
        self._flush()
        self._keys.close()
        for file in self._files:
            file.close()
