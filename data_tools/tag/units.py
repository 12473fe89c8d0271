"""Texts of any length in bounded memory: windows to search in, and the documents, paragraphs or sentences that get a score."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from data_tools.documents import Line
from data_tools.tag.model_config import Unit
from data_tools.tag.tagger import Scores

MOST_SPANS = 100_000
"""Of one type in one document. The last match then takes in all that follow; what follows the last unit is scored in pieces."""
MOST_CHARS = 2**16
"""Of a paragraph or sentence: a longer one is several."""
DECIMALS = 5
"""Of scores: floating-point sums differ beyond them from one processor to another."""
_SENTENCE = re.compile("(?<=[.!?])([\"')\\]\u201d\u2019]{0,3})\\s+|(?<=[\u3002\uff01\uff1f])")


@dataclass(frozen=True)
class Window:
    """A stretch of a text: whatever begins in [pos, limit) is found here, with at least `reach` characters around it."""

    text: str
    offset: int
    """Of its first character in the document."""
    pos: int
    limit: int
    is_last: bool


def windows(line: Line, reach: int) -> Iterator[Window]:
    """All of a text: at once, if it is not long; else about a piece at a time. What begins in a window ends within `reach`."""
    if not line.is_long:
        text = line.text
        yield Window(text, 0, 0, len(text), True)
        return
    text, offset, pos, pieces = "", 0, 0, line.pieces()
    following = next(pieces, None)
    while following is not None:
        text += following
        following = next(pieces, None)
        limit = len(text) if following is None else max(pos, len(text) - reach)
        yield Window(text, offset, pos, limit, following is None)
        kept = max(0, limit - reach)
        text, offset, pos = text[kept:], offset + kept, limit - kept


def search(line: Line, pattern: re.Pattern[str], reach: int) -> Iterator[tuple[re.Match[str], Window]]:
    """What `pattern.finditer` finds in the whole text, if no match needs more than `reach` characters."""
    done = 0
    for window in windows(line, reach):
        for match in pattern.finditer(window.text, max(window.pos, done - window.offset)):
            if match.start() >= window.limit:
                break
            done = window.offset + match.end()
            yield match, window


class Spans:
    """Spans of one type, each of score 1, as they are found; at most MOST_SPANS are kept."""

    def __init__(self) -> None:
        self.spans: list[list[float]] = []
        self.count = self.chars = 0
        """Of all that were found."""

    def add(self, start: int, end: int) -> None:
        """The next one; one that begins within another is left out."""
        if self.spans and start < self.spans[-1][1]:
            return
        self.count += 1
        self.chars += end - start
        if len(self.spans) < MOST_SPANS:
            self.spans.append([start, end, 1.0])
        else:
            self.spans[-1][1] = end


def n_chars(line: Line) -> int:
    """Characters of the text."""
    return sum(len(piece) for piece in line.pieces())


# ---- what gets a score ------------------------------------------------------------------------------------------------------


def _lines(line: Line) -> Iterator[tuple[int, str]]:
    """(start, text) of each line of the text, without its newline; of one that is too long, in pieces of MOST_CHARS."""
    rest, offset = "", 0
    for piece in line.pieces():
        text, pos = rest + piece, 0
        while True:
            newline = text.find("\n", pos)
            end = newline if newline >= 0 else len(text)
            while end - pos > MOST_CHARS:
                yield offset + pos, text[pos : pos + MOST_CHARS]
                pos += MOST_CHARS
            if newline < 0:
                break
            yield offset + pos, text[pos:newline]
            pos = newline + 1
        rest, offset = text[pos:], offset + pos
    if rest:
        yield offset, rest


def _sentences(start: int, text: str) -> Iterator[tuple[int, str]]:
    begin = 0
    for match in _SENTENCE.finditer(text):
        end = max(match.end(1), match.start())
        if end > begin:
            yield start + begin, text[begin:end]
        begin = max(begin, match.end())
    if begin < len(text):
        yield start + begin, text[begin:]


def _small_units(line: Line, unit: Unit) -> Iterator[tuple[int, str]]:
    for start, text in _lines(line):
        if unit == Unit.SENTENCE:
            yield from _sentences(start, text)
        else:
            yield start, text


def units(line: Line, unit: Unit) -> Iterator[tuple[int, str]]:
    """(start, text) of the paragraphs or sentences of a text that are not blank; not of unit=document.

    After MOST_SPANS of them the rest comes in pieces of about MOST_CHARS characters.
    """
    held: list[str] = []
    number = first = size = 0
    for start, text in _small_units(line, unit):
        if number < MOST_SPANS:
            if text and not text.isspace():
                number += 1
                yield start, text
            continue
        if not held:
            first = start
        filled = start - first - size  # white space between units
        held.append(("\n" if filled == 1 else " " * filled) + text)
        size += filled + len(text)
        if size >= MOST_CHARS:
            yield first, "".join(held)
            held, size = [], 0
    if held and not (rest := "".join(held)).isspace():
        yield first, rest


def score_units(
    line: Line, unit: Unit, types: Sequence[str], score: Callable[[str], Sequence[float]], min_score: float | None = None
) -> Scores:
    """Spans of each type with the score that `score` gives to its text (one number for each type).

    Of a long document the score is the mean of its pieces, weighted by characters.
    """
    found: Scores = {name: [] for name in types}
    if unit == Unit.DOCUMENT:
        for name, span in zip(types, _document_score(line, score, len(types)), strict=True):
            found[name].append(span)
        return found
    for start, text in units(line, unit):
        for name, value in zip(types, score(text), strict=True):
            if min_score is None or value >= min_score:
                found[name].append([start, start + len(text), round(value, DECIMALS)])
    return found


def _document_score(line: Line, score: Callable[[str], Sequence[float]], n_types: int) -> list[list[float]]:
    if not line.is_long:
        return [[0, len(line.text), round(value, DECIMALS)] for value in score(line.text)]
    chars, sums = 0, [0.0] * n_types
    for piece in line.pieces():
        chars += len(piece)
        sums = [total + value * len(piece) for total, value in zip(sums, score(piece), strict=True)]
    return [[0, chars, round(total / max(chars, 1), DECIMALS)] for total in sums]
