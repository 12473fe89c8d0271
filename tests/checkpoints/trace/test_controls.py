"""Controls are what they are said to be: every property looked up in the whole corpus, token by token."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from checkpoints.trace.controls import ControlOptions, choose_controls
from checkpoints.trace.likeness import Likeness, Tolerance, unigram_log_probs
from checkpoints.trace.queries import document_ordinal
from checkpoints.trace.span_probability import SpanQuery
from data_tools.trace.answer import Place
from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig
from data_tools.trace.searcher import Searcher
from tests.checkpoints.trace.planted import PLANTED, Planted
from tests.corpora import Spec, write_corpus

OPTIONS = ControlOptions(24)


@pytest.fixture(scope="module")
def searcher(planted: Planted) -> Searcher:
    return Searcher([planted.shards / "trace"])


def training_documents(searcher: Searcher) -> list[list[int]]:
    return [
        file.read(*file.index.span(ordinal)).tolist()
        for corpus in searcher.corpora
        for file in corpus.files
        for ordinal in range(len(file.index.starts) - 1)
        if file.index.train_position(file.index.span(ordinal)[0]) is not None
    ]


def grams(documents: list[list[int]], n: int) -> set[tuple[int, ...]]:
    return {tuple(document[i : i + n]) for document in documents for i in range(len(document) - n + 1)}


@pytest.fixture(scope="module")
def query(searcher: Searcher) -> SpanQuery:
    """In the middle of the planted document."""
    ids = searcher.tokenizer.encode(" " + PLANTED)
    place = searcher.places(searcher.find(ids[12:30]))[0]
    return SpanQuery(ids[12:30], ids[2:12], place)


def test_controls_have_every_property(searcher: Searcher, query: SpanQuery) -> None:
    controls, matching = choose_controls(searcher, query, OPTIONS)
    log_probs = unigram_log_probs(searcher)
    too_long = grams(training_documents(searcher), matching.max_shared + 1)
    assert len(controls) == matching.found == OPTIONS.n
    wanted = log_probs[list(query.ids)].sum()
    taken: set[tuple[int, int]] = set()
    for control in controls:
        place = control.place
        assert place is not None
        file = searcher.file(place)
        start, end = file.index.span(document_ordinal(searcher, place))
        assert file.index.train_position(place.offset) is None
        assert start + len(query.context_ids) <= place.offset
        assert place.offset + len(query.ids) <= end
        assert len(control.ids) == len(query.ids)
        assert list(control.ids) == file.read(place.offset, place.offset + len(query.ids)).tolist()
        assert list(control.context_ids) == file.read(place.offset - len(query.context_ids), place.offset).tolist()
        assert 0 not in control.ids  # end of text
        assert abs(log_probs[list(control.ids)].sum() - wanted) <= matching.caliper * len(query.ids)
        assert abs(log_probs[list(control.ids)].sum() - wanted) <= (matching.largest_difference + 1e-9) * len(query.ids)
        tokens = {(place.file, place.offset + i) for i in range(len(query.ids))}
        assert not tokens & taken
        taken |= tokens
        around = file.read(start, end).tolist()
        at, limit = place.offset - start, matching.max_shared
        for first in range(max(0, at - limit), at + len(query.ids) - limit):
            assert tuple(around[first : first + limit + 1]) not in too_long
    assert len({tuple(control.ids) for control in controls}) == len(controls)
    assert matching.max_shared == len(query.ids) // 2
    assert matching.n_documents == len({document_ordinal(searcher, c.place) for c in controls if c.place is not None})


def test_controls_begin_as_the_span_and_have_about_as_many_words(searcher: Searcher, query: SpanQuery) -> None:
    controls, _ = choose_controls(searcher, query, OPTIONS)

    def words(before: int, ids: list[int]) -> list[bool]:
        texts = [searcher.tokenizer.decode([i]) for i in [before, *ids]]
        return [not (a[-1].isalnum() and b[0].isalnum()) for a, b in pairwise(texts)]

    own = words(query.context_ids[-1], list(query.ids))
    for control in controls:
        found = words(control.context_ids[-1], list(control.ids))
        assert found[0] == own[0]
        assert abs(sum(found) - sum(own)) <= max(1, len(query.ids) // 10)


def test_the_nearest_candidates_are_taken(searcher: Searcher, query: SpanQuery) -> None:
    few, matching = choose_controls(searcher, query, replace(OPTIONS, n=4))
    more, wider = choose_controls(searcher, query, OPTIONS)
    assert matching.n_candidates == wider.n_candidates
    assert matching.largest_difference <= wider.largest_difference
    assert [control.place for control in few] == [control.place for control in more[:4]]


def test_a_seed_draws_the_same_controls_again(searcher: Searcher, query: SpanQuery) -> None:
    few = replace(OPTIONS, n=8)
    places = [[control.place for control in choose_controls(searcher, query, replace(few, seed=s))[0]] for s in (0, 0, 1)]
    assert places[0] == places[1] != places[2]


def test_a_context_across_documents_has_controls_with_such_contexts(searcher: Searcher, query: SpanQuery) -> None:
    crossing = replace(query, context_ids=[*query.context_ids[:5], 0, *query.context_ids[5:]])
    controls, _ = choose_controls(searcher, crossing, OPTIONS)
    across = 0
    for control in controls:
        assert control.place is not None
        file = searcher.file(control.place)
        gaps = file.index.load(".heldout.idx")
        stream = np.concatenate([file.read(int(start), int(end)) for start, end, _ in gaps])
        gap = next(g for g in gaps if g[0] <= control.place.offset < g[1])
        at = int(gap[2] + control.place.offset - gap[0])
        assert stream[at - len(crossing.context_ids) : at].tolist() == list(control.context_ids)
        across += 0 in control.context_ids
    assert across > 0


def test_a_held_out_span_is_no_control_of_itself(searcher: Searcher, query: SpanQuery) -> None:
    first = choose_controls(searcher, query, OPTIONS)[0][0]
    controls, _ = choose_controls(searcher, first, replace(OPTIONS, n=1000))
    assert first.place is not None
    for control in controls:
        assert control.place is not None
        assert abs(control.place.offset - first.place.offset) >= len(first.ids)
        assert control.ids != first.ids


def test_blocked_documents_are_no_controls(searcher: Searcher, planted: Planted, query: SpanQuery) -> None:
    place = choose_controls(searcher, query, OPTIONS)[0][0].place
    assert place is not None
    file = searcher.file(place)
    name = file.index.row(document_ordinal(searcher, place)).id
    start, end = file.index.span(document_ordinal(searcher, place))
    blocking = Searcher([planted.shards / "trace"], blocked=[name])
    found = [control.place for control in choose_controls(blocking, query, OPTIONS)[0]]
    assert len(found) == OPTIONS.n
    assert not any(start <= other.offset < end for other in found if other is not None)


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    folder = tmp_path_factory.mktemp("two sources")
    write_corpus(folder / "shards", Spec(n_documents=400, heldout_frac=0.3, max_length=60))
    return Searcher([build(IndexConfig(shards=str(folder / "shards"), processes=1))])


def span_of(searcher: Searcher, file: int) -> SpanQuery:
    at = next(
        start + 5
        for start, end in (searcher.corpora[0].files[file].index.span(n) for n in range(150))
        if end - start > 20 and searcher.corpora[0].files[file].index.train_position(start) is not None
    )
    ids = searcher.corpora[0].files[file].read(at - 5, at + 8).tolist()
    return SpanQuery(ids[5:], ids[:5], Place(0, file, at))


def test_controls_are_of_the_spans_own_source_first(two_sources: Searcher) -> None:
    files = two_sources.corpora[0].files
    number = next(n for n, file in enumerate(files) if file.entry.source == "b")
    query = span_of(two_sources, number)
    loose = ControlOptions(6, Tolerance(caliper=2.0), max_shared=7)
    controls, matching = choose_controls(two_sources, query, loose)
    assert matching.same_source
    assert {two_sources.file(c.place).entry.source for c in controls if c.place is not None} == {"b"}
    every, matching = choose_controls(two_sources, query, replace(loose, n=2000))
    assert not matching.same_source
    sources = [two_sources.file(c.place).entry.source for c in every if c.place is not None]
    assert set(sources) == {"a", "b"}
    assert sources == sorted(sources, reverse=True)
    assert matching.found == len(every) < 2000


def test_without_a_tokenizer_every_token_is_a_word(two_sources: Searcher) -> None:
    like = Likeness(two_sources, 3, [5, 6], Tolerance(caliper=100.0))
    assert like.difference(np.array([9, 5, 6])) == 0.0


def test_an_id_that_training_does_not_have_is_as_improbable_as_one_seen_once(two_sources: Searcher) -> None:
    log_probs = unigram_log_probs(two_sources)
    counts = two_sources.unigrams
    assert np.isfinite(log_probs).all()
    assert log_probs[np.flatnonzero(counts)] == pytest.approx(np.log(counts[counts > 0] / counts.sum()))
