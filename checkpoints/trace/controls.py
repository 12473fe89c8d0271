"""Control spans: tokens of held-out documents, which no step saw, as long as a span and about as improbable."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from checkpoints.trace.likeness import Likeness, Tolerance
from checkpoints.trace.results import Matching
from checkpoints.trace.span_probability import SpanQuery
from data_tools.trace.answer import Place
from data_tools.trace.searcher import Searcher
from olmo_train.data.shards import ShardFile

MIN_CANDIDATES = 4096


@dataclass(frozen=True)
class ControlOptions:
    """Which controls."""

    n: int = 64
    """0: none."""
    tolerance: Tolerance = field(default_factory=Tolerance)
    max_shared: int | None = None
    """Most tokens in a row that a control may have in common with training documents; None: half the span, at least 3."""
    candidates: int = 64
    """Places looked at for each control wanted, and MIN_CANDIDATES at least."""
    seed: int = 0


@dataclass(frozen=True)
class _Heldout:
    """A token file with held-out documents."""

    corpus: int
    number: int
    file: ShardFile
    gaps: np.ndarray
    """int64 (gaps, 3): start, end, held-out tokens before."""

    @property
    def tokens(self) -> int:
        """Held-out tokens."""
        start, end, before = self.gaps[-1].tolist()
        return int(before + end - start)


@dataclass(frozen=True)
class _Candidate:
    """A place in a held-out document with enough tokens around it."""

    heldout: _Heldout
    stream: int
    """Position among the held-out tokens of the file."""
    offset: int
    """In the file."""
    ordinal: int
    """Of the document."""
    ids: tuple[int, ...]
    difference: float
    """Of unigram log-probability from the span's, nats per token."""


def choose_controls(searcher: Searcher, query: SpanQuery, options: ControlOptions) -> tuple[list[SpanQuery], Matching]:
    """Controls for a span.

    A control has exactly as many tokens as the span and about as many words, begins with a word if the span does, stands in one
    held-out document, holds no end of text, and has as many tokens of context: those before it in its document, or, where the
    span's own context goes across documents, those before it among the held-out documents of its file. At most `max_shared`
    tokens in a row, some of them its own, stand in a training document. No two controls share a token, and none have equal
    tokens. Of the candidates (drawn by `seed`) the nearest by unigram log-probability are taken, and held-out documents of the
    span's own source before all others.
    """
    n_tokens = len(query.ids)
    max_shared = options.max_shared if options.max_shared is not None else max(3, n_tokens // 2)
    max_shared = min(max_shared, n_tokens - 1)
    own = None if query.place is None else searcher.file(query.place).entry.source
    heldout = _heldout_files(searcher)
    mine = [each for each in heldout if each.file.entry.source == own]
    others = [each for each in heldout if each.file.entry.source != own]
    chosen: list[_Candidate] = []
    looked_at = 0
    for files in filter(None, (mine, others)):
        if len(chosen) < options.n:
            found, n_drawn = _draw(searcher, files, query, options)
            looked_at += n_drawn
            apart = [candidate for candidate in found if not _is_of(candidate, query)]
            _accept(searcher, sorted(apart, key=lambda c: c.difference), chosen, options.n, max_shared)
    documents = {(c.heldout.corpus, c.heldout.number, c.ordinal) for c in chosen}
    largest = max((c.difference for c in chosen), default=0.0)
    matching = Matching(
        options.n, len(chosen), len(documents), looked_at, options.tolerance.caliper, largest,
        max_shared, options.seed, own is not None and all(c.heldout.file.entry.source == own for c in chosen),
    )  # fmt: skip
    return [_query(candidate, len(query.context_ids)) for candidate in chosen], matching


def _heldout_files(searcher: Searcher) -> list[_Heldout]:
    return [
        _Heldout(corpus, number, file, np.asarray(file.index.load(".heldout.idx"), np.int64))
        for corpus, opened in enumerate(searcher.corpora)
        for number, file in enumerate(opened.files)
        if file.entry.heldout_tokens
    ]


def _draw(
    searcher: Searcher, files: Sequence[_Heldout], query: SpanQuery, options: ControlOptions
) -> tuple[list[_Candidate], int]:
    """Places drawn evenly over the held-out tokens of some files, without those that do not fit; and how many were drawn."""
    likeness = Likeness(searcher, query.context_ids[-1], query.ids, options.tolerance)
    ends = np.cumsum([each.tokens for each in files])
    total = int(ends[-1])
    rng = np.random.default_rng(options.seed)
    drawn = rng.choice(total, min(total, max(MIN_CANDIDATES, options.n * options.candidates)), replace=False)
    which = np.searchsorted(ends, drawn, side="right")
    found = []
    for number, each in enumerate(files):
        eos = searcher.corpora[each.corpus].manifest.eos_id
        for stream, offset, ordinal in _places(each, drawn[which == number] - int(ends[number]) + each.tokens, query, eos):
            read = each.file.read(offset - 1, offset + len(query.ids)).astype(np.int64)
            difference = likeness.difference(read)
            is_blocked = searcher.blocked.holds(Place(each.corpus, each.number, offset))
            if difference is not None and eos not in read[1:] and not is_blocked:
                found.append(_Candidate(each, stream, offset, ordinal, tuple(read[1:].tolist()), difference))
    return found, len(drawn)


def _places(each: _Heldout, streams_N: np.ndarray, query: SpanQuery, eos: int | None) -> Iterator[tuple[int, int, int]]:
    """(position in the held-out stream, offset in the file, ordinal of the document) where span and context fit."""
    gap_N = np.searchsorted(each.gaps[:, 2], streams_N, side="right") - 1
    offsets_N = each.gaps[gap_N, 0] + streams_N - each.gaps[gap_N, 2]
    starts = np.asarray(each.file.index.starts, np.int64)
    ordinals_N = np.searchsorted(starts, offsets_N, side="right") - 1
    crosses = eos is not None and eos in query.context_ids
    before_N = streams_N if crosses else offsets_N - starts[ordinals_N]
    fits_N = (before_N >= len(query.context_ids)) & (offsets_N + len(query.ids) <= starts[ordinals_N + 1])
    return zip(streams_N[fits_N].tolist(), offsets_N[fits_N].tolist(), ordinals_N[fits_N].tolist(), strict=True)


def _accept(
    searcher: Searcher, candidates: list[_Candidate], chosen: list[_Candidate], wanted: int, max_shared: int
) -> None:  # fmt: skip
    """Append to `chosen`, in order, the candidates that overlap with none and that training documents do not hold."""
    each = max(64, wanted)
    for first in range(0, len(candidates), each):
        part = candidates[first : first + each]
        for candidate, shared in zip(part, _shared(searcher, part, max_shared), strict=True):
            if len(chosen) == wanted:
                return
            if shared <= max_shared and not any(_clash(candidate, other) for other in chosen):
                chosen.append(candidate)


def _is_of(candidate: _Candidate, query: SpanQuery) -> bool:
    """Whether it shares a token with the span itself, which may be held out too, or has its tokens."""
    place, n_tokens = query.place, len(query.ids)
    file = (candidate.heldout.corpus, candidate.heldout.number)
    overlap = place is not None and file == (place.corpus, place.file) and abs(candidate.offset - place.offset) < n_tokens
    return overlap or candidate.ids == tuple(query.ids)


def _clash(a: _Candidate, b: _Candidate) -> bool:
    overlap = a.heldout is b.heldout and abs(a.offset - b.offset) < len(a.ids)
    return overlap or a.ids == b.ids


def _shared(searcher: Searcher, candidates: list[_Candidate], max_shared: int) -> list[int]:
    """Most tokens in a row, at least one of the candidate's among them, that stand in a training document.

    Of the tokens before a candidate the last `max_shared` are looked at: a longer match that ends in the candidate is beyond the
    limit within these already, and one that ends before it cannot be.
    """
    windows = []
    for c in candidates:
        start, _ = c.heldout.file.index.span(c.ordinal)
        windows.append(c.heldout.file.read(max(start, c.offset - max_shared), c.offset + len(c.ids)).astype(np.int64))
    lengths = searcher.longest(np.concatenate(windows)) if windows else np.zeros(0, np.int64)
    out, at = [], 0
    for window in windows:
        left = np.arange(len(window), 0, -1)
        out.append(int(np.minimum(lengths[at : at + len(window)], left).max(initial=0)))
        at += len(window)
    return out


def _query(candidate: _Candidate, n_context: int) -> SpanQuery:
    file = candidate.heldout.file
    pieces = file.index.heldout_pieces(candidate.stream - n_context, candidate.stream)
    context = np.concatenate([file.read(start, end) for start, end in pieces])
    place = Place(candidate.heldout.corpus, candidate.heldout.number, candidate.offset)
    return SpanQuery(list(candidate.ids), context.tolist(), place)
