"""Gopher's numbers, those of words and those of lengths are those of a naive count, whatever the text and however long it is."""

import tracemalloc

import numpy as np
import pytest

from data_tools.documents import PIECE
from data_tools.tag import code_words, gopher, length
from data_tools.tag.scanner import Needs, Scanner
from tests.data_tools.tag import naive

NEEDS = Needs(grams=10, lines=True, paragraphs=True)


@pytest.fixture(scope="module")
def scanner() -> Scanner:
    return Scanner(NEEDS)


def document_scores(scores: dict[str, list[list[float]]], text: str) -> dict[str, float]:
    """The scores, each of which must be of the whole document."""
    assert all(spans[0][:2] == [0, len(text)] and len(spans) == 1 for spans in scores.values())
    return {name: spans[0][2] for name, spans in scores.items()}


def test_every_number_is_that_of_a_naive_count(scanner: Scanner) -> None:
    for text in naive.texts(400, 1):
        scores = document_scores(gopher.gopher_scores(scanner.scan(naive.line_of(text))), text)
        assert scores == pytest.approx(naive.gopher(text), rel=1e-12, abs=0), text
        assert set(scores) <= set(gopher.TYPES)
    assert set(naive.gopher("a " * 12)) == set(gopher.TYPES)


def test_a_text_in_many_pieces_and_with_little_memory_gives_the_same(scanner: Scanner) -> None:
    small = Scanner(NEEDS, chunk=97)
    tiny = Scanner(NEEDS, chunk=64)
    tiny.most_items = 20
    tiny.table = (np.zeros(64, np.uint64), *(np.zeros(64, np.uint32) for _ in range(3)))  # so that ranges of hashes are needed
    for text in naive.texts(60, 2):
        expected = scanner.scan(naive.line_of(text))
        for other in (small, tiny):
            assert other.scan(naive.line_of(text)) == expected, text
            assert other.scan(naive.line_of(text, is_long=True)) == expected, text


def test_a_long_document_is_counted_in_bounded_memory() -> None:
    rng = np.random.default_rng(3)
    text = "".join(" ".join(rng.choice(2000, 9).astype(str).tolist()) + ("\n" if i % 3 else "\n\n") for i in range(5_000))
    text += text[: len(text) // 2]
    small = Scanner(NEEDS, memory_mb=2, chunk=2**16)
    found = small.scan(naive.line_of(text, is_long=True))
    assert document_scores(gopher.gopher_scores(found), text) == pytest.approx(naive.gopher(text), rel=1e-12)
    assert found == Scanner(NEEDS).scan(naive.line_of(text))
    few = Scanner(Needs(grams=2, lines=True), memory_mb=32)
    peaks = []
    for n_pieces in (3, 6):
        line = naive.line_of(text * (n_pieces * PIECE // len(text)), is_long=True)
        tracemalloc.start()
        few.scan(line)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + PIECE


def test_words_and_lengths_are_counted(scanner: Scanner) -> None:
    for text in naive.texts(50, 4):
        counts = sorted(naive.Counter(text.split()).values(), reverse=True)
        n = max(sum(counts), 1)
        found = scanner.scan(naive.line_of(text))
        scores = code_words.code_words_scores(found, naive.line_of(text, metadata={"max_stars_count": 7}), "max_stars_count")
        assert document_scores(scores, text) == {
            "fraction_of_most_common_word": sum(counts[:1]) / n,
            "fraction_of_two_most_common_words": sum(counts[:2]) / n,
            "stars": 7,
        }
        scores = length.length_scores(found, 5)
        expected = (len(text), len(text.encode()), len(text.split()), len(text.split("\n")), 5)
        assert document_scores(scores, text) == dict(zip((*length.TYPES, length.TOKENS), expected, strict=True))


def test_stars_are_left_out_where_the_metadata_have_none() -> None:
    for metadata in (None, {}, {"max_stars_count": None}, {"max_stars_count": "9"}, {"max_stars_count": True}, [3]):
        assert code_words.read_stars(naive.line_of("", metadata=metadata), "max_stars_count") is None
    assert code_words.read_stars(naive.line_of("", metadata={"stars": 2.5}), "stars") == 2.5
