"""`c4`: the rules of C4: lines to remove as spans, and what tells against the document.

Source: C. Raffel et al., T5 (2020), section 2.2; names and formulas are those of Dolma 1.2's c4_v1
(python/dolma/taggers/c4.py), the rest those of tensorflow/datasets, text/c4_utils.py (docs/tag.md).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.documents import Line
from data_tools.tag import scan_kernels as kernel
from data_tools.tag.scanner import LINE_BITS, Needs, Scanned

NEEDS = Needs(spans=True)
TYPES = (*LINE_BITS, "has_javascript", "has_lorem_ipsum", "has_curly_brace", "line_count", "sentence_count")
NAUGHTY = "has_naughty_word"
"""A type as well, if there is a list."""


def c4_scores(found: Scanned, is_naughty: bool) -> dict[str, Any]:
    """Spans of lines, and scores of the document; what is named `has_` is there only if it is so, with a score of 1."""
    state, (start, end) = found.state, found.whole
    flags = state[kernel.DOCUMENT_FLAGS]
    whole = {
        "has_javascript": state[kernel.JAVASCRIPT_WORD],
        "has_lorem_ipsum": flags & kernel.LOREM_IPSUM,
        "has_curly_brace": flags & kernel.CURLY,
        NAUGHTY: is_naughty,
    }
    return {
        **found.spans,
        **{name: [[start, end, 1.0]] for name, is_so in whole.items() if is_so},
        "line_count": [[start, end, state[kernel.LINES]]],
        "sentence_count": [[start, end, state[kernel.SENTENCES]]],
    }


class NaughtyWords:
    """A list of words and phrases, one a line, in lower case: a word stands alone between white space, a phrase within a line."""

    def __init__(self, path: Path) -> None:
        entries = {entry.strip().lower() for entry in path.read_text(encoding="utf-8").splitlines()} - {""}
        self._words = {entry for entry in entries if len(entry.split()) == 1}
        self._phrases = tuple(entry for entry in entries if len(entry.split()) > 1)
        self._longest = max(map(len, entries), default=0)

    def __len__(self) -> int:
        return len(self._words) + len(self._phrases)

    def are_in(self, line: Line) -> bool:
        """Whether one of them is in the text."""
        return any(self._are_in(stretch) for stretch in self._stretches(line))

    def _are_in(self, text: str) -> bool:
        lower = text.lower()
        return not self._words.isdisjoint(lower.split()) or any(phrase in lower for phrase in self._phrases)

    def _stretches(self, line: Line) -> Iterator[str]:
        """The text cut before white space; each stretch begins with as much of the one before as a phrase may reach back."""
        held, overlap = "", 2 * self._longest  # str.lower may make a text longer, never shorter than half
        for piece in line.pieces():
            held += piece
            cut = _last_space(held)
            if cut > overlap and line.is_long:
                yield held[:cut]
                held = held[max(0, _last_space(held[: cut - overlap])) :]
            elif cut < 0 and len(held) > 2 * overlap + 2:
                held = held[-overlap - 2 :]  # within a word that is longer than all that is looked for
        yield held


def _last_space(text: str) -> int:
    """Place of the last white space; -1 if there is none."""
    if not text or text[-1].isspace():
        return len(text) - 1
    words = text.rsplit(None, 1)
    if len(words) == 2:
        return len(text) - len(words[1]) - 1
    return len(text) - len(words[0]) - 1
