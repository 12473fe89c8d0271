"""Cold mode: the same answers, and every page that a search looks at was asked for in one of a few rounds."""

import numpy as np
import pytest

from data_tools.trace import cold
from data_tools.trace.cold import PAGE, Reads, ask, page_runs
from data_tools.trace.index_folder import STRIDE
from data_tools.trace.searcher import Searcher
from tests.data_tools.trace.brute import Brute, BruteSpec

LOG_STRIDE = 8


@pytest.fixture(scope="module", params=["one part", "parts", "not separated"])
def brute(request, tmp_path_factory):
    whole = {"max_tokens_per_file": 10**6, "max_tokens_per_part": 10**6}
    specs = {
        "one part": BruteSpec(vocab=3, n_documents=200, max_length=300, seed=1, **whole),
        "parts": BruteSpec(vocab=50, n_documents=300, max_length=200, max_tokens_per_file=9000, max_tokens_per_part=5000, seed=2),
        "not separated": BruteSpec(vocab=4, n_documents=100, max_length=300, ends_in_eos=False, seed=3, **whole),
    }
    return Brute(tmp_path_factory.mktemp("cold"), specs[request.param])


def test_cold_and_warm_give_the_same_answers(brute):
    warm, chill = Searcher([brute.index]), Searcher([brute.index], cold=True)
    queries = brute.queries(100)
    for split in ("train", "heldout"):
        for a, b in zip(warm.find_all(queries, split), chill.find_all(queries, split), strict=True):
            assert np.array_equal(a.ranges_P2, b.ranges_P2)
            assert warm.places(a, 5, seed=1) == chill.places(b, 5, seed=1)
        text = brute.text(10)
        assert warm.longest(text, split).tolist() == chill.longest(text, split).tolist()
    assert warm.reads == Reads(0, 0)


def test_blocked_documents_are_blocked_in_cold_mode(brute):
    blocked = {f"d{n}" for n in range(10)}
    warm, chill = Searcher([brute.index], blocked=blocked), Searcher([brute.index], blocked=blocked, cold=True)
    for query in brute.queries(50):
        assert warm.count(query) == chill.count(query)
        assert warm.longest(query).tolist() == chill.longest(query).tolist()


def test_all_searches_together_take_a_bounded_number_of_rounds(brute):
    searcher = Searcher([brute.index], cold=True)
    text = brute.text(30)
    searcher.longest(text)
    rows = max(len(part.top["train"]) for part in searcher.parts)
    # The suffixes, a comparison of tokens for each halving; twice for each halving of rows with the same first tokens.
    assert 1 <= searcher.reads.rounds <= 1 + LOG_STRIDE + 2 * int(np.ceil(np.log2(rows + 1)))
    one = searcher.reads.rounds
    searcher.find_all([text[n : n + 5] for n in range(0, len(text), 5)])
    assert searcher.reads.rounds - one <= 2 * (1 + LOG_STRIDE + 2 * int(np.ceil(np.log2(rows + 1))))


def test_every_page_that_a_search_looks_at_was_asked_for(brute, monkeypatch):
    asked: dict[str, set[int]] = {}
    monkeypatch.setattr(cold, "_will_need", lambda path, pages: asked.setdefault(path, set()).update(pages.tolist()))
    searcher = Searcher([brute.index], cold=True)
    for query in brute.queries(40):
        asked.clear()
        searcher.find(query)
        for part in searcher.parts:
            sa, size = part.sa["train"], part.tokens.itemsize
            for at, known in looked_at(part, query):
                assert 4 * at // PAGE in asked[part.sa_paths["train"]]
                read = part.record.start + min(int(sa[at]) + known, len(part.tokens) - 1)
                assert read * size // PAGE in asked[part.tokens_path]


def looked_at(part, query):
    """(number, tokens known to be equal) of suffixes that a binary search within the table's rows compares, for both ends."""
    sa = part.sa["train"]
    if any(i == 0 or not 0 <= i < len(part.rank_V) for i in query):
        return
    wanted = part.rank_V[query].tolist()
    ends = np.asarray(part.ends) if len(part.ends) else np.flatnonzero(part.tokens == 0) + 1

    def suffix(at):
        first = int(sa[at])
        last = min(first + len(wanted), int(ends[np.searchsorted(ends, first, side="right")]))
        return part.rank_V[part.tokens[first:last]].tolist()

    def equal(at):
        ranks = suffix(at)
        return next((k for k, (a, b) in enumerate(zip(ranks, wanted, strict=False)) if a != b), len(ranks))

    for upper in (False, True):
        rows = [suffix(at)[:8] for at in range(0, len(sa), STRIDE)]
        key = wanted[:8]
        certain = [r for r, ranks in enumerate(rows) if ranks[: len(key)] < key or (upper and len(wanted) <= 8 and ranks == key)]
        after = [
            r for r, ranks in enumerate(rows) if ranks[: len(key)] > key or (not upper and len(wanted) <= 8 and ranks == key)
        ]
        low = (max(certain) * STRIDE + 1) if certain else 0
        high = min(after) * STRIDE if after else len(sa)
        while low < high:
            middle = (low + high) // 2
            yield middle, min(equal(low - 1) if low else 0, equal(high) if high < len(sa) else 0)
            ranks = suffix(middle)
            is_before = ranks < wanted or (upper and ranks == wanted)
            low, high = (middle + 1, high) if is_before else (low, middle)


def test_tokens_around_places_are_asked_for_in_one_round(brute):
    searcher, warm = Searcher([brute.index], cold=True), Searcher([brute.index])
    places = searcher.places(searcher.find([1]), 20)
    before = searcher.reads.rounds
    searcher.bring_in(places, 5000, 5000)
    assert searcher.reads.rounds == before + 1
    warm.bring_in(places, 5000, 5000)
    assert warm.reads == Reads(0, 0)
    searcher.bring_in([], 5, 5)
    assert searcher.reads.rounds == before + 1


def test_pages_are_those_that_hold_the_bytes():
    assert page_runs(np.array([0, PAGE - 1, 5 * PAGE]), np.array([1, PAGE + 1, 6 * PAGE])).tolist() == [0, 1, 5]


def test_a_round_asks_for_each_page_once_in_the_order_of_files(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cold, "_will_need", lambda path, pages: seen.append((path.name, pages.tolist())) if len(pages) else None)
    reads, asked = Reads(), {}
    ask([(tmp_path / "b", np.array([9, 2])), (tmp_path / "a", np.array([4])), (tmp_path / "b", np.array([2, 3]))], asked, reads)
    assert seen == [("a", [4]), ("b", [2, 3, 9])]
    assert reads == Reads(rounds=1, pages=4)
    ask([(tmp_path / "b", np.array([2, 3]))], asked, reads)
    assert reads == Reads(rounds=1, pages=4)


def test_pages_are_read_where_the_system_cannot_be_told(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * PAGE))
    read = []
    monkeypatch.delattr("os.posix_fadvise", raising=False)
    monkeypatch.setattr("os.pread", lambda descriptor, n, offset: read.append((offset, n)))
    ask([(path, np.array([2, 0, 1, 5]))], {}, Reads())
    assert read == [(0, 3 * PAGE), (5 * PAGE, PAGE)]
