import json
import random
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from data_tools.trace import repeat_kernels as kernels
from data_tools.trace.repeats import Repeat, RepeatsOptions, find_repeats, main
from data_tools.trace.searcher import Searcher
from tests.data_tools.texts import refusal
from tests.data_tools.trace.small_corpora import SmallCorpus, small_corpus
from tests.data_tools.trace.traced import COPIED, REPEATED, Traced, opened

ALL = 10**6
Run = tuple[int, ...]


def all_repeats(corpus: SmallCorpus, n: int) -> dict[Run, Repeat]:
    """Every run of at least n tokens that stands there more than once and less often with any token added."""
    found, counts = {}, Counter(corpus.runs(n))
    while any(count > 1 for count in counts.values()):
        longer = Counter(corpus.runs(len(next(iter(counts))) + 1))
        most: Counter[Run] = Counter()
        for run, count in longer.items():
            for shorter in (run[1:], run[:-1]):
                most[shorter] = max(most[shorter], count)
        for run, count in counts.items():
            if count > 1 and most[run] < count:
                there = corpus.occurrences(list(run))
                found[run] = Repeat(run, count, count_apart(there, len(run)), len({name for name, _ in there}))
        counts = longer
    return found


def count_apart(there: list[tuple[str, int]], length: int) -> int:
    n, name, free = 0, "", 0
    for document, at in there:  # by document and place
        if document != name or at >= free:
            n, name, free = n + 1, document, at + length
    return n


def stands_in(part: Run, whole: Run) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


@pytest.fixture(params=["32 bits", "many parts", "no end-of-text"])
def corpus(request: pytest.FixtureRequest) -> SmallCorpus:
    return small_corpus(request.param)


@pytest.fixture(params=[False, True], ids=["all documents", "some blocked"])
def searched(request: pytest.FixtureRequest, corpus: SmallCorpus) -> tuple[Searcher, SmallCorpus]:
    blocked = set(random.Random(0).sample(sorted(corpus.train) + sorted(corpus.heldout), 8)) if request.param else set()
    return Searcher([corpus.index], blocked=blocked), corpus.without(blocked)


@pytest.mark.parametrize("by_documents", [False, True], ids=["by occurrences", "by documents"])
def test_the_list_is_that_of_brute_force(searched: tuple[Searcher, SmallCorpus], by_documents: bool) -> None:
    searcher, corpus = searched
    for n in (1, 3):
        expected = all_repeats(corpus, n)
        ranks = sorted(((r.documents if by_documents else r.apart) for r in expected.values()), reverse=True)
        ranks = [rank for rank in ranks if rank > 1]
        for top in (7, ALL):
            told = find_repeats(searcher, RepeatsOptions(n, top, 2, by_documents, nested=True, memory_mib=1))
            assert told.is_exact
            assert [r.documents if by_documents else r.apart for r in told.found] == ranks[:top]
            assert all(expected[r.ids] == r for r in told.found)
            assert len({r.ids for r in told.found}) == len(told.found)


@pytest.mark.parametrize("memory_mib", [0.01, 0.001])
def test_with_too_little_memory_the_list_is_right_as_far_as_it_says(corpus: SmallCorpus, memory_mib: float) -> None:
    # Few cells, so that different runs are counted together, and few runs that can be looked at.
    searcher = Searcher([corpus.index])
    expected = all_repeats(corpus, 3)
    for top in (3, ALL):
        told = find_repeats(searcher, RepeatsOptions(3, top, nested=True, memory_mib=memory_mib))
        least = 2 if told.is_exact else told.exact_from
        ranks = sorted((r.apart for r in expected.values() if r.apart >= least), reverse=True)
        assert [r.apart for r in told.found if r.apart >= least] == ranks[:top]
        assert all(expected[r.ids] == r for r in told.found)


def test_too_little_memory_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    corpus = small_corpus("many tokens")
    main([str(corpus.shards), "--tokens", "1", "--top", "1000", "--memory", "0.001"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("not exact: repeats with fewer than ")


def test_without_nested_ones_every_repeat_is_told_or_nested_in_what_ranks_higher(searched: tuple[Searcher, SmallCorpus]) -> None:
    searcher, corpus = searched
    for n in (1, 4):
        expected = all_repeats(corpus, n)
        told = [r.ids for r in find_repeats(searcher, RepeatsOptions(n, ALL, memory_mib=1)).found]
        for run, repeat in expected.items():
            nested = [other for other in told if other != run and (stands_in(run, other) or stands_in(other, run))]
            if run in told:
                assert not nested
            elif repeat.apart > 1:
                assert any(expected[other].apart >= repeat.apart for other in nested)
        some = find_repeats(searcher, RepeatsOptions(n, 5, memory_mib=1)).found
        assert [expected[r.ids].apart for r in some] == [expected[run].apart for run in told[:5]]


def test_the_least_number_bounds_the_list(searched: tuple[Searcher, SmallCorpus]) -> None:
    searcher, corpus = searched
    expected = all_repeats(corpus, 2)
    for least in (3, 6):
        told = find_repeats(searcher, RepeatsOptions(2, ALL, least, nested=True, memory_mib=1)).found
        assert {r.ids for r in told} == {run for run, r in expected.items() if r.apart >= least}


def test_a_run_of_one_token_is_told_once_with_what_it_holds_apart(tmp_path: Path) -> None:
    corpus = small_corpus("two tokens")
    searcher = Searcher([corpus.index])
    told = find_repeats(searcher, RepeatsOptions(4, ALL, memory_mib=1)).found
    alone = [r for r in told if len(set(r.ids)) == 1]
    assert len(alone) == len({r.ids[0] for r in alone})
    assert any(r.count > r.apart for r in alone)


def test_the_command_tells_text_documents_and_steps(traced: Traced, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(traced.run), "--tokens", "14", "--top", "30", "--json", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out").read_text())
    assert found["is_exact"]
    first = found["repeats"][0]
    assert any(REPEATED[:20] in repeat["text"] for repeat in found["repeats"])
    assert first["repeat"]["count"] == opened(traced.run).searcher.count(first["repeat"]["ids"]) > 1
    assert first["first_steps"] == sorted(first["first_steps"])
    assert first["first_steps"]
    assert printed.startswith(f"1. {first['repeat']['apart']} times")
    assert "; first seen at step " in printed


def test_copies_of_a_document_are_told_as_one_long_span(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(traced.shards), "--tokens", "14", "--by-documents", "--top", "1", "--json", "-"])
    (found,) = json.loads(capsys.readouterr().out)["repeats"]
    assert found["repeat"]["documents"] == 3
    assert COPIED in found["text"]
    assert found["first_steps"] == []


def test_a_corpus_without_repeats_has_none(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(traced.shards), "--tokens", "2000"])
    assert capsys.readouterr().out == "no span is repeated so often\n"


BAD = (
    (["--tokens", "0"], "--tokens=0 must be at least 1"),
    (["--top", "0"], "--top=0 must be at least 1"),
    (["--min-count", "1"], "--min-count=1 must be at least 2"),
    (["--min-count", "0", "--by-documents"], "--min-count=0 must be at least 1"),
    (["--memory", "0"], "--memory=0.0 must be a positive number of MiB"),
)


@pytest.mark.parametrize("words, message", BAD, ids=[message for _, message in BAD])
def test_options_that_cannot_be_are_told(
    words: list[str], message: str, traced: Traced, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(main, [str(traced.shards), *words], capsys) == message


def test_occurrences_apart_are_the_most_that_can_be_taken() -> None:
    rng = random.Random(0)
    for _ in range(100):
        starts, length, best = sorted(rng.sample(range(20), rng.randint(1, 9))), rng.randint(1, 6), 0
        for n in range(1, len(starts) + 1):
            if any(all(b - a >= length for a, b in pairwise(chosen)) for chosen in combinations(starts, n)):
                best = n
        assert kernels.count_apart(np.array(starts), length) == best
