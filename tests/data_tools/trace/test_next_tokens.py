import json
import math
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from data_tools.trace.next_tokens import NO_TOKEN, infgram_log_probs, main, next_counts, next_tokens
from data_tools.trace.searcher import Searcher
from tests.data_tools.texts import refusal
from tests.data_tools.trace.small_corpora import EOS, SHAPES, SmallCorpus, queries, small_corpus
from tests.data_tools.trace.traced import EDGE, PLANTED, Traced


@pytest.fixture(params=SHAPES)
def corpus(request: pytest.FixtureRequest) -> SmallCorpus:
    return small_corpus(request.param)


@pytest.fixture(params=[False, True], ids=["all documents", "some blocked"])
def searched(request: pytest.FixtureRequest, corpus: SmallCorpus) -> tuple[Searcher, SmallCorpus]:
    names = sorted(corpus.train) + sorted(corpus.heldout)
    blocked = set(random.Random(0).sample(names, 8)) if request.param else set()
    return Searcher([corpus.index], blocked=blocked), corpus.without(blocked)


def longest_context(corpus: SmallCorpus, ids: list[int]) -> list[int]:
    return next(ids[i:] for i in range(len(ids) + 1) if i == len(ids) or corpus.occurrences(ids[i:]))


def test_the_tokens_that_follow_are_those_of_brute_force(searched: tuple[Searcher, SmallCorpus]) -> None:
    searcher, corpus = searched
    for ids in queries(corpus, 80):
        found = next_tokens(searcher, ids)
        expected = corpus.next_counts(longest_context(corpus, ids))
        assert found.ids == longest_context(corpus, ids)
        assert {t.id: t.count for t in found.tokens} == dict(expected)
        assert (found.total, found.n_distinct) == (sum(expected.values()), len(expected))
        assert sum(t.prob for t in found.tokens) == pytest.approx(1)
        assert found.tokens == sorted(found.tokens, key=lambda t: (-t.count, t.id))


def test_an_order_takes_the_last_tokens_alone(searched: tuple[Searcher, SmallCorpus]) -> None:
    searcher, corpus = searched
    for order in (1, 2, 4):
        for ids in queries(corpus, 30):
            found = next_tokens(searcher, ids, order)
            assert found.ids == ids[len(ids) - min(order - 1, len(ids)) :]
            assert {t.id: t.count for t in found.tokens} == dict(corpus.next_counts(found.ids))


def test_a_text_is_read_as_brute_force_reads_it(searched: tuple[Searcher, SmallCorpus]) -> None:
    searcher, corpus = searched
    pieces = list(queries(corpus, 12))
    for before, after in pairwise(pieces):
        ids = [*before, EOS, *after]  # nothing that stands before an end-of-text is a context of what comes after it
        read = infgram_log_probs(searcher, ids)
        for t, token in enumerate(ids):
            context = longest_context(corpus, ids[:t] if t <= len(before) else ids[len(before) + 1 : t])
            expected = corpus.next_counts(context)
            assert read.n_context_T[t] == len(context)
            assert (read.count_T[t], read.total_T[t]) == (expected[token], sum(expected.values()))
            assert read.log_probs_T[t] == (math.log(expected[token] / sum(expected.values())) if expected[token] else -math.inf)


def test_where_documents_lack_end_of_text_their_end_counts_as_one() -> None:
    corpus = small_corpus("no end-of-text")
    searcher = Searcher([corpus.index])
    last = next(d for d in corpus.train.values() if len(d) > 3)[-3:]
    assert next_counts(searcher, last)[EOS] == corpus.next_counts(last)[EOS] > 0
    for part in searcher.parts:
        searcher.corpora[part.corpus].manifest.eos_id = None
    assert next_counts(searcher, last)[NO_TOKEN] == corpus.next_counts(last)[EOS]


def test_a_text_of_no_known_context_has_the_unigram_distribution() -> None:
    corpus = small_corpus("16 bits")
    searcher = Searcher([corpus.index])
    found = next_tokens(searcher, [10**6, -1])
    assert found.ids == []
    assert {t.id: t.count for t in found.tokens} == dict(corpus.next_counts([]))
    assert len(infgram_log_probs(searcher, []).log_probs_T) == 0


# ---- beside infini-gram ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """infini-gram's engine over the training documents of the corpus "16 bits"."""
    engine = pytest.importorskip("infini_gram.engine")
    folder, separator = tmp_path_factory.mktemp("infini-gram"), 2**16 - 1
    tokens, offsets = [], []
    for document in small_corpus("16 bits").train.values():
        offsets.append(2 * len(tokens))
        tokens += [separator, *(token for token in document if token != EOS)]
    tokens.append(separator)  # without one at the end, it takes all that follows the last token of the file for ends of documents
    np.array(tokens, "<u2").tofile(folder / "tokenized.0")
    np.array(offsets, "<u8").tofile(folder / "offset.0")
    words = ["--data_dir", str(folder), "--save_dir", str(folder), "--token_dtype", "u16", "--cpus", "1", "--mem", "1"]
    words += ["--ulimit", str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])]
    subprocess.run([sys.executable, "-m", "infini_gram.indexing", *words], check=True, capture_output=True, cwd=folder)
    return engine.InfiniGramEngine(str(folder), EOS, 70, token_dtype="u16", max_support=10**6)


def asked_of_both() -> Iterator[list[int]]:
    return queries(small_corpus("16 bits"), 120, seed=5)


def test_counts_are_those_of_infini_gram(peer: Any) -> None:
    searcher = Searcher([small_corpus("16 bits").index])
    for ids in asked_of_both():
        assert searcher.count(ids) == peer.count(ids)["count"]


def test_distributions_are_those_of_infini_gram(peer: Any) -> None:
    searcher = Searcher([small_corpus("16 bits").index])
    for ids in asked_of_both():
        ours, theirs = next_tokens(searcher, ids), peer.infgram_ntd(ids)
        assert {t.id: t.count for t in ours.tokens} == {int(t): v["cont_cnt"] for t, v in theirs["result_by_token_id"].items()}
        assert (len(ours.ids), ours.total) == (theirs["suffix_len"], theirs["prompt_cnt"])
        theirs = peer.ntd(ids[-3:])
        assert next_counts(searcher, ids[-3:]) == {int(t): v["cont_cnt"] for t, v in theirs["result_by_token_id"].items()}


def test_probabilities_of_a_text_are_those_of_infini_gram(peer: Any) -> None:
    searcher = Searcher([small_corpus("16 bits").index])
    for ids in asked_of_both():
        read = infgram_log_probs(searcher, ids)
        for t in range(1, len(ids)):
            theirs = peer.infgram_prob(ids[:t], ids[t])
            assert (read.count_T[t], read.total_T[t], read.n_context_T[t]) == (
                theirs["cont_cnt"], theirs["prompt_cnt"], theirs["suffix_len"]
            )  # fmt: skip


# ---- the command -----------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_follows(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    begun, last = PLANTED.rsplit(" ", 1)
    main([str(traced.run), "--text", f"zzz {begun}", "--top", "1"])
    context, token = capsys.readouterr().out.splitlines()
    assert context.startswith(f'after " {begun}"')
    assert token.split()[:2] == ["1.0000", "1"]
    assert last.startswith(json.loads(token.split(maxsplit=2)[2]).strip())


def test_the_end_of_a_document_follows_its_last_words(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(traced.run), "--text", EDGE, "--json", "-"])
    (found,) = json.loads(capsys.readouterr().out)
    assert [(t["text"], t["count"], t["prob"]) for t in found["tokens"]] == [("<|endoftext|>", 1, 1.0)]
    assert found["text"] == EDGE


def test_the_command_works_without_a_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    corpus = small_corpus("no end-of-text")
    main([str(corpus.shards), "--ids", "1,2", "--order", "2"])
    counts = corpus.next_counts([2])
    assert capsys.readouterr().out.splitlines()[0] == (
        f"after ids 2 (1 tokens, {sum(counts.values())} times): {len(counts)} different tokens"
    )


@pytest.mark.parametrize("flag", ["order", "top"])
def test_numbers_that_are_not_positive_are_told(flag: str, traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(main, [str(traced.shards), "--text", "a", f"--{flag}=0"], capsys) == f"--{flag}=0 must be positive"
