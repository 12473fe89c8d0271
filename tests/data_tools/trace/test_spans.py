"""Maximal spans of a text, against trying every span."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest

from data_tools.documents import Document, write_documents
from data_tools.tokenize import command as tokenize_corpus
from data_tools.tokenize import train_tokenizer
from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig, Rank, SpansConfig
from data_tools.trace.searcher import Searcher
from data_tools.trace.spans import maximal_spans
from data_tools.trace.text_tokens import TextTokens, encode
from tests.data_tools.trace.brute import Brute, BruteSpec

ALL = {"max_spans": None, "min_tokens": 1}


@pytest.fixture(scope="module")
def brute(tmp_path_factory):
    return Brute(tmp_path_factory.mktemp("spans"), BruteSpec(vocab=6))


def as_text(ids, rng):
    """Ids as a text of a letter each, id 5 of two: random edges of words."""
    texts = ["." if i == 5 else chr(97 + i % 26) if i != 4 else "xy" for i in ids]
    ends = np.cumsum([len(text) for text in texts]).tolist()
    is_edge = rng.random(len(ids) + 1) < 0.6
    is_edge[[0, -1]] = True
    return TextTokens("".join(texts), ids, texts, [0, *ends[:-1]], ends, is_edge)


def admissible(brute, tokens, config):
    """Every span that is, with how often it stands."""
    found = {}
    for start in range(len(tokens)):
        for end in range(start + 1, len(tokens) + 1):
            if config.words and not (tokens.is_edge[start] and tokens.is_edge[end]):
                continue
            before_last = tokens.text[tokens.char_starts[start] : tokens.char_starts[end - 1]]
            if any(delimiter in before_last for delimiter in config.delimiters):
                continue
            if count := len(brute.places(tokens.ids[start:end])):
                found[start, end] = count
    return found


def maximal(spans):
    return {(a, b): n for (a, b), n in spans.items() if not any((c, d) != (a, b) and c <= a and b <= d for c, d in spans)}


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("delimiters", [[], ["."], [".", "xy", "ab"]])
def test_spans_are_those_of_trying_every_span(brute, words, delimiters):
    searcher, rng = Searcher([brute.index]), np.random.default_rng(3)
    config = SpansConfig(words=words, delimiters=delimiters, **ALL)
    for query in brute.queries(150):
        tokens = as_text(query[:14], rng)
        found = maximal_spans(searcher, tokens, config)
        assert {(m.start, m.end): m.count for m in found} == maximal(admissible(brute, tokens, config)), tokens
        for match in found:
            assert match.ids == tokens.ids[match.start : match.end]
            assert match.ranges.count == match.count


def test_blocked_documents_have_no_spans(brute):
    brute.blocked = {f"d{n}" for n in range(0, 40, 2)}
    try:
        searcher, rng = Searcher([brute.index], blocked=brute.blocked), np.random.default_rng(4)
        config = SpansConfig(**ALL)
        for query in brute.queries(100):
            tokens = as_text(query[:14], rng)
            found = {(m.start, m.end): m.count for m in maximal_spans(searcher, tokens, config)}
            assert found == maximal(admissible(brute, tokens, config))
    finally:
        brute.blocked = set()


def test_a_delimiter_of_which_a_token_holds_more_ends_the_span_with_that_token(brute):
    searcher = Searcher([brute.index])
    ids = next(ids for ids in brute.split("train").values() if len(ids) > 6)[:6]
    texts = ["a", "b\n\n", "c", "d", "e", "f"]
    ends = np.cumsum([len(text) for text in texts]).tolist()
    tokens = TextTokens("".join(texts), ids, texts, [0, *ends[:-1]], ends, np.ones(7, np.bool_))
    found = maximal_spans(searcher, tokens, SpansConfig(delimiters=["\n"], **ALL))
    assert [(m.start, m.end) for m in found if m.start == 0] == [(0, 2)]
    assert (2, 6) in [(m.start, m.end) for m in found]


def test_the_first_by_each_rank_are_told_first(brute):
    searcher, rng = Searcher([brute.index]), np.random.default_rng(5)
    total = searcher.n_tokens
    for query in brute.queries(60):
        tokens = as_text([*query, *brute.queries(1)[0], *brute.queries(1)[0]][:30], rng)
        every = maximal_spans(searcher, tokens, SpansConfig(**ALL))
        for match in every:
            expected = sum(math.log(searcher.unigrams[i] / total) for i in match.ids)
            assert match.log_prob == pytest.approx(expected)
        keys = {
            Rank.UNIGRAM: lambda m: (m.log_prob, m.start),
            Rank.LENGTH: lambda m: (m.start - m.end, m.start),
            Rank.COUNT: lambda m: (m.count, m.start),
        }
        for rank, key in keys.items():
            some = maximal_spans(searcher, tokens, SpansConfig(rank=rank, max_spans=3, min_tokens=2, max_count=8))
            wanted = sorted((m for m in every if m.end - m.start >= 2 and m.count <= 8), key=key)[:3]
            assert [(m.start, m.end, m.count) for m in some] == [(m.start, m.end, m.count) for m in wanted]


def test_a_text_of_which_nothing_stands_has_no_spans(brute):
    searcher = Searcher([brute.index])
    for ids in ([], [0], [77], [0, -1, 99]):
        assert maximal_spans(searcher, as_text(ids, np.random.default_rng(0)), SpansConfig(**ALL)) == []


# ---- texts ------------------------------------------------------------------------------------------------------------

WORDS = ["the", "cat", "Katze", "naïve", "日本", "語", "😀", "it's", "über", "ไทย", "3.14", "x_1", "end", "the"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(searcher, documents of training): texts of many scripts."""
    folder, rng = tmp_path_factory.mktemp("unicode"), random.Random(0)
    documents = [Document(f"d{n}", " ".join(rng.choices(WORDS, k=rng.randint(2, 12))), "s") for n in range(60)]
    documents += [Document(f"again{n}", documents[n].text, "s") for n in range(10)]
    write_documents(folder / "documents.jsonl", documents)
    train_tokenizer.main([f"documents=[{folder}/documents.jsonl]", f"output={folder}/tokenizer.json", "vocab_size=300"])
    words = [f"documents=[{folder}/documents.jsonl]", f"tokenizer={folder}/tokenizer.json", f"output={folder}/shards"]
    tokenize_corpus.main([*words, "heldout_frac=0"])
    return Searcher([build(IndexConfig(f"{folder}/shards", max_tokens_per_part=300, processes=1))]), [d.text for d in documents]


def occurrences(texts, piece):
    return sum(text.startswith(piece, at) for text in texts for at in range(len(text)))


def test_spans_of_texts_stand_in_the_documents_and_can_not_be_made_longer(corpus):
    searcher, texts = corpus
    rng = random.Random(1)
    config = SpansConfig(**ALL)
    for _ in range(300):
        text = "".join(rng.choice([" ", " ", "", "\n"]) + rng.choice(WORDS) for _ in range(8)).lstrip()
        tokens = encode(searcher.tokenizer, text)
        found = sorted((m.start, m.end, m) for m in maximal_spans(searcher, tokens, config))
        for start, end, match in found:
            piece = text[tokens.char_starts[start] : tokens.char_ends[end - 1]]
            assert searcher.tokenizer.decode(match.ids).removeprefix(" ") == piece.removeprefix(" ")
            assert 1 <= match.count <= occurrences(texts, piece)
            longer = [e for e in range(end + 1, len(tokens) + 1) if tokens.is_edge[e]]
            assert not longer or searcher.count(tokens.ids[start : longer[0]]) == 0
        assert all(a < c and b < d for (a, b, _), (c, d, _) in pairwise(found))


def test_the_first_word_is_found_after_a_space_and_at_the_beginning_of_documents(corpus):
    searcher, texts = corpus
    config = SpansConfig(**ALL)
    n_after_space = n_longer = 0
    for text in texts[:40]:
        words = text.split(" ")
        for first in range(len(words) - 1):
            piece = " ".join(words[first:])
            [match] = maximal_spans(searcher, encode(searcher.tokenizer, piece), config)
            tokens = encode(searcher.tokenizer, piece)
            assert (match.start, match.end) == (0, len(tokens))
            counts = [searcher.count(tokens.ids), searcher.count(tokens.spaced.ids) if tokens.spaced else 0]
            assert match.count == max(counts)
            assert match.ids == (tokens.ids if counts[0] >= counts[1] else tokens.spaced.ids)
            n_after_space += match.ids != tokens.ids
            n_longer += len(match.ids) != match.end
    assert n_after_space > 50
    exact = maximal_spans(searcher, encode(searcher.tokenizer, texts[0].split(" ", 1)[1]), SpansConfig(words=False, **ALL))
    assert all(m.ids == encode(searcher.tokenizer, texts[0].split(" ", 1)[1]).ids[m.start : m.end] for m in exact)


def test_a_text_over_the_end_of_a_document_is_two_spans(corpus):
    searcher, texts = corpus
    text = texts[3] + texts[4]
    tokens = encode(searcher.tokenizer, text)
    assert searcher.count(tokens.ids) == 0
    found = maximal_spans(searcher, tokens, SpansConfig(words=False, **ALL))
    assert max(m.end - m.start for m in found) < len(tokens)


def test_end_of_text_that_is_spelt_out_is_not_the_end_of_a_document(corpus):
    searcher, _ = corpus
    tokens = encode(searcher.tokenizer, "<|endoftext|>")
    assert all(m.end - m.start < len(tokens) for m in maximal_spans(searcher, tokens, SpansConfig(words=False, **ALL)))
    assert maximal_spans(searcher, tokens, SpansConfig(min_tokens=len(tokens), words=True)) == []
