"""Repeats of short n-grams of tokens are those of a naive search, and their spans hold what repeats."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data_tools.tag.config import RepetitionConfig
from data_tools.tag.repetition import TYPES, Repetitions, Tokenized, cut_for_tokens, repetition_scores
from data_tools.tokenize.encoder import Encoder
from olmo_train.data.repetition import repeats
from tests.data_tools.tag import naive

REPEATING = [
    "the fox " * 40, "x" * 500, "日本" * 40, "ab " * 31, "one two three " * 33 + "tail", "head " + "\n" * 90, "😀 " * 64 + "été " * 50,
    "- * " * 40 + "fox " * 40 + "x",
]  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tokenizer: Path) -> Encoder:
    return Encoder(tokenizer)


def expected(encoder: Encoder, text: str, least: int) -> Tokenized:
    """By brute force: bytes of tokens to characters, and what lies in no other stretch."""
    id_bytes = encoder.tokenizer.id_bytes()
    assert id_bytes is not None
    ids = encoder.tokenizer.encode_batch([text])[0]
    data, place = text.encode(), [0]
    for i in ids:
        place.append(place[-1] + len(id_bytes[i]))
    assert place[-1] == len(data)
    found = naive.runs(ids, 13)
    spans = [
        (len(data[: place[s]].decode(errors="ignore")), len(data[: place[e]].decode(errors="replace")), n)
        for s, e, n in found
        if n >= least
    ]
    outer: list[list[float]] = []
    for start, end, n in sorted(spans, key=lambda span: (span[0], -span[1], -span[2])):
        if all(end > kept[1] for kept in outer):
            outer.append([start, end, n])
    return Tokenized(len(ids), max((n for _, _, n in found), default=0), outer)


@pytest.mark.parametrize("least", [3, 32])
def test_repeats_are_those_of_a_naive_search(encoder: Encoder, least: int) -> None:
    repetitions = Repetitions(encoder, RepetitionConfig(span_repeats=least))
    texts = [*REPEATING, *naive.texts(60, 8)]
    found = repetitions.find([naive.line_of(text) for text in texts])
    for text, one in zip(texts, found, strict=True):
        ids = encoder.tokenizer.encode_batch([text])[0]
        if unicodedata.is_normalized("NFC", text):
            assert one == expected(encoder, text, least), text
        assert one.n_tokens == len(ids)
        assert one.most_repeats == max((n for _, _, n in naive.runs(ids, 13)), default=0)
        assert (one.most_repeats >= 32) == repeats(np.array([ids]), 1, 13, 32)[0]
        long = naive.line_of(text, is_long=True)
        if len(list(cut_for_tokens(long))) < 2 or "the fox" in text:
            assert repetitions.find([long])[0] == one, text


def test_a_long_text_is_cut_where_tokens_end(encoder: Encoder) -> None:
    rng = np.random.default_rng(9)
    text = " ".join(rng.choice(["fox", "jumps", "the", "naïve", "1234", "\n\n"], 400_000).tolist()) + " fox" * 2000
    line = naive.line_of(text, is_long=True)
    stretches = list(cut_for_tokens(line))
    assert len(stretches) > 2
    assert "".join(stretches) == text
    ids = [i for stretch in stretches for i in encoder.encode([stretch])[0].tolist()]
    assert ids == encoder.encode([text])[0].tolist()
    repetitions = Repetitions(encoder, RepetitionConfig())
    assert repetitions.find([line]) == repetitions.find([naive.line_of(text)])
    assert list(cut_for_tokens(naive.line_of("x" * (2**21 + 5), is_long=True)))[-1] == "xxxxx"


def test_spans_are_right_where_the_tokenizer_changes_the_text(encoder: Encoder) -> None:
    repetitions = Repetitions(encoder, RepetitionConfig())
    text = "e\u0301te\u0301 fox. " + "e\u0301 " * 40 + "end"
    assert len(encoder.tokenizer.decode(encoder.encode([text])[0])) < len(text)  # its NFC
    [found] = repetitions.find([naive.line_of(text)])
    [[start, end, n]] = found.spans
    assert n >= 39
    assert text[int(start) : int(end)].strip() == ("e\u0301 " * 40).strip()


def test_scores_have_dolmas_names() -> None:
    assert repetition_scores(Tokenized(9, 2, []), 50) == {
        "doc_max_score_repetition": [[0, 50, 0]],
        "doc_max_length_repetition": [[0, 50, 0]],
        "doc_frac_repetition": [[0, 50, 0.0]],
    }
    scores = repetition_scores(Tokenized(99, 40, [[0, 10, 40], [20, 25, 33]]), 50)
    assert scores == {
        "repetition": [[0, 10, 40], [20, 25, 33]],
        "doc_max_score_repetition": [[0, 50, 40]],
        "doc_max_length_repetition": [[0, 50, 10]],
        "doc_frac_repetition": [[0, 50, 0.3]],
    }
    assert set(scores) == set(TYPES)
