"""Runs of words of a text as 64-bit keys: without case and punctuation, as GPT-3's overlap looks at them.

A word is a run of letters and digits (str.isalnum), lower-cased character by character; an ideograph or kana is a word by itself,
because nothing stands between them. Text is taken as it is: no Unicode normalisation.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from data_tools.decontaminate.word_kernels import ALONE, LETTER, SEPARATOR, grams_of, words_of
from data_tools.documents import Line

_TABLE = 0x20000
"""Code points that are asked one by one; those above are ideographs, or no letters."""
_ALONE = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))


@lru_cache(1)
def tables() -> tuple[np.ndarray, np.ndarray]:
    """Kind (uint8) and lower case (uint32) of every code point."""
    kinds = np.full(0x110000, SEPARATOR, np.uint8)
    lower = np.arange(0x110000, dtype=np.uint32)
    for code in range(_TABLE):
        char = chr(code)
        if char.isalnum():
            kinds[code] = LETTER
            if (small := char.lower()) != char and len(small) == 1:
                lower[code] = ord(small)
    for first, last in _ALONE:
        kinds[first : last + 1] = np.where(kinds[first : last + 1] == LETTER, ALONE, kinds[first : last + 1])
    kinds[0x20000:0x323B0] = ALONE
    return kinds, lower


def words(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Hashes (uint64), starts and ends (int64, characters) of the words of a text, and its characters."""
    data = np.frombuffer(text.encode("utf-8"), np.uint8)
    room = len(data) + 1
    hashes, starts, ends = np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64)
    n, chars = words_of(data, *tables(), hashes, starts, ends)
    return hashes[:n], starts[:n], ends[:n], chars


def grams(hashes: np.ndarray, n: int) -> np.ndarray:
    """Keys (uint64) of each run of `n` words."""
    out = np.empty(max(len(hashes) - n + 1, 0), np.uint64)
    grams_of(hashes, n, out)
    return out


def keys_of_item(text: str, ngram: int, min_words: int) -> tuple[np.ndarray, int]:
    """Keys of a text of an item, and the words of each: its n-grams; of a shorter one itself; none below `min_words`."""
    hashes = words(text)[0]
    n = min(len(hashes), ngram)
    return (grams(hashes, n), n) if n >= min_words else (np.empty(0, np.uint64), ngram)


def windows(line: Line, ngram: int) -> Iterator[tuple[str, int]]:
    """Pieces of a document with the character each begins at; every run of `ngram` words lies whole in one of them.

    A word that is longer than a piece by itself is given in two.
    """
    carry, at = "", 0
    for piece in line.pieces():
        text = carry + piece
        yield text, at
        if not line.is_long:
            return
        starts = words(text)[1]
        # the last word may go on in the next piece, so that `ngram` - 1 whole ones before it are carried as well
        keep = int(starts[-ngram]) if len(starts) >= ngram else (int(starts[0]) if len(starts) else len(text))
        keep = max(keep, len(text) - len(piece))
        carry, at = text[keep:], at + keep
