"""A belief is what each checkpoint says of the span and its controls; its effect is there where training repeated the span."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.load import load_model
from checkpoints.opening import open_checkpoint
from checkpoints.trace.belief import BeliefOptions, BeliefProgress, iterate_belief, measure_belief
from checkpoints.trace.controls import ControlOptions, choose_controls
from checkpoints.trace.estimate import estimate_effect
from checkpoints.trace.likeness import Tolerance
from checkpoints.trace.queries import query_place
from checkpoints.trace.results import Belief
from checkpoints.trace.span_choice import SpanChoice, choose_query
from checkpoints.trace.span_probability import SpanQuery, score_spans, span_log_probs
from data_tools.trace.answer import Mark, Place
from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig
from data_tools.trace.opening import Trace, load_trace_config, open_trace
from data_tools.trace.searcher import Searcher
from olmo_train.errors import CheckpointError, ConfigError
from tests.checkpoints.trace.planted import PLANTED, STEPS, Planted
from tests.corpora import Spec, write_corpus

TEXT = "the dog sees it and the old river hears it red bird small house and then"
SPAN = " the old river hears it red bird small house"
SAVED = [0, 1, 2, 4, 8, 10, 20, 30, 40, 50, 60]
CONTROLS = ControlOptions(24)


def trace_of(where: Path, *words: str) -> Trace:
    return open_trace(str(where), load_trace_config(list(words)))


@pytest.fixture(scope="module")
def trace(planted: Planted) -> Trace:
    return trace_of(planted.run)


@pytest.fixture(scope="module")
def query(trace: Trace) -> SpanQuery:
    return choose_query(trace, SpanChoice(TEXT, SPAN))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def belief(trace: Trace, query: SpanQuery, kept: Path) -> Belief:
    return measure_belief(trace, query, BeliefOptions(controls=CONTROLS, cache=kept))


def test_curves_are_what_each_checkpoint_says(belief: Belief, trace: Trace, query: SpanQuery, planted: Planted) -> None:
    controls, matching = choose_controls(trace.searcher, query, CONTROLS)
    assert [point.step for point in belief.span.points] == SAVED
    assert belief.matching == matching
    assert [curve.place for curve in belief.controls] == [control.place for control in controls]
    for i in (0, 5, 10):
        model = load_model(open_checkpoint(str(planted.run), SAVED[i]), torch.device("cpu"))
        for curve, asked in [(belief.span, query), *zip(belief.controls[:3], controls[:3], strict=True)]:
            expected = span_log_probs(model, asked.context_ids, asked.ids, 32)
            assert curve.points[i].log_probs_T == pytest.approx(expected, abs=2e-5)
            assert curve.points[i].log_prob == pytest.approx(sum(expected), abs=1e-4)
    assert all(curve.points[-1].tokens == 512 * STEPS for curve in (belief.span, *belief.controls))
    assert belief.span.points[-1].lr == pytest.approx(open_checkpoint(str(planted.run)).state["lr"])
    assert (belief.span.text, "".join(belief.span.tokens)) == (SPAN, SPAN)
    assert belief.span.context == trace.searcher.tokenizer.decode(list(query.context_ids))


def test_sights_are_those_of_the_order(belief: Belief, trace: Trace, query: SpanQuery) -> None:
    assert trace.history is not None
    assert query.place is not None
    order = trace.history.order
    file = order.sources[0].files[0]

    def steps(offset: int) -> list[int]:
        return [s.step for s in order.sightings(file, offset, offset + len(query.ids), STEPS)]

    places = trace.searcher.places(trace.searcher.find(query.ids))
    assert belief.count == belief.n_looked_at == len(places)
    assert sorted(step for place in places for step in steps(place.offset)) == [s.step for s in belief.all_sights]
    assert [s.step for s in belief.span.sights] == steps(query.place.offset)
    assert belief.n_sights == len(belief.all_sights) > len(places) / 2
    assert all(curve.sights == [] for curve in belief.controls)


def test_a_repeated_document_has_an_effect_above_zero(belief: Belief) -> None:
    total = belief.total
    assert total is not None
    assert (total.step_before, total.step_after) == (0, 60)
    assert 0 < total.low < total.effect
    assert total.p_value == pytest.approx(1 / 25)
    assert total == belief.profile[-1]
    assert [e.step_after for e in belief.profile] == SAVED[1:]
    assert [(e.step_before, e.step_after) for e in belief.estimates] == list(pairwise(SAVED))
    span = np.array([point.log_prob for point in belief.span.points])
    controls = np.array([[point.log_prob for point in curve.points] for curve in belief.controls])
    assert belief.profile[3] == estimate_effect(SAVED, span, controls, 0, 4, total.steps)


def test_held_out_spans_have_effects_as_often_as_chance(trace: Trace, planted: Planted) -> None:
    """40 spans that no step saw, each with controls of its own, as if a step had seen them: at 20 % about 8 effects."""
    searcher, options = trace.searcher, ControlOptions(24, max_shared=6)
    seed = SpanQuery(searcher.tokenizer.encode(" " + PLANTED)[8:18], searcher.tokenizer.encode(" " + PLANTED)[2:8])
    pretended, _ = choose_controls(searcher, seed, ControlOptions(40, Tolerance(caliper=1.5, words=0.3), max_shared=6))
    groups = [[each, *choose_controls(searcher, each, options)[0]] for each in pretended]
    flat = [each for group in groups for each in group]
    models = [load_model(open_checkpoint(str(planted.run), step), torch.device("cpu")) for step in (4, 60)]
    scores = np.array([[sum(score.log_probs_T) for score in score_spans(model, flat, 32)] for model in models]).T
    p_values, outside, at = [], 0, 0
    for group in groups:
        mine, at = scores[at : at + len(group)], at + len(group)
        found = estimate_effect([4, 60], mine[0], mine[1:], 0, 1)
        p_values.append(found.p_value)
        outside += not found.low <= 0 <= found.high
    assert len(groups) == 40
    assert 1 <= sum(p <= 0.2 for p in p_values) <= 17  # binomial(40, 0.2): outside once in a thousand times
    assert outside <= 8  # binomial(40, 0.05)


def test_experts_are_told_by_checkpoint(belief: Belief, query: SpanQuery, planted: Planted) -> None:
    choices = []
    for step in (0, 60):
        model = load_model(open_checkpoint(str(planted.run), step), torch.device("cpu"))
        choices.append(score_spans(model, [query], 32, with_experts=[0])[0].choices_LTK)
    for layer, reading in enumerate(belief.span.points[0].experts):
        first, last = choices[0][layer].tolist(), choices[1][layer].tolist()
        assert reading.layer == layer
        assert reading.top_T == [token[0] for token in first]
        both = [expert for token in first for expert in token]
        assert reading.share_E == pytest.approx([both.count(expert) / len(both) for expert in range(4)])
        same = sum(len(set(a) & set(b)) for a, b in zip(first, last, strict=True))
        assert reading.agreement == pytest.approx(same / (2 * len(first)))
    assert [reading.agreement for reading in belief.span.points[-1].experts] == [1.0, 1.0]
    assert all(point.experts == [] for curve in belief.controls for point in curve.points)


def without_weights(run: Path, *steps: int) -> None:
    for step in steps:
        for path in (run / "steps" / f"step{step:08d}").glob("model-*.safetensors"):
            path.unlink()


def test_what_was_measured_needs_no_model_again(planted: Planted, query: SpanQuery, tmp_path: Path) -> None:
    run = Path(shutil.copytree(planted.run, tmp_path / "run"))
    options = BeliefOptions(steps=(10, 20), controls=CONTROLS)
    first = measure_belief(trace_of(run), query, options)
    without_weights(run, 10, 20)
    assert measure_belief(trace_of(run), query, options) == first
    more = measure_belief(trace_of(run), query, replace(options, steps=(10, 20, 30)))  # only the new one is computed
    assert more.span.points[0].log_probs_T == first.span.points[0].log_probs_T
    with pytest.raises((CheckpointError, OSError)):
        measure_belief(trace_of(run), replace(query, ids=query.ids[1:]), options)
    with pytest.raises((CheckpointError, OSError)):
        measure_belief(trace_of(run), query, replace(options, keep=False))
    assert sorted(path.name[:20] for path in (run / "inspect/kept").iterdir()) == [f"step000000{n}-belief-" for n in (10, 20, 30)]


def test_progress_is_told(trace: Trace, query: SpanQuery, belief: Belief, kept: Path) -> None:
    *steps, last = iterate_belief(trace, query, BeliefOptions(controls=CONTROLS, cache=kept))
    assert last == belief
    assert [step.step for step in steps if isinstance(step, BeliefProgress)] == SAVED
    assert steps[0] == BeliefProgress(1, 11, 0, belief.span.points[0].log_prob)


# ---- marks, cautions -------------------------------------------------------------------------------------------------------


def test_steps_that_taught_nothing_are_no_treatment(planted: Planted, query: SpanQuery, tmp_path: Path, kept: Path) -> None:
    """All steps but the 41st are skipped in the ledger: one interval is left."""
    run = Path(shutil.copytree(planted.run, tmp_path / "run"))
    lines = [json.loads(line) for line in (run / "data.jsonl").read_text().splitlines()]
    trace = trace_of(run)
    seen = {sight.step for sight in trace.history.sighted(trace.searcher, query.place, len(query.ids)).sights}  # type: ignore[union-attr, arg-type]
    assert seen
    only = max(seen)
    for line in lines:
        line["skipped"] = None if line["step"] == only else "spike"
    (run / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = measure_belief(trace_of(run), query, BeliefOptions(controls=CONTROLS, cache=kept))
    assert {sight.step for sight in found.all_sights if sight.mark == Mark.LEARNED} == {only}
    assert [e.steps for e in found.estimates] == [[only]]
    before = max(step for step in SAVED if step < only)
    assert found.total is not None
    assert found.total.step_before == before
    assert found.placebo is None or found.placebo.step_after == before
    untaught = sum(sight.mark == Mark.SKIPPED for sight in found.all_sights)
    assert (
        f"{untaught} of {found.n_sights} sights were masked, skipped or left out: they taught nothing and do not count."
        in found.cautions
    )


def test_cautions_say_what_the_numbers_hide(belief: Belief, query: SpanQuery) -> None:
    n = belief.count
    said = "\n".join(belief.cautions)
    assert f"The span stands {n} times in training documents: the effect is of all together." in said
    assert "intervals several steps saw the span: an estimate is of its steps together." in said
    assert "Checkpoints are up to 10 steps apart" not in said or len(belief.estimates[-1].steps) < 10
    assert f"There are {len(belief.estimates)} intervals: read their p-values after Holm, or take the total." in said
    assert "The learning rate at the ends of these intervals is between 0.001 and 0.01" in said
    assert "would have changed as the controls did" in said
    assert "Only verbatim occurrences are known as sights" in said
    assert "chosen because a checkpoint generated it" in said


def measure(trace: Trace, query: SpanQuery, kept: Path, *steps: int, n: int = 8) -> Belief:
    return measure_belief(trace, query, BeliefOptions(steps or None, ControlOptions(n), cache=kept))


def test_cautions_of_controls(trace: Trace, query: SpanQuery, kept: Path) -> None:
    few = measure(trace, query, kept, 0, 60)
    assert (
        "Only 8 of 8 controls were found: the interval rests on the spread of 8 changes, and the p-value cannot be below 0.11."
        in few.cautions
    )
    one = measure(trace, query, kept, 0, 60, n=1)
    assert "Only one of 1 controls was found: there is no estimate, for one control has no spread." in one.cautions
    assert (one.estimates, one.total, one.profile) == ([], None, [])
    none = measure(trace, query, kept, 0, 60, n=0)
    assert none.cautions[-1] == "Without controls nothing tells what the span's own sights taught from what training taught."
    assert (none.controls, none.matching, none.estimates) == ([], None, [])


def test_cautions_of_the_first_sight(trace: Trace, query: SpanQuery, kept: Path) -> None:
    late = measure(trace, query, kept, 40, 50, 60)
    step = min(sight.step for sight in late.all_sights)
    assert late.total is None
    assert (
        f"The first sight is at step {step}, and no checkpoint before it, or none after it, is measured: there is no total."
        in late.cautions
    )
    assert [(e.step_before, e.step_after) for e in late.estimates] == [(40, 50), (50, 60)]


def test_a_span_that_training_does_not_have_has_no_effect(trace: Trace, kept: Path) -> None:
    query = choose_query(
        trace, SpanChoice("river river stone house house fish dog stays and and", "stone house house fish dog stays")
    )
    assert (query.place, query.context) == (None, "text")
    found = measure(trace, query, kept, 0, 60, n=4)
    assert (found.count, found.estimates, found.total, found.span.document) == (0, [], None, None)
    assert (
        "No step so far learned from the span: there is no effect to estimate, the curve shows training as a whole."
        in found.cautions
    )


def test_cautions_of_context_and_parts(trace: Trace, query: SpanQuery, kept: Path) -> None:
    text = choose_query(trace, SpanChoice(TEXT, SPAN, context="text"))  # type: ignore[arg-type]
    assert text.place == query.place
    found = measure(trace, text, kept, 0, 60, n=2)
    assert found.span.document is not None
    assert (
        "The context is the text's; the steps that saw the span predicted it from another one, that of their row."
        in found.cautions
    )
    parts = found.span.tokens
    counts = [trace.searcher.count(list(text.ids)[: len(parts) // 2]), trace.searcher.count(list(text.ids)[-(len(parts) // 2) :])]
    extra = max(counts) - found.count
    expected = f"Half of the span stands {extra:,} times more in training documents than all of it, and was learned there too."
    assert (expected in found.cautions) == (extra > 0)


# ---- privacy, places -------------------------------------------------------------------------------------------------------


def test_personal_data_are_not_shown(planted: Planted, query: SpanQuery, kept: Path) -> None:
    trace = trace_of(planted.run, "privacy.patterns={animal: bird}")
    found = measure(trace, query, kept, 60, n=2)
    assert found.span.text == SPAN.replace("bird", "[animal]")
    assert "bird" not in "".join([found.span.context, *found.span.tokens])
    assert all("bird" not in curve.text + curve.context for curve in found.controls)


def test_what_a_blocked_document_says_is_not_shown(planted: Planted, tmp_path: Path, kept: Path) -> None:
    """A row has other documents before the span's own."""
    trace = trace_of(planted.run)
    assert trace.history is not None
    file = trace.searcher.corpora[0].files[0]
    for ordinal in range(1, 200):
        start, end = file.index.span(ordinal)
        if end - start < 12 or file.index.train_position(start) is None:
            continue
        query = query_place(trace.searcher, Place(0, 0, start + 2), 6, None, trace.history.run.data)
        if query.context == "row" and 0 in query.context_ids:
            break
    blocked = tmp_path / "blocked.txt"
    blocked.write_text("some other document\n" + file.index.row(ordinal - 1).id + "\n")
    whole = measure(trace, query, kept, 60, n=0)
    assert whole.span.context == trace.searcher.tokenizer.decode(list(query.context_ids))
    cut = measure(trace_of(planted.run, f"privacy.blocked=[{blocked}]"), query, kept, 60, n=0)
    assert cut.span.context == trace.searcher.tokenizer.decode(file.read(start, start + 2))
    assert cut.span.n_context == len(query.context_ids)


# ---- errors ----------------------------------------------------------------------------------------------------------------


def test_ids_beyond_the_model_are_refused(trace: Trace, query: SpanQuery, planted: Planted) -> None:
    where = planted.run / "steps" / "step00000060"
    with pytest.raises(ConfigError) as error:
        measure_belief(trace, replace(query, context_ids=[70000]))
    assert str(error.value).startswith(f"{where}: the model has ")
    assert str(error.value).endswith(
        " rows, the span or its context has id 70000: the index is of another tokenizer; give the run's own"
    )


def test_steps_that_are_not_saved_are_refused(trace: Trace, query: SpanQuery, planted: Planted) -> None:
    with pytest.raises(ConfigError, match=f"--steps=5 not in {planted.run}; there are 0, 1, 2, 4, 8, 10, 20, 30, 40, 50, 60"):
        measure_belief(trace, query, BeliefOptions(steps=(5, 10)))


def test_a_checkpoint_without_a_step_has_no_place(trace: Trace, query: SpanQuery, planted: Planted, tmp_path: Path) -> None:
    run = Path(shutil.copytree(planted.run, tmp_path / "run"))
    state = run / "steps" / "step00000060" / "state.json"
    values = json.loads(state.read_text())
    state.write_text(json.dumps({name: value for name, value in values.items() if name != "step"}))
    with pytest.raises(ConfigError) as error:
        measure_belief(trace, query, BeliefOptions(checkpoints=str(run)))
    expected = f"{state.parent} does not say its step, so that it has no place on the curve; give a run or its releases"
    assert expected in str(error.value)


def test_steps_that_do_not_ascend_are_refused(trace: Trace, query: SpanQuery, planted: Planted, tmp_path: Path) -> None:
    run = Path(shutil.copytree(planted.run, tmp_path / "run"))
    state = run / "steps" / "step00000060" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"step": 7}))
    with pytest.raises(ConfigError) as error:
        measure_belief(trace, query, BeliefOptions(steps=(40, 60), checkpoints=str(run)))
    assert str(error.value) == (
        f"{run}: the steps of its checkpoints do not ascend (40, 7), as where stages lie in one store; name those of one stage with "
        "--steps"
    )


def test_no_control_at_all_is_an_error_with_its_remedy(trace: Trace, query: SpanQuery) -> None:
    strict = ControlOptions(16, Tolerance(caliper=1e-9))
    with pytest.raises(ConfigError) as error:
        measure_belief(trace, query, BeliefOptions(controls=strict))
    assert str(error.value) == (
        f"--controls=16: of 4096 places in held-out documents none has {len(query.ids)} tokens after {len(query.context_ids)} of "
        "context, about as many words, a unigram log-probability within --caliper=1e-09 nats per token of the span's, and at most "
        f"--max-shared={len(query.ids) // 2} tokens in a row that training documents have too; widen these, take a shorter span, or "
        "ask for the curve alone with --controls 0"
    )


def test_nothing_held_out_is_an_error_with_its_remedy(trace: Trace, query: SpanQuery, tmp_path: Path) -> None:
    write_corpus(tmp_path / "shards", Spec(n_documents=30, heldout_frac=0.0))
    searcher = Searcher([build(IndexConfig(shards=str(tmp_path / "shards"), processes=1))])
    with pytest.raises(ConfigError) as error:
        measure_belief(replace(trace, searcher=searcher), replace(query, ids=[5, 6, 7], context_ids=[4], place=None))
    assert str(error.value) == (
        f"{trace.where}: no document of its shards is held out, so there are no controls; tokenize with heldout_frac=0.01, say, "
        "before the next run, or ask for the curve alone with --controls 0"
    )
