"""From a text to the span that is measured: which tokens, at which place of the training data, after which context."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace

from checkpoints.trace.curves import MAX_PLACES, learned_steps
from checkpoints.trace.queries import Context, parse_place, query_place, query_text
from checkpoints.trace.span_probability import SpanQuery
from data_tools.trace.answer import Place
from data_tools.trace.opening import Trace
from data_tools.trace.spans import maximal_spans
from data_tools.trace.text_tokens import TextTokens, encode
from olmo_train.errors import ConfigError


@dataclass(frozen=True)
class SpanChoice:
    """What the user said of the span."""

    text: str
    span: str | None = None
    """Part of the text; None: the first of its spans that training documents hold."""
    context: Context | None = None
    """None: the row's where there is one, else the document's; the text's for a span that training does not have."""
    place: str | None = None
    """`corpus:file:offset`; None: the occurrence that was learned first."""


def choose_query(trace: Trace, choice: SpanChoice) -> SpanQuery:
    """The query that a choice means.

    Raises:
        ConfigError: there is no such span, place or context.
    """
    if trace.history is None:
        raise ConfigError(f"{trace.where} is no run and no release: a belief is of checkpoints; give the folder of a run")
    tokens = encode(trace.searcher.tokenizer, choice.text)
    start, end, ids = _span(trace, tokens, choice)
    data = trace.history.run.data
    place = _given_place(trace, choice.place, ids) if choice.place is not None else first_place(trace, ids)
    if choice.context == Context.TEXT or (choice.context is None and place is None):
        eos_id = trace.searcher.tokenizer.eos_id
        found = query_text(tokens.ids, start, end, eos_id, data.seq_len)
        return replace(found, ids=ids, place=place)
    if place is None:
        raise ConfigError(
            f"--context={choice.context}: no training document holds the span, so it has no {choice.context}; give --context text"
        )
    return query_place(trace.searcher, place, len(ids), choice.context, data)


def first_place(trace: Trace, ids: list[int]) -> Place | None:
    """The occurrence in training documents that a step learned from first (of MAX_PLACES looked at); None: there is none."""
    places = trace.searcher.places(trace.searcher.find(ids), MAX_PLACES)
    if trace.history is None or not places:
        return places[0] if places else None
    sighted = [trace.history.sighted(trace.searcher, place, len(ids)) for place in places]
    firsts = [min(learned_steps(each.sights), default=None) for each in sighted]
    known = [(step, n) for n, step in enumerate(firsts) if step is not None]
    return places[min(known)[1]] if known else places[0]


def _span(trace: Trace, tokens: TextTokens, choice: SpanChoice) -> tuple[int, int, list[int]]:
    """(start, end, ids): tokens of the text, and their ids as training documents have them."""
    if not tokens.ids:
        raise ConfigError(f"--text={choice.text!r} has no tokens; give some text")
    if choice.span is None:
        matches = maximal_spans(trace.searcher, tokens, trace.config.spans)
        if not matches:
            raise ConfigError(
                f"--text: no span of {trace.config.spans.min_tokens} tokens or more stands in a training document; lower "
                "spans.min_tokens, or name one with --span to measure it as it is"
            )
        return matches[0].start, matches[0].end, matches[0].ids
    at = choice.text.find(choice.span)
    if at < 0 or not choice.span:
        raise ConfigError(f"--span={choice.span!r} is no part of --text; copy it from there")
    start = bisect_right(tokens.char_ends, at)
    end = bisect_left(tokens.char_starts, at + len(choice.span))
    return start, end, _as_in_documents(trace, tokens, start, end)


def _as_in_documents(trace: Trace, tokens: TextTokens, start: int, end: int) -> list[int]:
    """A text begins without the space that its first word has within a document: the form that stands there more often."""
    ids = tokens.ids[start:end]
    if start or tokens.spaced is None:
        return ids
    spaced = tokens.spaced.ids[: bisect_left(tokens.spaced.char_starts, tokens.char_ends[end - 1] + 1)]
    return spaced if trace.searcher.count(spaced) > trace.searcher.count(ids) else ids


def _given_place(trace: Trace, words: str, ids: list[int]) -> Place:
    place = parse_place(words, trace.searcher, len(ids))
    found = trace.searcher.file(place).read(place.offset, place.offset + len(ids)).tolist()
    if found != ids:
        shown = trace.privacy.redact(trace.searcher.tokenizer.decode(found))
        raise ConfigError(f"--place={words}: {shown!r} stands there, not the span; take the place from `olmo trace text --json`")
    return place
