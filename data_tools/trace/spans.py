"""The maximal spans of a text that stand verbatim in training documents."""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_tools.trace.config import Rank, SpansConfig
from data_tools.trace.searcher import Ranges, Searcher
from data_tools.trace.text_tokens import TextTokens


@dataclass(frozen=True)
class Match:
    """Tokens [start, end) of the text stand in training documents."""

    start: int
    end: int
    ids: list[int]
    """As they stand there. They are the text's own, but for its first word, which may stand there after a space."""
    ranges: Ranges
    count: int
    log_prob: float
    """Sum of the unigram log-probabilities of its tokens, nats; of those of the text, if they stand so."""


@dataclass(frozen=True)
class _Candidate:
    start: int
    end: int
    forms: list[list[int]]
    """Ids, one or both of a span from the beginning."""
    log_prob: float
    """Of the first form."""


def maximal_spans(searcher: Searcher, tokens: TextTokens, config: SpansConfig) -> list[Match]:
    """The maximal spans of a text, the first in `config.rank` first; equal ones by place.

    A span [start, end) of tokens is *admissible* if it stands in a training document, if no delimiter ends in it before its last
    token, and, with `config.words`, if words of the text begin or end at both of its ends. It is *maximal* if no other admissible
    span holds it. `min_tokens` and `max_count` leave out maximal spans; they do not make others maximal.

    A text is tokenized without the space that stands before its first word within a document. So, with `config.words`, spans
    from the beginning are looked for in both forms: the longer is told, and of equally long ones that which stands more often,
    with its ids and its count.
    """
    found = _candidates(searcher, tokens, config)
    match config.rank:
        case Rank.UNIGRAM:
            found.sort(key=lambda c: (c.log_prob, c.start))
        case Rank.LENGTH:
            found.sort(key=lambda c: (c.start - c.end, c.start))
    matches = _matches(searcher, found, len(found) if config.rank == Rank.COUNT else config.max_spans or len(found))
    if config.rank == Rank.COUNT:
        matches = iter(sorted(matches, key=lambda match: (match.count, match.start)))
    kept: list[Match] = []
    for match_ in matches:
        if len(kept) == config.max_spans:
            break
        if config.max_count is None or match_.count <= config.max_count:
            kept.append(match_)
    return kept


def _matches(searcher: Searcher, found: list[_Candidate], batch: int) -> Iterator[Match]:
    """Count them, `batch` at a time: so many are wanted, unless some stand too often."""
    for at in range(0, len(found), max(batch, 1)):
        some = found[at : at + batch]
        found_ranges = iter(searcher.find_all([ids for c in some for ids in c.forms]))
        for c in some:
            ranges, ids = max(((next(found_ranges), ids) for ids in c.forms), key=lambda form: form[0].count)
            yield Match(c.start, c.end, ids, ranges, ranges.count, c.log_prob)


def _candidates(searcher: Searcher, tokens: TextTokens, config: SpansConfig) -> list[_Candidate]:
    """Maximal spans of at least min_tokens, by place.

    The furthest admissible end never comes back from one start to the next, so a span is maximal when it ends beyond all that
    began before it: one search per start, however often it stands.
    """
    n = len(tokens)
    if n == 0:
        return []
    edges = np.flatnonzero(tokens.is_edge) if config.words else np.arange(n + 1)
    starts = edges[:-1]
    limits = _limits(tokens, config.delimiters)[starts]
    spaced = tokens.spaced if config.words else None
    # Both texts at once, with an id between them that matches nothing.
    both = tokens.ids if spaced is None else [*tokens.ids, -1, *spaced.ids]
    lengths = searcher.longest(both, starts=starts if spaced is None else np.append(starts, n + 1))
    ends = _edge_at_or_before(edges, np.minimum(starts + lengths[starts], limits))
    found, reached = [], 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        forms = [tokens.ids[start:end]]
        if start == 0 and spaced is not None:
            end, forms = _first_forms(tokens, edges[edges <= limits[0]], end, int(lengths[n + 1]))
        if end > max(reached, start):
            reached = end
            if end - start >= config.min_tokens:
                found.append(_Candidate(start, end, forms, float(searcher.unigram_log_probs[forms[0]].sum())))
    return found


def _edge_at_or_before(edges: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return edges[np.searchsorted(edges, ends, side="right") - 1]


def _limits(tokens: TextTokens, delimiters: list[str]) -> np.ndarray:
    """int64 (T,): the first token boundary after a delimiter that begins in or after token t, or the end of the text."""
    limits = np.full(len(tokens), len(tokens), np.int64)
    for delimiter in delimiters:
        at = tokens.text.find(delimiter)
        while at >= 0:
            # The last token that begins at or before the delimiter is the last start of a span that holds all of it.
            first = bisect.bisect_right(tokens.char_starts, at) - 1
            boundary = bisect.bisect_left(tokens.char_ends, at + len(delimiter)) + 1
            limits[first] = min(limits[first], boundary)
            at = tokens.text.find(delimiter, at + 1)
    return np.minimum.accumulate(limits[::-1])[::-1]


def _first_forms(tokens: TextTokens, edges: np.ndarray, end: int, spaced_length: int) -> tuple[int, list[list[int]]]:
    """(end, ids) of the span from the beginning: as the text has it, which stands up to `end`, or after a space, or both."""
    spaced, reached, n = tokens.spaced, 0, 0
    assert spaced is not None
    for edge in edges[1:].tolist():
        here = _spaced_boundary(tokens, spaced, edge)
        if here is not None and here <= spaced_length:
            reached, n = edge, here
    plain = [tokens.ids[:end]]
    if reached <= end:
        return end, [*plain, spaced.ids[:n]] if 0 < reached == end else plain
    return reached, [spaced.ids[:n]]


def _spaced_boundary(tokens: TextTokens, spaced: TextTokens, edge: int) -> int | None:
    """The token boundary of `spaced` at the same character as boundary `edge` > 0; None if there is none."""
    boundary = bisect.bisect_right(spaced.char_ends, tokens.char_ends[edge - 1] + 1)
    is_same = boundary > 0 and spaced.char_ends[boundary - 1] == tokens.char_ends[edge - 1] + 1
    return boundary if is_same and spaced.is_edge[boundary] else None
