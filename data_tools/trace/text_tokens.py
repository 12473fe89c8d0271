"""A text as the corpus would have it: ids, the text and the characters of each token, and where words begin and end."""

import unicodedata
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np

from olmo_train.errors import ConfigError
from olmo_train.tokenizer import Tokenizer

JOINER = "\u200d"
# Scripts that put no space between words: each of their characters is taken as a word, as ICU does where it has no dictionary.
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),
    (0x3021, 0x30FF),  # numerals, Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
)


@dataclass(frozen=True)
class TextTokens:
    """A text of T tokens.

    A token may hold part of a character (byte-level BPE has several tokens for an emoji): its characters are then all that it
    touches, so that neighbours overlap.
    """

    text: str
    ids: list[int]
    texts: list[str]
    """Of each token; a character that several tokens share is the first one's. They join to the text."""
    char_starts: list[int]
    char_ends: list[int]
    """Characters [start, end) of each token."""
    is_edge: np.ndarray
    """bool (T + 1,): whether a word may begin or end before token t; never inside a character."""
    spaced: "TextTokens | None" = None
    """The same text after a space, as its first word stands within a document; None if that changes nothing."""

    def __len__(self) -> int:
        return len(self.ids)


def encode(tokenizer: Tokenizer, text: str) -> TextTokens:
    """Tokens of a text as the corpus has it: a special token that is spelt out stays text.

    Raises:
        ConfigError: the text has half of a surrogate pair, which no UTF-8 document can hold.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"text: character {error.start} is U+{ord(text[error.start]):04X}, half of a surrogate pair, which is no text; "
            "decode the bytes that it came from as UTF-8"
        ) from None
    edges = word_edges(text)
    plain = _encode(tokenizer, text, edges)
    if not text or text[0].isspace():
        return plain
    spaced = _encode(tokenizer, " " + text, np.append(True, edges))
    if spaced.ids == plain.ids:
        return plain
    return replace(plain, spaced=spaced)


def word_edges(text: str) -> np.ndarray:
    """bool (characters + 1,): whether a word may begin or end before character i.

    Words are runs of letters, digits, underscores and the marks on them; every other character stands alone, as do those of
    scripts without spaces. No edge parts a mark, a variation selector, a skin tone or a joiner from what it belongs to.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    kinds = ASCII_KINDS[np.minimum(codes, 127)]
    for code in np.unique(codes[codes > 127]).tolist():
        kinds[codes == code] = _kind(chr(code))
    edges = np.ones(len(text) + 1, np.bool_)
    if len(text) > 1:
        before, after = _carry_marks(kinds)[:-1], kinds[1:]
        joined = ((before == WORD) & (after == WORD)) | (after == MARK) | (kinds[:-1] == JOIN) | (after == JOIN)
        edges[1:-1] = ~joined
    return edges


WORD, OTHER, MARK, JOIN = range(4)


def _kind(char: str) -> int:
    if char.isascii():
        return WORD if char.isalnum() or char == "_" else OTHER
    if char == JOINER:
        return JOIN
    if unicodedata.category(char).startswith("M") or "\U0001f3fb" <= char <= "\U0001f3ff":
        return MARK
    code = ord(char)
    if any(first <= code <= last for first, last in UNSPACED):
        return OTHER
    return WORD if char.isalnum() else OTHER


ASCII_KINDS = np.array([_kind(chr(code)) for code in range(128)], np.int8)


def _carry_marks(kinds: np.ndarray) -> np.ndarray:
    """Marks take the kind of what they stand on."""
    index = np.where(kinds == MARK, 0, np.arange(len(kinds)))
    return kinds[np.maximum.accumulate(index)]


def _encode(tokenizer: Tokenizer, text: str, edges: np.ndarray) -> TextTokens:
    """edges: of the text's words, by character."""
    ids, offsets = tokenizer.encode_offsets(text)
    spans = _spans_by_bytes(tokenizer, ids, text)
    if spans is None:
        spans = _spans_by_offsets(offsets, text)
    starts, ends = spans
    is_edge = np.ones(len(ids) + 1, np.bool_)
    is_edge[1:-1] = (np.array(ends[:-1], np.int64) <= np.array(starts[1:], np.int64)) & edges[np.array(starts[1:], np.int64)]
    # A character that two tokens share is the first one's.
    cuts = [0, *(max(a, b) for a, b in zip(starts[1:], ends[:-1], strict=True)), len(text)] if ids else [0]
    texts = [text[a:b] for a, b in pairwise(cuts)]
    return TextTokens(text, ids, texts, starts, ends, is_edge)


@lru_cache(maxsize=4)
def _id_bytes(tokenizer: Tokenizer) -> list[bytes] | None:
    return tokenizer.id_bytes()


def _spans_by_bytes(tokenizer: Tokenizer, ids: list[int], text: str) -> tuple[list[int], list[int]] | None:
    """Characters that each token touches, if the bytes of the tokens are those of the text (a normalizer may change them)."""
    table = _id_bytes(tokenizer)
    data = text.encode()
    if table is None or b"".join(table[i] for i in ids) != data:
        return None
    begins = np.frombuffer(data, np.uint8) & 0xC0 != 0x80
    # char_of[k]: the character of byte k; the end of the text is one more.
    char_of = np.append(np.cumsum(begins) - 1, len(text))
    cuts = np.fromiter(accumulate((len(table[i]) for i in ids), initial=0), np.int64)
    return char_of[cuts[:-1]].tolist(), np.where(cuts[1:] > cuts[:-1], char_of[cuts[1:] - 1] + 1, char_of[cuts[1:]]).tolist()


def _spans_by_offsets(offsets: list[tuple[int, int]], text: str) -> tuple[list[int], list[int]]:
    """The tokenizer's own offsets, without gaps: spaces that it gives to no token go to the next one, other characters (accents
    that normalization joined with their letter) to the tokens before, what is left to the last."""
    starts: list[int] = []
    ends: list[int] = []
    last_start = reached = 0
    for start, end in offsets:
        joined = reached
        while starts and joined < start and not text[joined].isspace():
            joined += 1
        ends = [joined if e == reached else e for e in ends] if joined > reached else ends
        reached = joined
        last_start = max(last_start, min(start, reached))
        reached = max(reached, end)
        starts.append(last_start)
        ends.append(reached)
    if ends:
        ends = [len(text) if e == reached else e for e in ends]
    return starts, ends
