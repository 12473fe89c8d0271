"""Paragraphs of a file, by their numbers in it, as spans of characters in the attributes of its documents."""

from typing import BinaryIO

import numpy as np

from data_tools.dedupe.table import Row, Table
from data_tools.files import LineWriter
from data_tools.work.counts import Counts, add_counts

BLOCK = 2**18
"""Paragraphs at once."""


class SpanWriter:
    """Writes the lines of attributes of one file.

    `lengths`: a file: characters of every paragraph, uint32, without the separator, which has `separator` of them.
    """

    def __init__(self, out: LineWriter, table: Table, lengths: BinaryIO, separator: int, attribute: str) -> None:
        self._out, self._table, self._lengths, self._separator = out, table, lengths, separator
        self._attribute, self._names = attribute.encode(), table.names(0, len(table))
        self._begin = self._document = self._before = 0
        """Of the next block: its first paragraph, the document that it is of, and that one's characters before it."""
        self._held = np.zeros((0, 3), np.int64)
        """The last span [document, begin, end), which may go on."""
        self._open, self._json, self._characters, self._written = -1, list[bytes](), 0, 0
        """The document whose spans are being gathered, its spans, characters in them, and documents written."""
        self._found: dict[int, list[int]] = {}
        """Number of a source: documents with duplicates, characters in these."""

    def add(self, end: int, marked: np.ndarray) -> None:
        """Of the paragraphs up to `end`: ascending numbers of those that are duplicates."""
        while self._begin < end:
            stop = min(self._begin + BLOCK, end)
            first, last = np.searchsorted(marked, np.array([self._begin, stop], marked.dtype))
            self._gather(self._spans(stop, marked[first:last].astype(np.int64)))

    def close(self) -> None:
        """No other paragraph is one."""
        self._emit(self._held)
        self._flush()
        self._write_unmarked(len(self._table))
        self._out.close()

    def _spans(self, end: int, marked: np.ndarray) -> np.ndarray:
        """[document, begin, end) of the marked paragraphs of the next block, with their separators."""
        begin, document = self._begin, self._document
        rows = self._table.rows(document, document + end - begin + 1)  # no document is without a paragraph
        ends = rows[:, Row.ITEMS].astype(np.int64)
        last = int(np.searchsorted(ends, end - 1, "right"))
        ends = ends[: last + 1]
        size = np.fromfile(self._lengths, np.uint32, end - begin).astype(np.int64) + self._separator
        size[ends[ends <= end] - 1 - begin] -= self._separator
        stop = self._before + np.cumsum(size)
        starts = np.concatenate([[0], stop[ends[:last] - 1 - begin]])
        of = np.searchsorted(ends, marked, "right")
        until = stop[marked - begin] - starts[of]
        is_over = bool(ends[last] == end)
        self._before = 0 if is_over else int(stop[-1] - starts[last])
        self._begin, self._document = end, document + last + is_over
        return np.stack([of + document, until - size[marked - begin], until], axis=1)

    def _gather(self, spans: np.ndarray) -> None:
        """Join adjacent ones, hold the last back, emit the others."""
        spans = np.concatenate([self._held, spans])
        if not len(spans):
            return
        is_new = np.ones(len(spans), np.bool_)
        is_new[1:] = (spans[1:, 0] != spans[:-1, 0]) | (spans[1:, 1] != spans[:-1, 2])
        begins = np.flatnonzero(is_new)
        joined = spans[begins]
        joined[:, 2] = spans[np.append(begins[1:], len(spans)) - 1, 2]
        self._held = joined[-1:]
        self._emit(joined[:-1])

    def _emit(self, spans: np.ndarray) -> None:
        """Spans of documents in order."""
        if not len(spans):
            return
        places = spans[:, 1:].ravel().tolist()
        begins = np.flatnonzero(np.diff(spans[:, 0], prepend=-1))
        characters = np.add.reduceat(spans[:, 2] - spans[:, 1], begins).tolist()
        documents, ends = spans[begins, 0].tolist(), [*begins[1:].tolist(), len(spans)]
        for document, first, end, number in zip(documents, begins.tolist(), ends, characters, strict=True):
            if document != self._open:
                self._flush()
                self._open = document
            self._json.append(b",".join([b"[%d,%d,1.0]"] * (end - first)) % tuple(places[2 * first : 2 * end]))
            self._characters += number

    def _flush(self) -> None:
        """Write the document that is open, and those before it, which have no duplicates."""
        if self._open < 0:
            return
        self._write_unmarked(self._open)
        row = self._table.rows(self._open, self._open + 1)[0]
        share = b"%.6g" % (self._characters / int(row[Row.CHARACTERS]))
        told = (self._attribute, b",".join(self._json), self._attribute, int(row[Row.CHARACTERS]), share)
        self._out.write(next(self._names) + b',"attributes":{"%b":[%b],"%b_frac":[[0,%d,%b]]}}' % told)
        found = self._found.setdefault(int(row[Row.SOURCE]), [0, 0])
        found[0] += 1
        found[1] += self._characters
        self._written += 1
        self._open, self._json, self._characters = -1, [], 0

    def _write_unmarked(self, end: int) -> None:
        for _ in range(self._written, end):
            self._out.write(next(self._names) + b',"attributes":{}}')
        self._written = max(self._written, end)

    def counts(self) -> Counts:
        """Documents and characters, in all and by source."""
        total: Counts = {}
        for number, (source, documents, size, characters) in enumerate(self._table.totals()):
            with_duplicates, duplicate = self._found.get(number, [0, 0])
            values = {
                "documents_in": documents,
                "documents_with_duplicates": with_duplicates,
                "text_bytes_in": size,
                "characters": characters,
                "characters_duplicate": duplicate,
            }
            add_counts(total, {**values, "by_source": {source: dict(values)}})
        return total
