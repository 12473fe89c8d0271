"""Documents to what the rules count: one pass over the text, then its repeated words, lines and paragraphs, in bounded memory."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from data_tools.documents import Line
from data_tools.tag import gram_kernels as gram
from data_tools.tag import scan_kernels as kernel

CHUNK = 2**18
"""Bytes that are scanned at once."""
PHRASES = {
    "javascript": kernel.JAVASCRIPT,
    "lorem ipsum": kernel.LOREM_IPSUM,
    "terms of use": kernel.POLICY,
    "privacy policy": kernel.POLICY,
    "cookie policy": kernel.POLICY,
    "uses cookies": kernel.POLICY,
    "use of cookies": kernel.POLICY,
    "use cookies": kernel.POLICY,
}
"""What C4 looks for in a line, in lower case. Source: tensorflow/datasets, text/c4_utils.py."""
LINE_BITS = {
    "lines_with_no_ending_punctuation": kernel.NO_PUNCTUATION,
    "lines_with_too_few_words": kernel.FEW_WORDS,
    "lines_with_ending_ellipsis": kernel.ELLIPSIS,
    "lines_with_javascript": kernel.JAVASCRIPT,
    "lines_with_policy": kernel.POLICY,
    "lines_with_long_word": kernel.LONG_WORD,
}
_SPAN_BYTES = 48
"""At most, of a span as JSON."""
WORDS, LINES, PARAGRAPHS = 0, 1, 2
_SLOT_BYTES, _ITEM_BYTES = 20, 12
_STRETCH = 2**18
"""Items that are read at once."""


@dataclass
class Needs:
    """What rules ask for beside the counts of the one pass."""

    grams: int = 0
    """Longest n-gram of words to count; 0: none."""
    lines: bool = False
    paragraphs: bool = False
    spans: bool = False
    """Of lines with LINE_BITS."""


@dataclass
class Scanned:
    """What was counted in one document. Rows are those of the kernels' constants."""

    state: list[int]
    n_bytes: int
    grams: list[list[int]]
    """Row n - 1: totals of n-grams."""
    lines: list[int]
    paragraphs: list[int]
    head: list[int]
    """Characters of the first words, and of the last."""
    tail: list[int]
    median: float
    spans: dict[str, msgspec.Raw] = field(default_factory=dict)

    @property
    def whole(self) -> tuple[int, int]:
        """Start and end of the document."""
        return 0, self.state[kernel.CHARS]


@cache
def characters() -> np.ndarray:
    """uint8 by code point: SPACE where str.isspace, ALPHA where str.isalpha."""
    points = range(0x110000)
    letters, spaces = (np.frombuffer(bytes(map(test, map(chr, points))), np.uint8) for test in (str.isalpha, str.isspace))
    return letters * np.uint8(kernel.ALPHA) + spaces * np.uint8(kernel.SPACE)


def automaton(phrases: dict[str, int]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Classes of ASCII characters, next states and found bits. Source: A. Aho, M. Corasick, Efficient string matching (1975)."""
    letters = sorted({c for phrase in phrases for c in phrase})
    classes = np.zeros(128, np.uint8)
    for i, c in enumerate(letters, 1):
        classes[ord(c)] = classes[ord(c.upper())] = i
    tree: list[dict[int, int]] = [{}]
    found = [0]
    for phrase, bits in phrases.items():
        state = 0
        for c in phrase:
            letter = int(classes[ord(c)])
            if letter not in tree[state]:
                tree[state][letter] = len(tree)
                tree.append({})
                found.append(0)
            state = tree[state][letter]
        found[state] |= bits
    following = np.zeros((len(tree), len(letters) + 1), np.int16)
    following[0, list(tree[0])] = list(tree[0].values())
    fallback = [0] * len(tree)
    order = list(tree[0].values())
    for state in order:
        following[state] = following[fallback[state]]
        for letter, child in tree[state].items():
            fallback[child] = int(following[state, letter])
            following[state, letter] = child
            order.append(child)
        found[state] |= found[fallback[state]]
    return classes, (following, np.array(found, np.uint8))


def chunks(line: Line, size: int = CHUNK) -> Iterator[np.ndarray]:
    """The text in UTF-8, in stretches that end between two characters; none of an empty text."""
    for piece in line.pieces():
        data = piece.encode("utf-8")
        start = 0
        while start < len(data):
            end = min(start + size, len(data))
            while end < len(data) and data[end] & 0xC0 == 0x80:
                end -= 1
            yield np.frombuffer(data, np.uint8, end - start, start)
            start = end


class _Pass:
    """One walk over a document: the kernel's state, and the buffers it writes to."""

    def __init__(self, size: int) -> None:
        n_words, n_lines = size // 2 + 2, size + 2
        self.words = (np.empty(n_words, np.uint64), np.empty(n_words, np.uint32))
        self.lines = tuple(np.empty(n_lines, kind) for kind in (np.uint64, np.uint32, np.int64, np.int64, np.uint8))
        self.paragraphs = (np.empty(n_words, np.uint64), np.empty(n_words, np.uint32))
        self.state, self.hashes = np.zeros(kernel.N_STATE, np.int64), np.zeros(3, np.uint64)
        self.histogram = np.zeros(kernel.HISTOGRAM + 1, np.int64)
        self.classes, self.automaton = automaton(PHRASES)
        self.table = characters()

    def begin(self) -> None:
        self.state[:] = 0
        self.hashes[:] = 0
        self.histogram[:] = 0

    def add(self, data: np.ndarray, is_last: bool) -> tuple[int, int, int]:
        found: tuple[int, int, int] = kernel.scan(
            data, self.table, self.classes, self.automaton, self.state, self.hashes,
            self.words, self.lines, self.paragraphs, self.histogram, is_last,
        )  # fmt: skip
        return found

    def items(self, kind: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Hashes and characters of the words, lines or paragraphs of the last chunk."""
        both = (self.words, self.lines, self.paragraphs)[kind]
        return both[0][:number], both[1][:number]


class _Items:
    """Hashes and characters of the words, lines or paragraphs of a document, in memory as long as there are not more than `most`;
    then in a file without a name, of which nothing is left however the process ends."""

    def __init__(self, most: int, scratch: Path | None) -> None:
        self._most, self._scratch = most, scratch
        self.number = 0
        self._held: list[tuple[np.ndarray, np.ndarray]] = []
        self._files: list[BinaryIO] = []

    def add(self, hashes: np.ndarray, chars: np.ndarray, is_last: bool) -> None:
        """The next ones; copied, unless they are the last."""
        self.number += len(hashes)
        if not self._files:
            self._held.append((hashes, chars) if is_last else (hashes.copy(), chars.copy()))
            if self.number <= self._most:
                return
            self._files = [tempfile.TemporaryFile(dir=self._scratch) for _ in range(2)]  # noqa: SIM115 - closed by close
            for some in self._held:
                self._write(*some)
            self._held = []
        else:
            self._write(hashes, chars)

    def _write(self, hashes: np.ndarray, chars: np.ndarray) -> None:
        self._files[0].write(hashes.data)
        self._files[1].write(chars.data)

    def _joined(self) -> tuple[np.ndarray, np.ndarray]:
        if len(self._held) == 1:
            return self._held[0]
        hashes, chars = (np.concatenate(column) for column in zip(*self._held, strict=True))
        return hashes, chars

    def whole(self) -> tuple[np.ndarray, np.ndarray] | None:
        """All of them; None: they are too many, use `stretches`."""
        return None if self._files else self._joined()

    def stretches(self, overlap: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """(hashes, characters, number of the first), each beginning with the last `overlap` before it."""
        for file in self._files:
            file.flush()
        hashes, chars = (file.fileno() for file in self._files)
        for first in range(0, self.number - overlap, _STRETCH):
            n = min(_STRETCH + overlap, self.number - first)
            read = os.pread(hashes, 8 * n, 8 * first), os.pread(chars, 4 * n, 4 * first)
            yield np.frombuffer(read[0], np.uint64), np.frombuffer(read[1], np.uint32), first

    def close(self) -> None:
        """Free what they take."""
        self._held = []
        for file in self._files:
            file.close()


class Scanner:
    """Made once per process. A sixteenth of `memory_mb` is for the table of hashes, another for the words of a document; those of
    one that has more lie in a file while they are counted, range by range of their hashes."""

    def __init__(self, needs: Needs, memory_mb: int = 300, chunk: int = CHUNK) -> None:
        self.needs, self.chunk = needs, chunk
        room = memory_mb * 2**20 // 16
        self.most_items = room // (2 * _ITEM_BYTES)  # half: they are held twice while they are joined
        slots = 2 ** ((room // _SLOT_BYTES).bit_length() - 1)
        self.table = (
            np.empty(slots, np.uint64),
            np.zeros(slots, np.uint32),
            np.empty(slots, np.uint32),
            np.empty(slots, np.uint32),
        )
        self._pass = _Pass(chunk)
        self._out = np.empty(0, np.uint8)

    def scan(self, line: Line, scratch: Path | None = None) -> Scanned:
        """One document. `scratch`: folder for that file (None: the system's for temporary ones)."""
        walk, needs = self._pass, self.needs
        walk.begin()
        wanted = [kind for kind, is_needed in enumerate((needs.grams > 0, needs.lines, needs.paragraphs)) if is_needed]
        items = {kind: _Items(self.most_items // (1 if kind == WORDS else 2), scratch) for kind in wanted}
        n_bytes = 0
        long_words: list[int] = []
        spans = {name: (np.array([-1, -1], np.int64), bytearray(b"[")) for name in LINE_BITS} if needs.spans else {}
        head: list[int] = []
        tail: list[int] = []
        stretches = _with_last(chunks(line, self.chunk))
        for data, is_last in stretches:
            numbers = walk.add(data, is_last)
            n_bytes += len(data)
            sizes = walk.words[1][: numbers[0]]
            head += sizes[: gram.MOST - len(head)].tolist() if len(head) < gram.MOST else []
            tail = [*tail, *sizes[-gram.MOST :].tolist()][-gram.MOST :]
            if walk.histogram[-1] > len(long_words):
                long_words += sizes[sizes >= kernel.HISTOGRAM].tolist()
            for kind in wanted:
                items[kind].add(*walk.items(kind, numbers[kind]), is_last)
            if spans:
                self._spans(spans, numbers[1], line.is_long)
        median = self._median(long_words)
        state = walk.state.tolist()
        told = {name: self._json(*found) for name, found in spans.items() if found[0][0] >= 0}
        totals: dict[int, list[list[int]]] = {WORDS: [], LINES: [[]], PARAGRAPHS: [[]]}
        for kind in wanted:
            totals[kind] = self._totals(kind, items[kind])
            items[kind].close()
        return Scanned(state, n_bytes, totals[WORDS], totals[LINES][0], totals[PARAGRAPHS][0], head, tail, median, told)

    def _median(self, long_words: list[int]) -> float:
        n, histogram = int(self._pass.state[kernel.WORDS]), self._pass.histogram
        if not n:
            return 0.0
        found = []
        for rank in ((n - 1) // 2, n // 2):
            length = kernel.length_at(histogram, rank)
            found.append(length if length < kernel.HISTOGRAM else sorted(long_words)[rank - (n - len(long_words))])
        return sum(found) / 2

    # ---- spans of lines --------------------------------------------------------------------------------------------------

    def _spans(self, spans: dict[str, tuple[np.ndarray, bytearray]], n_lines: int, merge: bool) -> None:
        flags = int(np.bitwise_or.reduce(self._pass.lines[4][:n_lines])) if n_lines else 0
        if len(self._out) < (n_lines + 1) * _SPAN_BYTES:
            self._out = np.empty((n_lines + 1) * _SPAN_BYTES, np.uint8)
        for name, bit in LINE_BITS.items():
            if flags & bit:
                pending, out = spans[name]
                end = kernel.write_spans(self._pass.lines, n_lines, bit, pending, merge, self._out)
                out += self._out[:end].data

    def _json(self, pending: np.ndarray, out: bytearray) -> msgspec.Raw:
        out += b"[%d,%d,1.0]]" % (pending[0], pending[1])
        return msgspec.Raw(out)

    # ---- what repeats ----------------------------------------------------------------------------------------------------

    def _totals(self, kind: int, items: _Items) -> list[list[int]]:
        """Totals of n-grams of words, or of lines or paragraphs."""
        up_to = self.needs.grams if kind == WORDS else 1
        totals = np.zeros((up_to, gram.N_TOTALS), np.int64)
        size = items.number // 8 + 2 if kind == WORDS else 0
        marks = (np.zeros(size, np.uint8), np.zeros(size, np.uint8))
        whole = items.whole()
        if whole is None:
            self._count_in_ranges(items, marks, totals)
        elif items.number:
            gram.count_grams(*whole, up_to, self.table, marks, totals)
        rows: list[list[int]] = totals.tolist()
        return rows

    def _count_in_ranges(self, items: _Items, marks: tuple[np.ndarray, np.ndarray], totals: np.ndarray) -> None:
        """As count_grams, of what memory does not hold: all items are read for every n and every range of hashes."""
        (before, after), candidates, number = marks, items.number, items.number
        for n in range(1, len(totals) + 1):
            if not candidates or number < n:
                return
            slots = gram.slots_for(candidates, len(self.table[0]))
            table = tuple(column[:slots] for column in self.table)
            after[:] = 0
            window = np.array([0, gram.FULL, 0, 0], np.uint64)
            while True:
                for hashes, chars, position in items.stretches(n - 1):
                    gram.add(hashes, chars, n, position, (before, after), table, window)
                gram.total(table, totals[n - 1])
                if window[1] == gram.FULL:
                    break
                window[0], window[1], window[2] = window[1] + np.uint64(1), gram.FULL, 0
            candidates = int(window[3])
            before, after = after, before


def _with_last(stretches: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, bool]]:
    """Each with whether it is the last; of an empty text one that is empty."""
    held = next(stretches, np.zeros(0, np.uint8))
    for data in stretches:
        yield held, False
        held = data
    yield held, True
