"""C4's spans and numbers are those of a naive count."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from data_tools.tag.c4 import NAUGHTY, TYPES, NaughtyWords, c4_scores
from data_tools.tag.scanner import LINE_BITS, Needs, Scanner
from tests.data_tools.tag import naive

NEEDS = Needs(spans=True)


@pytest.fixture(scope="module")
def scanner() -> Scanner:
    return Scanner(NEEDS)


def scores_of(scanner: Scanner, text: str, is_long: bool = False) -> dict[str, Any]:
    """Spans of lines as they are; of the rest, which must be of the whole document, the score."""
    found = msgspec.json.decode(msgspec.json.encode(c4_scores(scanner.scan(naive.line_of(text, is_long)), False)))
    for name in found.keys() - LINE_BITS.keys():
        [[start, end, found[name]]] = found[name]
        assert (start, end) == (0, len(text))
    return dict(found)


def test_every_span_and_number_is_that_of_a_naive_count(scanner: Scanner) -> None:
    seen = set()
    for text in naive.texts(400, 5):
        scores = scores_of(scanner, text)
        assert scores == naive.c4(text), text
        seen |= set(scores)
    assert seen == set(TYPES)


def merged(spans: list[list[float]]) -> list[list[float]]:
    out: list[list[float]] = []
    for start, end, score in spans:
        if out and out[-1][1] == start:
            out[-1][1] = end
        else:
            out.append([start, end, score])
    return out


def test_of_a_long_document_lines_next_to_each_other_share_a_span(scanner: Scanner) -> None:
    small = Scanner(NEEDS, chunk=61)
    for text in naive.texts(60, 6):
        assert scores_of(small, text) == naive.c4(text), text
        expected = {name: merged(value) if name in LINE_BITS else value for name, value in naive.c4(text).items()}
        assert scores_of(small, text, is_long=True) == expected, text


def test_naughty_words_stand_alone_and_phrases_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("Darn\n\nvery bad\nὈδός\n", encoding="utf-8")
    words = NaughtyWords(path)
    assert len(words) == 3
    for text, is_so in {
        "": False, "oh DARN it": True, "darnit darn.": False, "everY BADly": True, "very\nbad": False, "ὈΔΌΣ": True, "x\u2028darn": True,
    }.items():  # fmt: skip
        assert words.are_in(naive.line_of(text)) == is_so, text
    filler = "x y " * 300_000
    for text, is_so in {
        filler + "darn": True, "very bad" + filler: True, filler[:-1] + "darn " + filler: False, "x" * 2_000_000 + "darn": False,
        "x" * (2**20 - 3) + " very bad": True, "x" * (2**20 - 7) + " very bad": True, "x" * (2**20 - 3) + " darn x": True,
        "x" * 2_000_000 + "very bad": True, " " * 2_000_000 + "darn": True,
    }.items():  # fmt: skip
        assert words.are_in(naive.line_of(text, is_long=True)) == is_so, (text[:20], text[-20:])
    scores = c4_scores(Scanner(NEEDS).scan(naive.line_of("oh darn")), True)
    assert scores[NAUGHTY] == [[0, 7, 1.0]]
