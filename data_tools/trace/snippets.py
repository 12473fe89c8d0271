"""A span as it stands in a document: its tokens and those around it, as text.

Tokens may hold parts of characters. Bytes are joined first and cut where characters begin: a character that the edge of what is
shown cuts is left out, one that lies across the beginning or end of the span goes to the earlier side.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from olmo_train.data.shards import ShardFile
from olmo_train.tokenizer import Tokenizer

MARGIN = 32
"""Tokens read beyond what is shown, so that personal data which the edge cuts is found."""


@dataclass(frozen=True)
class Context:
    """Texts, one after the other: margin, before, match, after, margin. The margins are not shown."""

    parts: tuple[str, str, str, str, str]
    is_cut_before: bool
    is_cut_after: bool
    """Whether the document goes on beyond what is shown."""

    @property
    def shown(self) -> str:
        """What is shown, in one."""
        return "".join(self.parts[1:4])


class SnippetReader:
    """Text of tokens, by the bytes of each id (or by the tokenizer's own `decode`, if it is not byte-level)."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size`: of the shards; ids that the tokenizer does not have stand for nothing."""
        self._tokenizer, self._bytes = tokenizer, tokenizer.id_bytes()
        if self._bytes is not None:
            self._bytes += [b""] * max(0, vocab_size - len(self._bytes))

    def read(self, file: ShardFile, document: tuple[int, int], span: tuple[int, int], context: int) -> Context:
        """The span [start, end) of a file with `context` tokens on each side, cut at the ends of its document [start, end).

        `document` has no end-of-text token.
        """
        before, after = max(document[0], span[0] - context), min(document[1], span[1] + context)
        first, last = max(document[0], before - MARGIN), min(document[1], after + MARGIN)
        cuts = np.array([before, *span, after]) - first
        parts = self.decode(file.read(first, last), cuts.tolist())
        return Context(parts, before > document[0], after < document[1])

    def decode(self, ids: np.ndarray, cuts: list[int]) -> tuple[str, str, str, str, str]:
        """Texts of the tokens before, between and after four cuts."""
        numbers = ids.tolist()
        pieces = [numbers[a:b] for a, b in zip([0, *cuts], [*cuts, len(numbers)], strict=True)]
        table = self._bytes
        if table is None:
            decoded = [self._tokenizer.decode(piece) if piece else "" for piece in pieces]
        else:
            decoded = _decode_pieces([b"".join(map(table.__getitem__, piece)) for piece in pieces])
        return (decoded[0], decoded[1], decoded[2], decoded[3], decoded[4])


def _decode_pieces(pieces: list[bytes]) -> list[str]:
    """Texts of pieces of UTF-8; bytes that go on with a character of the piece before move there. Bytes that are no UTF-8 in the
    middle become U+FFFD; at the two ends of all they are left out."""
    whole = b"".join(pieces)
    cuts, at = [_next_character(whole, 0)], 0
    for piece in pieces[:-1]:
        at += len(piece)
        cuts.append(max(cuts[-1], _next_character(whole, at)))
    end = max(cuts[0], _whole_end(whole))
    cuts = [min(cut, end) for cut in [*cuts, end]]
    return [whole[a:b].decode("utf-8", "replace") for a, b in pairwise(cuts)]


def _next_character(data: bytes, at: int) -> int:
    """The first place from `at` on where a character may begin, at most three bytes on."""
    end = min(len(data), at + 3)
    while at < end and data[at] & 0xC0 == 0x80:
        at += 1
    return at


def _whole_end(data: bytes) -> int:
    """Where the last whole character ends."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            wanted = 1 if byte < 0x80 else 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4
            return len(data) if back >= wanted else len(data) - back
    return len(data)
