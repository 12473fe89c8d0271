"""From measured scores to a Belief: curves with what may be shown of their texts, sights of all occurrences, and estimates."""

from dataclasses import dataclass, replace

import numpy as np

from checkpoints.trace.cautions import find_cautions
from checkpoints.trace.estimate import MIN_CONTROLS, estimate_effect, estimate_intervals, first_sight
from checkpoints.trace.experts import expert_readings
from checkpoints.trace.likeness import unigram_log_probs
from checkpoints.trace.queries import document_id, document_ordinal
from checkpoints.trace.results import Belief, BeliefCurve, BeliefPoint, Matching
from checkpoints.trace.span_probability import SpanQuery, SpanScore
from data_tools.trace.answer import Mark, Place, Sight
from data_tools.trace.opening import Trace

MAX_PLACES = 256
"""Occurrences whose steps are looked up, drawn without order."""


@dataclass(frozen=True)
class Measured:
    """One checkpoint: scores of the span (with experts), then of the controls."""

    step: int
    tokens: int
    lr: float | None
    layers: list[int]
    """Blocks that are MoE layers."""
    n_experts: int
    scores: list[SpanScore]


def build_belief(trace: Trace, queries: list[SpanQuery], matching: Matching | None, measured: list[Measured]) -> Belief:
    """Everything that the numbers and the order of the data say. `queries`: the span, then its controls."""
    query = queries[0]
    ranges = trace.searcher.find(query.ids)
    places = trace.searcher.places(ranges, MAX_PLACES)
    if query.place is not None and query.place not in places and ranges.count:
        places = [query.place, *places[: MAX_PLACES - 1]]
    sights = sorted((s for place in places for s in _sights(trace, place, len(query.ids))), key=lambda s: (s.step, s.row))
    span, *controls = [_curve(trace, each, number, measured) for number, each in enumerate(queries)]
    belief = Belief(trace.where, span, controls, [], sights, len(sights), [], ranges.count, len(places), matching=matching)
    belief = _with_estimates(belief)
    half = max(1, len(query.ids) // 2)
    parts = trace.searcher.count(query.ids[:half]), trace.searcher.count(query.ids[-half:])
    return replace(belief, cautions=find_cautions(belief, parts))


def learned_steps(sights: list[Sight]) -> list[int]:
    """Steps that updated the weights with a loss on some token of the span."""
    return sorted({s.step for s in sights if s.mark == Mark.LEARNED and s.predicted_start < s.token_end})


def _with_estimates(belief: Belief) -> Belief:
    if len(belief.controls) < MIN_CONTROLS:
        return belief
    steps = [point.step for point in belief.span.points]
    span_S = np.array([point.log_prob for point in belief.span.points])
    controls_CS = np.array([[point.log_prob for point in curve.points] for curve in belief.controls])
    seen = learned_steps(belief.all_sights)
    estimates = estimate_intervals(steps, span_S, controls_CS, seen)
    before = first_sight(steps, seen)
    if before is None:
        return replace(belief, estimates=estimates)
    profile = [estimate_effect(steps, span_S, controls_CS, before, at, seen) for at in range(before + 1, len(steps))]
    placebo = estimate_effect(steps, span_S, controls_CS, 0, before) if before else None
    return replace(belief, estimates=estimates, profile=profile, total=profile[-1], placebo=placebo)


def _sights(trace: Trace, place: Place, n_tokens: int) -> list[Sight]:
    return [] if trace.history is None else trace.history.sighted(trace.searcher, place, n_tokens).sights


def _curve(trace: Trace, query: SpanQuery, number: int, measured: list[Measured]) -> BeliefCurve:
    searcher, tokenizer = trace.searcher, trace.searcher.tokenizer
    ids, context = list(query.ids), tokenizer.decode(_shown_context(trace, query))
    (context, *tokens), _ = trace.privacy.redact_parts([context, *(tokenizer.decode([token]) for token in ids)])
    (_, text), _ = trace.privacy.redact_parts([tokenizer.decode(_shown_context(trace, query)), tokenizer.decode(ids)])
    document = None if query.place is None else document_id(searcher, query.place)
    own = [] if query.place is None else _sights(trace, query.place, len(ids))
    return BeliefCurve(
        text, context, tokens, document, float(unigram_log_probs(searcher)[ids].sum()), own,
        [_point(each, number, measured[-1]) for each in measured], query.place, query.context, len(query.context_ids),
    )  # fmt: skip


def _shown_context(trace: Trace, query: SpanQuery) -> list[int]:
    """All of it; where documents are blocked, which may stand before the span in its row, what is from its own document."""
    ids, searcher = list(query.context_ids), trace.searcher
    if query.place is None or not searcher.blocked.n_documents:
        return ids
    start, _ = searcher.file(query.place).index.span(document_ordinal(searcher, query.place))
    return ids[max(0, len(ids) - (query.place.offset - start)) :]


def _point(measured: Measured, number: int, last: Measured) -> BeliefPoint:
    score = measured.scores[number]
    if number:
        return BeliefPoint(measured.step, measured.tokens, float(sum(score.log_probs_T)), score.log_probs_T)
    final = None if measured is last and len(score.choices_LTK) == 0 else last.scores[0].choices_LTK
    experts = expert_readings(measured.layers, measured.n_experts, score.choices_LTK, final)
    return BeliefPoint(measured.step, measured.tokens, float(sum(score.log_probs_T)), score.log_probs_T, experts, measured.lr)
