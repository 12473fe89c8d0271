"""Hostile texts: what any encoder must turn into the ids of `tokenizers` before it is trusted with documents."""

import random
import re
import sys
import unicodedata
from collections.abc import Sequence

PRINTABLE = [chr(c) for c in range(0x20, 0x7F)]
SPACES = list(" \t\n\r\v\f\x1c\x85\xa0\u1680\u2003\u2028\u3000\u200b\ufeff\0")
MARKS = list(
    "\u0300\u0301\u0323\u0338\u0345\u05b0\u0655\u093c\u0e38\u1ab0\u20d0\u3099\u302a\ufe20aeo<=>\u212b\u1e9b\u1100\u1161\u11a8"
)
ASCII = bytes(range(128))
SPELT = ["<|endoftext|>", "<|padding|>", "|||IP_ADDRESS|||", "'s", "'RE", "'ll", "'", "  ", "   ", "\n\n", "\r\n", "123", "x=1;"]


def hostile_texts(number: int, seed: int, spelt: Sequence[str] = ()) -> list[str]:
    """Texts of characters of every kind, long runs, marks in every order, and tokens spelt out (`spelt` beside SPELT)."""
    rng = random.Random(seed)
    pools = [PRINTABLE, SPACES, MARKS, [*SPELT, *spelt], None]
    return ["".join(_fragment(rng, rng.choice(pools)) for _ in range(rng.randint(1, 40))) for _ in range(number)]


def _fragment(rng: random.Random, pool: list[str] | None) -> str:
    piece = rng.choice(pool) if pool else _any_character(rng)
    return piece if rng.random() < 0.9 else piece * rng.randint(2, 60)


def _any_character(rng: random.Random) -> str:
    """Of all of Unicode, unassigned ones included; half of them from where the scripts are."""
    while True:
        code = rng.randrange(0x80, 0x3100) if rng.random() < 0.5 else rng.randrange(0x80, sys.maxunicode + 1)
        if not 0xD800 <= code < 0xE000:
            return chr(code)


NEW_PLACES = ((0x300, 0x3100), (0xA000, 0xAC00), (0xD7A4, 0xD800), (0xFB00, 0xFFFE), (0x10000, 0x20000), (0x2A6D0, 0x33500))
"""Where combining marks are, and where characters are still assigned; all after the last is taken for unassigned."""


class YoungCharacters:
    """Characters that tables of different age treat differently: marks and composites younger than Unicode 3.2, and whatever is
    not assigned yet.

    `tokenizers` 0.23 knows no combining classes younger than about Unicode 9, gigatoken 0.10 those of 17, and its letters: 120 of
    100,000 hostile texts had other ids. Classes of assigned characters never change, so that all older ones are the same in both.
    Source: Unicode Standard Annex #15, section 3 (versioning and stability).
    """

    def __init__(self) -> None:
        codes = sorted(_young())
        self._low = re.compile(_class([c for c in codes if c < 0x10000], ""))  # one table; with more beside it, 100 times slower
        self._high = re.compile(_class([c for c in codes if c >= 0x10000], f"{_escape(NEW_PLACES[-1][1])}-{_escape(0xDFFFF)}"))
        self._astral = re.compile("[\U00010000-\U0010ffff]")

    def are_in(self, text: str) -> bool:
        """Whether a text has one."""
        if text.isascii():
            return False
        rest = text.encode("utf-8").translate(None, ASCII).decode("utf-8")  # ten times as fast as to search all of it
        return bool(self._low.search(rest)) or any(self._high.match(found[0]) for found in self._astral.finditer(rest))


def _young() -> set[int]:
    old, young = unicodedata.ucd_3_2_0, set[int]()
    for first, end in NEW_PLACES:
        for code in range(first, end):
            char = chr(code)
            if unicodedata.category(char) == "Cn":
                young.add(code)
            elif old.category(char) == "Cn":
                parts = unicodedata.decomposition(char)
                if unicodedata.combining(char):
                    young.add(code)
                elif parts and parts[0] != "<":
                    young |= {code} | {int(part, 16) for part in parts.split() if old.category(chr(int(part, 16))) == "Cn"}
    return young


def _class(codes: list[int], more: str) -> str:
    """A character class."""
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return f"[{''.join(f'{_escape(first)}-{_escape(last)}' for first, last in ranges)}{more}]"


def _escape(code: int) -> str:
    return f"\\U{code:08x}"
