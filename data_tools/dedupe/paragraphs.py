"""Paragraphs of documents, of whatever length, in bounded memory: their keys, lengths, and whether they have words."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import AnyStr

import numpy as np
import xxhash

from data_tools.documents import Line

PIECE = 2**18
"""Characters (or bytes of JSON) of a text that are split at once: no list gets long where every line has one letter."""
_ONLY_STR = (b"\x1c", b"\x1d", b"\x1e", b"\x1f")
"""White space for `str`, and not for `bytes`."""
LONG = 2**16
"""Characters from which a paragraph that goes on in the next piece is hashed bit by bit."""


class Splitter:
    """Splits one document after the other, as `text.split(separator)` does. `take` gives what was found."""

    def __init__(self, separator: str, min_words: int) -> None:
        self._separator, self._bytes, self._min_words = separator, separator.encode(), min_words
        self._keys, self._lengths, self._short = bytearray(), array("I"), bytearray()
        self._rest = ""
        self._open: _OpenParagraph | None = None

    def __len__(self) -> int:
        """Paragraphs that were found and not taken."""
        return len(self._lengths)

    def split(self, line: Line) -> Iterator[tuple[int, int]]:
        """Split a document; yields (characters, bytes) of each piece of it, after which `take` may be called."""
        self._rest, self._open = "", None
        for piece in _pieces(line):
            size = self._feed(piece)
            yield len(piece), size
        if self._open is None:
            self._add([self._rest], self._rest.encode())
        else:
            self._close(self._rest)
        yield 0, 0

    def take(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(keys uint64 (n, 2), characters uint32 (n,) without separators, whether each has enough words) of all found so far."""
        lengths = np.frombuffer(self._lengths, np.uint32)
        keys = np.frombuffer(self._keys, ">u8").reshape(-1, 2)
        has_words = (lengths > 0) & (np.frombuffer(self._short, np.uint8) == 0)
        self._keys, self._lengths, self._short = bytearray(), array("I"), bytearray()
        return keys, lengths, has_words

    def _feed(self, piece: str) -> int:
        """Use up what ends within the piece; returns its bytes."""
        text = self._rest + piece
        data = text.encode()
        if len(data) == len(text) and self._open is None and not any(map(data.__contains__, _ONLY_STR)):
            return self._feed_ascii(data)
        size = len(data) - (len(self._rest) if self._rest.isascii() else len(self._rest.encode()))
        parts = text.split(self._separator)
        self._rest = parts.pop()
        if parts and self._open is not None:
            self._close(parts[0])
            data = data[len(parts[0].encode()) + len(self._bytes) :]
            del parts[0]
        if parts:
            self._add(parts, data)
        self._cut_rest()
        return size

    def _feed_ascii(self, data: bytes) -> int:
        """The same of characters that are a byte each: no paragraph becomes a string."""
        size = len(data) - len(self._rest)
        parts = data.split(self._bytes)
        self._rest = parts.pop().decode()
        self._note(parts, parts, bytes.isspace)
        self._cut_rest()
        return size

    def _cut_rest(self) -> None:
        """Of a paragraph that is long already, only the end is held."""
        if len(self._rest) > LONG:
            cut = len(self._rest) - len(self._separator) + 1  # the separator may have begun
            self._open = self._open or _OpenParagraph()
            self._open.add(self._rest[:cut])
            self._rest = self._rest[cut:]

    def _add(self, parts: list[str], data: bytes) -> None:
        """Whole paragraphs, and the bytes they and more are in."""
        self._note(data.split(self._bytes, len(parts))[: len(parts)], parts, str.isspace)

    def _note(self, encoded: list[bytes], parts: Sequence[AnyStr], is_space: Callable[[AnyStr], bool]) -> None:
        """Whole paragraphs: their bytes, and what has a character where they have one."""
        self._keys += b"".join(map(xxhash.xxh3_128_digest, encoded))
        self._lengths.extend(map(len, parts))
        if self._min_words > 1:
            self._short.extend([len(part.split(None, self._min_words)) < self._min_words for part in parts])
        else:
            self._short.extend(map(is_space, parts))

    def _close(self, last: str) -> None:
        assert self._open is not None
        self._open.add(last)
        self._keys += self._open.hasher.digest()
        self._lengths.append(self._open.length)
        self._short.append(self._open.words < max(self._min_words, 1))
        self._open = None


class _OpenParagraph:
    """One that goes on in the next piece."""

    def __init__(self) -> None:
        self.hasher, self.length, self.words, self._in_word = xxhash.xxh3_128(), 0, 0, False

    def add(self, text: str) -> None:
        """What follows."""
        if not text:
            return
        self.hasher.update(text.encode())
        self.length += len(text)
        self.words += len(text.split()) - (self._in_word and not text[0].isspace())
        self._in_word = not text[-1].isspace()


def _pieces(line: Line) -> Iterator[str]:
    if line.is_long:
        yield from line.pieces(PIECE)
        return
    text = line.text
    for first in range(0, len(text), PIECE):
        yield text[first : first + PIECE]
