"""Influence: the shortlist of a span against sums made by hand, at the checkpoints before its visits and at named ones."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, pstdev

import pytest
import torch
from torch.nn import functional as F

from checkpoints.load import load_model
from checkpoints.opening import open_checkpoint
from checkpoints.trace.gradients import adam_scale, choose_parameters, example_gradient
from checkpoints.trace.influence import influence_of
from checkpoints.trace.influence_examples import heldout_examples
from checkpoints.trace.influence_results import LIMITS, DocumentInfluence, Influence, InfluenceOptions
from checkpoints.trace.influence_visits import Shortlist, StepSizes
from data_tools.trace.answer import Answer, FoundDocument, Mark, Sight, Sighted
from data_tools.trace.opening import Trace
from olmo_train.errors import ConfigError
from olmo_train.optim.schedule import multiplier
from tests.checkpoints.publish.making import make
from tests.checkpoints.trace.influences import build_index, longest_span, open_here, seen_text
from tests.runs import metrics, run_training, small
from tests.texts import VOCAB, TextCorpus

CPU = torch.device("cpu")
OPTIONS = InfluenceOptions(device="cpu", null=6, parameters=["blocks"], precondition="none")


@pytest.fixture(scope="module")
def index(corpus: TextCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(corpus.shards, tmp_path_factory.mktemp("influence"))


@pytest.fixture(scope="module")
def trace(run: Path, index: Path) -> Trace:
    return open_here(run, index)


@pytest.fixture(scope="module")
def asked(trace: Trace) -> tuple[Answer, int]:
    """A text that step 7 saw, and its span; so short that other documents hold it too."""
    for n_tokens in range(9, 2, -1):
        answer, span = longest_span(trace, seen_text(trace, 7, n_tokens))
        if len(answer.spans[span].documents) > 2:
            break
    return answer, span


@pytest.fixture(scope="module")
def influence(trace: Trace, asked: tuple[Answer, int]) -> Influence:
    return influence_of(trace, *asked, OPTIONS)


def all_sighted(document: FoundDocument, span: int) -> list[Sighted]:
    found = [s for s in document.snippets if s.span == span]
    own = [s.sighted for s in found if s.sighted is not None]
    return own + [each for s in found for each in s.copies_sighted]


def sights(document: FoundDocument, span: int) -> list[Sight]:
    return [sight for each in all_sighted(document, span) for sight in each.sights]


def by_number(influence: Influence) -> dict[int, DocumentInfluence]:
    return {document.number: document for document in influence.documents}


# ---- by hand -------------------------------------------------------------------------------------------------------------


def span_gradient(trace: Trace, answer: Answer, span: int, step: int) -> dict[str, torch.Tensor]:
    """Of -log p(span | what stands before it in the text), by plain autograd."""
    tokenizer = trace.searcher.tokenizer
    found = answer.spans[span]
    ids = [tokenizer.eos_id, *tokenizer.encode(answer.text)][: found.end + 1]
    return gradient(trace, step, ids, range(found.start + 1, found.end + 1))


def row_gradient(trace: Trace, sight: Sight, step: int) -> dict[str, torch.Tensor]:
    """Of the document that the row of a sight holds, by plain autograd."""
    assert trace.history is not None
    order = trace.history.order
    instance = order.batch(sight.step)[sight.row]
    ids = [i for piece in instance.pieces for i in piece.file.read(piece.start, piece.end).tolist()]
    document = next(d for d in order.documents(instance) if d.column_start <= sight.column_start < d.column_end)
    return gradient(trace, step, ids, range(document.column_start, document.column_end))


def gradient(trace: Trace, step: int, ids: list[int], columns: range) -> dict[str, torch.Tensor]:
    model = load_model(open_checkpoint(str(trace.where), step), CPU)
    logits_TV = model.requires_grad_()(torch.tensor([ids]))[0]
    loss = sum(F.cross_entropy(logits_TV[column - 1], torch.tensor(ids[column])) for column in columns if column > 0)
    names = choose_parameters(model.config, ["blocks"])
    parameters = dict(model.named_parameters())
    assert isinstance(loss, torch.Tensor)
    return dict(zip(names, torch.autograd.grad(loss, [parameters[name] for name in names]), strict=True))


def product(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return math.fsum(float((a[name].double() * b[name].double()).sum()) for name in a)


def test_influence_is_the_sum_over_visits_of_step_size_times_inner_product(
    trace: Trace, asked: tuple[Answer, int], influence: Influence, run: Path
) -> None:
    answer, span = asked
    lines = {line["step"]: line for line in metrics(run)}
    checked = 0
    for document in influence.documents:
        expected, cosines = 0.0, []
        for sight in sights(answer.documents[document.number], span):
            if sight.mark != Mark.LEARNED:
                continue
            assert sight.checkpoint_before is not None
            a = span_gradient(trace, answer, span, sight.checkpoint_before)
            b = row_gradient(trace, sight, sight.checkpoint_before)
            line = lines[sight.step]
            clip = min(1.0, 1.0 / line["grad_norm"])
            expected += line["lr"] * clip / line["targets"] * product(a, b)
            cosines.append(product(a, b) / math.sqrt(product(a, a) * product(b, b)))
            checked += 1
        assert document.influence == pytest.approx(expected, rel=1e-3)
        assert document.cosine == (pytest.approx(fmean(cosines), rel=1e-3) if cosines else None)
    assert checked >= 1


def test_the_document_that_the_step_saw_is_there(asked: tuple[Answer, int], influence: Influence) -> None:
    seen = [document for document in influence.documents if 7 in document.steps]
    assert seen
    assert all(each.step == 7 and each.checkpoint == 5 for document in seen for each in document.measured if each.step == 7)
    assert 5 in influence.checkpoints
    assert influence.unit == "nats"


def test_every_document_of_the_span_is_ranked_once(asked: tuple[Answer, int], influence: Influence) -> None:
    answer, span = asked
    assert sorted(by_number(influence)) == sorted(answer.spans[span].documents)
    assert sorted(document.bm25_rank for document in influence.documents) == list(range(1, len(influence.documents) + 1))
    learned = [document.influence for document in influence.documents if document.measured]
    assert learned == sorted(learned, reverse=True)
    unlearned = [document for document in influence.documents if not document.measured]
    assert influence.documents[len(learned) :] == unlearned
    for document in unlearned:
        assert (document.influence, document.cosine, document.percentile, document.steps) == (0, None, None, [])
        assert not any(sight.mark == Mark.LEARNED for sight in sights(answer.documents[document.number], span))


def test_groups_and_experts_sum_to_the_influence(influence: Influence) -> None:
    for document in influence.documents:
        for each in document.measured:
            groups = math.fsum(group.influence for group in each.groups)
            assert groups == pytest.approx(each.weight * each.dot, rel=1e-9, abs=1e-15)
            for layer in each.experts:
                kinds = [g.influence for g in each.groups if g.layer == layer.layer and g.kind.startswith("experts.")]
                assert math.fsum(layer.influence_E) == pytest.approx(math.fsum(kinds), rel=1e-9, abs=1e-15)
                assert [near is None for near in layer.cosine_E] == [x == 0 for x in layer.influence_E]
        assert document.influence == pytest.approx(math.fsum(e.weight * e.dot for e in document.measured), rel=1e-9)
    some = next(document for document in influence.documents if document.measured)
    assert {layer.layer for layer in some.measured[0].experts} == {0, 1}
    assert {"attention.q", "router", "norm", "experts.gate"} <= {group.kind for group in some.measured[0].groups}


def test_strongest_parts_are_the_largest(influence: Influence) -> None:
    document = next(document for document in influence.documents if len(document.measured) == 1)
    each = document.measured[0]
    parts = {f"layer {g.layer} {g.kind}": g.influence for g in each.groups if not g.kind.startswith("experts.")}
    for layer in each.experts:
        parts |= {f"layer {layer.layer} expert {e}": x for e, x in enumerate(layer.influence_E)}
    best = sorted(parts, key=lambda name: -abs(parts[name]))[:3]
    assert [(part.part, part.influence) for part in document.strongest] == [(name, parts[name]) for name in best]


def test_noise_is_that_of_held_out_windows(trace: Trace, asked: tuple[Answer, int], influence: Influence) -> None:
    assert [noise.checkpoint for noise in influence.null] == influence.checkpoints
    assert all(noise.n == 6 and noise.cosine_std is not None and noise.cosine_std > 0 for noise in influence.null)
    document = next(document for document in influence.documents if len(document.measured) == 1)
    assert document.cosine is not None
    noise = next(noise for noise in influence.null if noise.checkpoint == document.measured[0].checkpoint)
    assert noise.cosine_mean is not None
    assert noise.cosine_std is not None
    assert document.z == pytest.approx((document.cosine - noise.cosine_mean) / noise.cosine_std, rel=1e-6)
    assert document.percentile is not None
    assert 0 <= document.percentile <= 100
    without = influence_of(trace, *asked, replace(OPTIONS, null=0))
    assert without.null == []
    assert all((d.percentile, d.z) == (None, None) for d in without.documents)
    assert {n: d.influence for n, d in by_number(without).items()} == {n: d.influence for n, d in by_number(influence).items()}


def test_percentile_and_z_are_among_held_out_windows_meaned_over_the_same_checkpoints(
    trace: Trace, asked: tuple[Answer, int]
) -> None:
    answer, span = asked
    assert trace.history is not None
    found = influence_of(trace, answer, span, replace(OPTIONS, steps=[1, 10]))
    shortlist = Shortlist(trace.searcher, trace.history)
    rows = [shortlist.example(answer.spans[span], all_sighted(answer.documents[n], span)) for n in answer.spans[span].documents]
    files = [file for source in trace.history.order.sources for file in source.files]
    ids = trace.searcher.tokenizer.encode(answer.text)[answer.spans[span].start : answer.spans[span].end]
    null = heldout_examples(rows, files, ids, (6, 0))
    cosines = []
    for step in (1, 10):
        a = span_gradient(trace, answer, span, step)
        texts = [(example.rows.ids[0].tolist(), range(example.start, example.end)) for example in null]
        windows = [gradient(trace, step, *text) for text in texts]
        cosines.append([product(a, b) / math.sqrt(product(a, a) * product(b, b)) for b in windows])
    means = [fmean(pair) for pair in zip(*cosines, strict=True)]
    for document in found.documents:
        assert document.cosine is not None
        assert document.percentile == pytest.approx(100 * sum(mean < document.cosine for mean in means) / 6)
        assert document.z == pytest.approx((document.cosine - fmean(means)) / pstdev(means), rel=1e-3)


def test_several_checkpoints_are_summed(trace: Trace, asked: tuple[Answer, int]) -> None:
    twice = influence_of(trace, *asked, replace(OPTIONS, steps=[5, 10]))
    alone = [influence_of(trace, *asked, replace(OPTIONS, steps=[step])) for step in (5, 10)]
    for number, document in by_number(twice).items():
        each = [by_number(one)[number] for one in alone]
        assert document.influence == pytest.approx(sum(one.influence for one in each), rel=1e-9)
        assert document.cosine == pytest.approx(fmean(one.cosine or 0.0 for one in each), rel=1e-9)


def test_the_same_question_has_the_same_answer(trace: Trace, asked: tuple[Answer, int], influence: Influence) -> None:
    assert json.dumps(asdict(influence_of(trace, *asked, OPTIONS))) == json.dumps(asdict(influence))


def test_by_cosine(trace: Trace, asked: tuple[Answer, int]) -> None:
    ranked = influence_of(trace, *asked, replace(OPTIONS, rank="cosine", steps=[10]))
    cosines = [document.cosine or 0.0 for document in ranked.documents]
    assert len(cosines) > 1
    assert cosines == sorted(cosines, reverse=True)


# ---- AdamW's direction ---------------------------------------------------------------------------------------------------


def test_with_adam_the_document_is_divided_by_the_root_of_second_moments(
    trace: Trace, asked: tuple[Answer, int], run: Path
) -> None:
    answer, span = asked
    found = influence_of(trace, answer, span, replace(OPTIONS, precondition="adam"))
    document = next(document for document in found.documents if len(document.measured) == 1 and document.measured[0].step == 7)
    sight = next(s for s in sights(answer.documents[document.number], span) if s.step == 7)
    a, b = span_gradient(trace, answer, span, 5), row_gradient(trace, sight, 5)
    scales = adam_scale(open_checkpoint(str(run), 5), list(a), CPU)
    a, b = ({name: scales[name] * g for name, g in each.items()} for each in (a, b))
    assert document.measured[0].dot == pytest.approx(product(a, b), rel=1e-3)
    assert document.cosine == pytest.approx(product(a, b) / math.sqrt(product(a, a) * product(b, b)), rel=1e-3)


def test_adam_is_taken_where_it_can_be(trace: Trace, run: Path, index: Path, asked: tuple[Answer, int], tmp_path: Path) -> None:
    auto = InfluenceOptions(device="cpu", null=2, steps=[10])
    found = influence_of(trace, *asked, auto)
    assert found.options == replace(auto, precondition="adam")
    assert found.documents == influence_of(trace, *asked, replace(auto, precondition="adam")).documents
    make(run, 10, tmp_path / "release")
    plain = influence_of(open_here(tmp_path / "release", index), *asked, replace(auto, steps=None))
    assert plain.options.precondition == "none"
    assert plain.cautions[0].startswith("Plain gradients are compared, which AdamW does not follow: ")
    assert "release has no optimizer state" in plain.cautions[0]


def test_visits_before_the_first_moments_are_left_out_and_told(trace: Trace) -> None:
    answer, span = longest_span(trace, seen_text(trace, 1))
    plain = influence_of(trace, answer, span, OPTIONS)
    assert 0 in plain.checkpoints
    adam = influence_of(trace, answer, span, replace(OPTIONS, precondition="adam"))
    assert 0 not in adam.checkpoints
    assert any("before the first checkpoint with second moments and are left out" in caution for caution in adam.cautions)
    assert any("without a visit that can be measured, whose influence is given as 0" in caution for caution in adam.cautions)


def test_weights_without_moments_are_told(trace: Trace, asked: tuple[Answer, int]) -> None:
    options = replace(OPTIONS, precondition="adam", parameters=["embedding"], steps=[1])
    assert any("of the weights had no gradient before" in c for c in influence_of(trace, *asked, options).cautions)


# ---- step sizes ----------------------------------------------------------------------------------------------------------


def test_a_clipped_step_weighs_less(trace: Trace, copy: Path, index: Path, asked: tuple[Answer, int]) -> None:
    def weights(where: Trace) -> list[tuple[int | None, float]]:
        found = influence_of(where, *asked, replace(OPTIONS, null=0))
        return sorted((each.step, each.weight) for document in found.documents for each in document.measured if each.step == 7)

    before = weights(trace)
    clipped = min(1.0, 1.0 / next(line["grad_norm"] for line in metrics(copy) if line["step"] == 7))
    changed = [{**line, "grad_norm": 4.0} if line["step"] == 7 else line for line in metrics(copy)]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    assert before
    assert weights(open_here(copy, index)) == [(step, pytest.approx(weight / 4 / clipped, rel=1e-5)) for step, weight in before]


def test_without_metrics_the_schedule_says_the_learning_rate(trace: Trace, copy: Path, index: Path) -> None:
    checkpoint, lines = open_checkpoint(str(copy)), {line["step"]: line for line in metrics(copy)}
    (copy / "metrics.jsonl").unlink()
    without = open_here(copy, index).history
    assert trace.history is not None
    assert without is not None
    for step in range(1, 11):
        clip = min(1.0, 1.0 / lines[step]["grad_norm"])
        expected = StepSizes(trace.history).weight(checkpoint, step)
        assert expected == pytest.approx(lines[step]["lr"] * clip / 240, rel=1e-5)
        assert StepSizes(without).weight(checkpoint, step) == pytest.approx(lines[step]["lr"] / 240, rel=1e-6)
    assert max(line["grad_norm"] for step, line in lines.items() if step) > 1


def test_without_a_run_there_is_no_learning_rate(trace: Trace, run: Path) -> None:
    assert trace.history is not None
    sizes, checkpoint = StepSizes(trace.history), open_checkpoint(str(run))
    assert sizes.weight(checkpoint, 7) is not None
    assert sizes.weight(replace(checkpoint, run=None, state={}), 7) is None


# ---- where ---------------------------------------------------------------------------------------------------------------


def test_named_steps_are_measured_as_if_the_next_step_saw_each_document(
    trace: Trace, asked: tuple[Answer, int], run: Path
) -> None:
    answer, span = asked
    found = influence_of(trace, answer, span, replace(OPTIONS, steps=[4, 10]))
    assert found.checkpoints == [4, 10]
    config = open_checkpoint(str(run)).run
    assert config is not None
    rate = config.optim.lr * multiplier(config.optim.schedule, 5 * 256, config.max_tokens)
    for document in found.documents:
        assert [(each.checkpoint, each.step, each.row) for each in document.measured] == [(4, None, None), (10, None, None)]
        assert document.measured[0].weight == pytest.approx(rate / (16 * 15))
    assert any("as if the next step saw each document" in caution for caution in found.cautions)
    number, document = next((n, d) for n, d in by_number(found).items() if 7 in d.steps)
    sight = max(sights(answer.documents[number], span), key=lambda s: s.token_end - s.token_start)
    expected = product(span_gradient(trace, answer, span, 4), row_gradient(trace, sight, 4))
    assert document.measured[0].dot == pytest.approx(expected, rel=1e-3)


def test_a_step_folder_is_one_checkpoint(trace: Trace, run: Path, index: Path, asked: tuple[Answer, int]) -> None:
    single = open_here(run / "steps" / "step00000004", index)
    found = influence_of(single, *asked, OPTIONS)
    same = influence_of(trace, *asked, replace(OPTIONS, steps=[4]))
    assert [(d.number, d.influence) for d in found.documents] == [(d.number, d.influence) for d in same.documents]
    with pytest.raises(
        ConfigError, match="--steps goes with the folder of a run or of releases; .*step00000004 is one checkpoint"
    ):
        influence_of(single, *asked, replace(OPTIONS, steps=[4]))


def test_documents_that_were_never_seen_have_no_influence(trace: Trace, asked: tuple[Answer, int]) -> None:
    answer, span = asked
    unseen = replace(answer, documents=[marked(document, Mark.SKIPPED) for document in answer.documents])
    found = influence_of(trace, unseen, span, OPTIONS)
    assert (found.checkpoints, found.null, found.n_parameters) == ([], [], 0)
    assert [document.bm25_rank for document in found.documents] == list(range(1, len(found.documents) + 1))
    assert all(document.influence == 0 and not document.measured for document in found.documents)
    n = len(found.documents)
    assert f"Documents without a visit that can be measured, whose influence is given as 0: {n}." in found.cautions


def marked(document: FoundDocument, mark: Mark) -> FoundDocument:
    """As if nothing had been learned from it."""
    snippets = []
    for snippet in document.snippets:
        assert snippet.sighted is not None
        every = [
            replace(each, sights=[replace(sight, mark=mark) for sight in each.sights])
            for each in (snippet.sighted, *snippet.copies_sighted)
        ]
        snippets.append(replace(snippet, sighted=every[0], copies_sighted=every[1:]))
    return replace(document, snippets=snippets)


def test_a_document_that_no_row_holds_is_judged_alone(trace: Trace, asked: tuple[Answer, int]) -> None:
    answer, span = asked
    document = answer.documents[answer.spans[span].documents[0]]
    snippets = [replace(s, sighted=replace(s.sighted, sights=[]), copies_sighted=[]) for s in document.snippets if s.sighted]
    changed = [replace(d, snippets=snippets) if d.number == document.number else d for d in answer.documents]
    found = influence_of(trace, replace(answer, documents=changed), span, replace(OPTIONS, steps=[10]))
    alone = by_number(found)[document.number]
    assert alone.measured[0].n_targets == min(document.n_tokens, 16) - 1
    assert alone.steps == []


def test_copies_of_a_document_count_with_it(trace: Trace, asked: tuple[Answer, int], influence: Influence) -> None:
    answer, span = asked
    documents = []
    for document in answer.documents:
        snippets = [
            replace(s, sighted=replace(s.sighted, sights=[]), copies_sighted=[s.sighted]) for s in document.snippets if s.sighted
        ]
        documents.append(replace(document, snippets=snippets))
    found = influence_of(trace, replace(answer, documents=documents), span, OPTIONS)
    assert found.documents == influence.documents


def test_only_the_first_documents_are_compared_if_there_are_more(trace: Trace, asked: tuple[Answer, int]) -> None:
    answer, span = asked
    n = len(answer.spans[span].documents)
    assert n > 1
    found = influence_of(trace, answer, span, replace(OPTIONS, steps=[10], max_documents=1))
    assert [document.number for document in found.documents] == answer.spans[span].documents[:1]
    assert f"Only the first 1 of {n} documents by BM25 were compared." in found.cautions


def test_layers_and_kinds_choose_the_groups(trace: Trace, asked: tuple[Answer, int]) -> None:
    found = influence_of(trace, *asked, replace(OPTIONS, steps=[10], parameters=["experts", "router"], layers=[1]))
    groups = {(group.layer, group.kind) for document in found.documents for group in document.measured[0].groups}
    assert groups == {(1, "router"), (1, "experts.gate"), (1, "experts.up"), (1, "experts.out")}
    assert found.n_parameters == 4 * 32 + 4 * 3 * 16 * 32


def test_limits_are_always_told(influence: Influence) -> None:
    assert influence.cautions[-len(LIMITS) :] == LIMITS
    assert any("`olmo trace replay`" in limit for limit in LIMITS)
    assert any("Checkpoints stand up to" in caution for caution in influence.cautions)


# ---- releases and dense runs ---------------------------------------------------------------------------------------------


def test_a_release_is_measured_as_its_step(
    trace: Trace, run: Path, index: Path, asked: tuple[Answer, int], tmp_path: Path
) -> None:
    make(run, 5, tmp_path / "release")
    release = open_here(tmp_path / "release", index)
    found = influence_of(release, *asked, OPTIONS)
    same = influence_of(trace, *asked, replace(OPTIONS, steps=[5]))
    assert found.checkpoints == [5]
    assert [d.number for d in found.documents] == [d.number for d in same.documents]
    for a, b in zip(found.documents, same.documents, strict=True):
        assert a.influence == pytest.approx(b.influence, rel=1e-5)
    with pytest.raises(ConfigError, match="--precondition=adam: .*release has no optimizer state; give --precondition none"):
        influence_of(release, *asked, replace(OPTIONS, precondition="adam"))


def test_a_folder_of_releases_is_a_series(
    trace: Trace, run: Path, index: Path, asked: tuple[Answer, int], tmp_path: Path
) -> None:
    for step in (5, 10):
        make(run, step, tmp_path / f"stage1-step{step}-tokens0B", optimizer_state=True)
    series = open_here(tmp_path, index)
    options = replace(OPTIONS, steps=[5, 10], precondition="adam")
    found, same = influence_of(series, *asked, options), influence_of(trace, *asked, options)
    assert found.checkpoints == [5, 10]
    for number, document in by_number(found).items():
        assert document.influence == pytest.approx(by_number(same)[number].influence, rel=1e-5)
    with pytest.raises(ConfigError, match=r"--steps=7 not saved in .*; there are 5, 10"):
        influence_of(series, *asked, replace(OPTIONS, steps=[7]))


@pytest.fixture(scope="module")
def dense(corpus: TextCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense run with Muon, in which documents do not see each other; saves nothing before step 5."""
    folder = tmp_path_factory.mktemp("runs") / "dense"
    words = [word for word in small(corpus.shards, folder) if not word.startswith(("model.moe", "data.sources"))]
    given = ["model=tiny_dense", f"data.sources.demo.path='{corpus.shards}'", f"model.vocab_size={VOCAB}", "model.d_ff=48"]
    given += ["data.document_masking=true", "optim=muon", "model.z_loss_weight=0.1"]
    names = {word.split("=", 1)[0] for word in given}
    run_training([*(word for word in words if word.split("=", 1)[0] not in names), *given])
    return folder


def test_a_dense_run_has_no_experts(dense: Path, index: Path) -> None:
    trace = open_here(dense, index)
    answer, span = longest_span(trace, seen_text(trace, 7))
    found = influence_of(trace, answer, span, OPTIONS)
    measured = [each for document in found.documents for each in document.measured]
    assert measured
    assert all(each.experts == [] for each in measured)
    assert {"feed_forward.gate", "feed_forward.out"} <= {group.kind for group in measured[0].groups}
    early, span = longest_span(trace, seen_text(trace, 2))
    assert any(
        "came before the first checkpoint and are left out" in c for c in influence_of(trace, early, span, OPTIONS).cautions
    )


def test_the_z_loss_is_of_the_document_and_not_of_the_span(dense: Path, index: Path) -> None:
    trace = open_here(dense, index)
    answer, span = longest_span(trace, seen_text(trace, 7))
    assert trace.history is not None
    number = answer.spans[span].documents[0]
    found = by_number(influence_of(trace, answer, span, replace(OPTIONS, steps=[10])))[number]
    model = load_model(open_checkpoint(str(dense), 10), CPU, with_documents=True)
    names = choose_parameters(model.config, ["blocks"])
    row = Shortlist(trace.searcher, trace.history).example(answer.spans[span], all_sighted(answer.documents[number], span))
    document = example_gradient(model, names, row.rows, 0.1)
    assert row.rows.documents is not None
    assert found.measured[0].dot == pytest.approx(product(span_gradient(trace, answer, span, 10), document), rel=1e-3)


def test_what_muon_moves_has_no_second_moments(dense: Path, index: Path) -> None:
    trace = open_here(dense, index)
    asked = longest_span(trace, seen_text(trace, 7))
    with pytest.raises(ConfigError, match=r"no second moments of blocks\.0\..* and \d+ more: another optimizer moves them"):
        influence_of(trace, *asked, replace(OPTIONS, precondition="adam"))
    options = replace(OPTIONS, precondition="adam", parameters=["embedding"])
    assert any(document.measured for document in influence_of(trace, *asked, options).documents)


# ---- errors --------------------------------------------------------------------------------------------------------------


def test_every_wrong_option_is_told_at_once(trace: Trace, asked: tuple[Answer, int]) -> None:
    wrong = InfluenceOptions(precondition="muon", rank="best", null=-1, max_documents=0, max_checkpoints=0, device="tpu")
    with pytest.raises(ConfigError) as error:
        influence_of(trace, asked[0], 99, wrong)
    numbers = ", ".join(str(span.number) for span in asked[0].spans)
    for problem in (
        f"--span=99 is not a span of the text; its spans are {numbers}",
        "--precondition=muon is not one of auto, adam, none",
        "--rank=best is not one of influence, cosine",
        "--device=tpu is not one of auto, cpu, cuda",
        "--null=-1 must be at least 0",
        "--documents=0 must be at least 1",
        "--checkpoints=0 must be at least 1",
    ):
        assert problem in error.value.problems


def test_a_text_without_spans_has_no_influence(trace: Trace, asked: tuple[Answer, int]) -> None:
    with pytest.raises(ConfigError, match="--span=0 is not a span of the text; no span of it stands in training documents"):
        influence_of(trace, replace(asked[0], spans=[]), 0, OPTIONS)


def test_too_many_checkpoints_are_refused(trace: Trace, asked: tuple[Answer, int]) -> None:
    with pytest.raises(ConfigError, match=r"--checkpoints=1: the documents were seen after 2 checkpoints.*\(--steps 5,10\)"):
        influence_of(trace, *asked, replace(OPTIONS, steps=[5, 10], max_checkpoints=1))


def test_steps_that_were_not_saved_are_told(trace: Trace, asked: tuple[Answer, int]) -> None:
    with pytest.raises(ConfigError, match=r"--steps=3,7 not saved in .*; there are 0, 1, 2, 4, 5, 10"):
        influence_of(trace, *asked, replace(OPTIONS, steps=[3, 5, 7]))


def test_an_index_has_no_weights(index: Path, asked: tuple[Answer, int]) -> None:
    with pytest.raises(ConfigError, match="has no weights; influence needs the folder of a run, of a release or of several"):
        influence_of(open_here(index, index), *asked, OPTIONS)


def test_kinds_and_layers_are_checked_before_a_model_is_loaded(trace: Trace, asked: tuple[Answer, int]) -> None:
    with pytest.raises(ConfigError, match="--layers=9: the model has layers 0 to 1"):
        influence_of(trace, *asked, replace(OPTIONS, layers=[9]))
