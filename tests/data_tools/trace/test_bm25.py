"""BM25 against its formula written out, and against bm25s."""

import math

import numpy as np
import pytest

from data_tools.trace.bm25 import K1, B, bm25, words

TEXTS = [
    "The fox jumps over the lazy dog.",
    "the the the the fox",
    "Ein Straßenfuchs springt, ÉTÉ été!",
    "",
    "nothing in common 12 34",
    "日本語 fox_trot fox-trot FOX",
]


def naive(query: str, texts: list[str]) -> list[float]:
    """The formula, word by word."""
    documents = [words(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in words(query):
            n = sum(word in other for other in documents)
            tf = document.count(word)
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            score += idf * tf / (tf + K1 * (1 - B + B * len(document) / mean)) if tf else 0.0
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["fox", "the fox the", "ÉTÉ 日本語", "unknown", "", "fox_trot 12"])
def test_scores_are_those_of_the_formula(query: str) -> None:
    np.testing.assert_allclose(bm25(query, TEXTS), naive(query, TEXTS), rtol=1e-12, atol=1e-15)


def test_random_texts_are_scored_as_by_the_formula() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        texts = [" ".join(rng.choice(list("abcdefgh"), int(rng.integers(1, 30)))) for _ in range(int(rng.integers(1, 12)))]
        query = " ".join(rng.choice(list("abcdefghxyz"), 8))
        np.testing.assert_allclose(bm25(query, texts), naive(query, texts), rtol=1e-12, atol=1e-15)


def test_scores_are_those_of_bm25s() -> None:
    bm25s = pytest.importorskip("bm25s")
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(list("abcdefgh"), int(rng.integers(1, 30)))) for _ in range(20)]
    theirs = bm25s.BM25(k1=K1, b=B, method="lucene", dtype="float64")
    theirs.index([words(text) for text in texts], show_progress=False)
    for query in ("a b c", "a a h", "h"):
        np.testing.assert_allclose(bm25(query, texts), theirs.get_scores(words(query)), rtol=1e-6)


def test_words_are_of_any_script_and_any_case() -> None:
    assert words("Don't ÉTÉ x_1=日本語!") == ["don", "t", "été", "x_1", "日本語"]


def test_no_texts_have_no_scores() -> None:
    assert bm25("fox", []).shape == (0,)
    assert bm25("fox", ["", ""]).tolist() == [0.0, 0.0]
