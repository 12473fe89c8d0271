"""Blocked documents: every answer is as if the index had been built without them."""

import numpy as np
import pytest

from data_tools.trace.blocked import sort_suffixes
from data_tools.trace.searcher import Searcher
from tests.data_tools.trace.brute import Brute, BruteSpec, named

SPECS = {
    "uint16": BruteSpec(),
    "one part": BruteSpec(seed=2, vocab=3, max_tokens_per_file=10**6, max_tokens_per_part=10**6),
    "not separated": BruteSpec(ends_in_eos=False, seed=4),
    "uint32": BruteSpec(vocab=70_000, dtype="uint32", seed=3),
}


@pytest.fixture(scope="module", params=SPECS.values(), ids=SPECS.keys())
def brute(request, tmp_path_factory):
    return Brute(tmp_path_factory.mktemp("blocked"), request.param)


@pytest.fixture
def blocking(brute):
    """Searchers over the corpus with more and more blocked documents, and the corpus without them."""

    def each():
        for number in (1, 5, 20, 39, 40):
            brute.blocked = {f"d{(7 * n) % 40}" for n in range(number)}
            yield Searcher([brute.index], blocked=brute.blocked)

    yield each
    brute.blocked = set()


def test_counts_and_places_are_those_without_the_documents(brute, blocking):
    for searcher in blocking():
        for query in brute.queries(100):
            for split in ("train", "heldout"):
                places = brute.places(query, split)
                ranges = searcher.find(query, split)
                assert ranges.count == searcher.count(query, split) == len(places)
                assert sorted(named(searcher, place) for place in searcher.places(ranges)) == places
                drawn = [named(searcher, place) for place in searcher.places(ranges, 2, seed=3)]
                assert len(set(drawn)) == len(drawn) == min(2, len(places))
                assert set(drawn) <= set(places)


def test_longest_lengths_are_those_without_the_documents(brute, blocking):
    for searcher in blocking():
        for _ in range(10):
            text = brute.text(3)
            for split in ("train", "heldout"):
                assert searcher.longest(text, split).tolist() == brute.longest(text, split)


def test_unigrams_and_tokens_are_those_without_the_documents(brute, blocking):
    for searcher in blocking():
        tokens = [i for ids in brute.split("train").values() for i in ids]
        assert searcher.unigrams.tolist() == np.bincount(tokens, minlength=brute.spec.vocab).tolist()
        assert searcher.n_tokens == len(tokens)


def test_an_index_without_any_document_left_has_no_answers(brute):
    searcher = Searcher([brute.index], blocked=set(brute.documents))
    assert searcher.count([1]) == 0
    assert searcher.longest([1, 2]).tolist() == [0, 0]
    assert searcher.places(searcher.find([1])) == []
    assert searcher.n_tokens == 0
    assert np.isneginf(searcher.unigram_log_probs).all()


def test_ids_that_no_index_holds_are_told_and_change_nothing(brute):
    searcher = Searcher([brute.index], blocked=["d3", "elsewhere", "d3", "another corpus"])
    assert searcher.blocked.n_documents == 1
    assert searcher.blocked.unknown == ["another corpus", "elsewhere"]
    plain = Searcher([brute.index], blocked=["elsewhere"])
    assert plain.blocked.parts == []
    assert plain.count([1]) == len(brute.places([1]))


def test_spans_of_blocked_documents_are_those_of_their_file(brute):
    searcher = Searcher([brute.index], blocked=["d3", "d5", "d7"])
    files = searcher.corpora[0].files
    found = {file.index.row(file.index.documents_between(int(a), int(a) + 1).start).id
             for n, file in enumerate(files) for a, b in searcher.blocked.spans(0, n).T.tolist() if b > a}  # fmt: skip
    assert found == {name for name in ("d3", "d5", "d7") if brute.documents[name]}
    assert searcher.blocked.spans(0, len(files)).shape == (2, 0)


def test_a_document_that_stands_in_two_indexes_is_blocked_in_both(tmp_path):
    brutes = [Brute(tmp_path / str(seed), BruteSpec(seed=seed)) for seed in (0, 1)]
    searcher = Searcher([brute.index for brute in brutes], blocked=["d1", "d2"])
    assert searcher.blocked.n_documents == 4
    for brute in brutes:
        brute.blocked = {"d1", "d2"}
    for query in brutes[0].queries(100):
        assert searcher.count(query) == sum(len(brute.places(query)) for brute in brutes)
        both = np.max([brute.longest(query) for brute in brutes], axis=0)
        assert searcher.longest(query).tolist() == both.tolist()


def test_suffixes_are_sorted_as_lists_of_ranks_are(tmp_path):
    rng = np.random.default_rng(0)
    for vocab in (3, 300, 70_000):
        rank_V = rng.permutation(vocab).astype(np.uint32) + 1
        ends = np.cumsum(rng.integers(0, 40, 30))
        tokens = rng.integers(0, vocab, int(ends[-1]))
        order = sort_suffixes(tokens, ends, rank_V).tolist()
        assert sorted(order) == list(range(len(tokens)))
        limit = [int(ends[np.searchsorted(ends, i, side="right")]) for i in range(len(tokens))]
        suffixes = [rank_V[tokens[i : limit[i]]].tolist() for i in order]
        assert suffixes == sorted(suffixes)
