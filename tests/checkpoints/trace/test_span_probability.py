"""Spans scored together have the log-probabilities and the experts that each has alone, token by token."""

import random

import pytest
import torch

from checkpoints.inspect import observe
from checkpoints.inspect.text_probability import text_probability
from checkpoints.load import load_model, load_tokenizer
from checkpoints.opening import open_checkpoint
from checkpoints.trace.span_probability import SpanQuery, score_spans, span_log_probs
from olmo_train.config.train import TrainConfig
from olmo_train.kernels.choose import Kernels
from olmo_train.model.init import init_params
from olmo_train.model.shapes import param_shapes
from olmo_train.model.transformer import Transformer
from olmo_train.schema import load_config
from tests.checkpoints.trace.planted import Planted

SEQ_LEN = 32


@pytest.fixture(scope="module")
def moe(planted: Planted) -> Transformer:
    return load_model(open_checkpoint(str(planted.run)), torch.device("cpu"))


@pytest.fixture(scope="module")
def dense() -> Transformer:
    words = ["model=tiny_dense", "model.d_model=32", "model.n_layers=2", "model.n_heads=4", "model.vocab_size=97"]
    config = load_config("train", TrainConfig, [*words, "data.sources.x.path=/nowhere", "run_name=x", "max_tokens=1048576"])
    model = Transformer(config.model, Kernels("sdpa", "reference", "reference"))
    init_params(model, param_shapes(config.model), config.model, config.seed)
    return model.eval()


def draw(n: int, vocab: int, longest: int = SEQ_LEN) -> list[SpanQuery]:
    """Spans and contexts of all lengths that fit together."""
    rng = random.Random(n)
    queries = []
    for _ in range(n):
        total = rng.randint(2, longest)
        context = rng.randint(1, total - 1)
        ids = [rng.randrange(vocab) for _ in range(total)]
        queries.append(SpanQuery(ids[context:], ids[:context]))
    return queries


def naive(model: Transformer, before: list[int], ids: list[int]) -> list[float]:
    """One forward pass per token."""
    out = []
    for n, token in enumerate(ids):
        with torch.no_grad():
            logits = model(torch.tensor([[*before, *ids[:n]]]))[0, -1]
        out.append(float(logits.log_softmax(-1)[token]))
    return out


@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_spans_together_are_as_each_token_by_itself(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    queries = draw(40, 97)
    for query, score in zip(queries, score_spans(model, queries, SEQ_LEN), strict=True):
        assert score.log_probs_T == pytest.approx(naive(model, list(query.context_ids), list(query.ids)), abs=2e-5)


def test_a_span_alone_is_as_among_others(moe: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = draw(30, 97)
    together = score_spans(moe, queries, SEQ_LEN)
    monkeypatch.setitem(observe.BATCH_TOKENS, "cpu", 40)  # one or two rows at a time
    apart = score_spans(moe, queries, SEQ_LEN)
    for query, one, other in zip(queries, together, apart, strict=True):
        alone = span_log_probs(moe, query.context_ids, query.ids, SEQ_LEN)
        assert one.log_probs_T == pytest.approx(alone, abs=2e-5)
        assert one.log_probs_T == pytest.approx(other.log_probs_T, abs=2e-5)


def test_a_text_has_the_probability_that_inspect_gives_it(moe: Transformer, planted: Planted) -> None:
    tokenizer = load_tokenizer(open_checkpoint(str(planted.run)), None)
    text, context = "the old river hears", "a small bird"
    ids, before = tokenizer.encode(text), [tokenizer.eos_id, *tokenizer.encode(context)]
    assert len(ids) + len(before) <= SEQ_LEN
    found = span_log_probs(moe, before, ids, SEQ_LEN)
    assert found == pytest.approx(text_probability(moe, tokenizer, text, SEQ_LEN, context).log_probs, abs=1e-5)


def windows(n_context: int, n_tokens: int, seq_len: int) -> list[tuple[int, int]]:
    """By token of the span: where its window begins, and how many tokens the window has up to it, itself included."""
    total, half = n_context + n_tokens, seq_len // 2
    start = max(0, total - seq_len)
    if start <= max(0, n_context - half):
        return [(start, n_context + t + 1 - start) for t in range(n_tokens)]
    out, start, at = [], max(0, n_context - half), n_context
    while at < total:
        end = min(start + seq_len, total)
        out += [(start, t + 1 - start) for t in range(at, end)]
        at, start = end, end - half
    return out


@pytest.mark.parametrize(("n_context", "n_tokens"), [(5, 40), (40, 5), (32, 16), (33, 17), (1, 32), (1, 31), (100, 100), (3, 90)])
def test_what_is_longer_than_a_row_is_read_in_windows(moe: Transformer, n_context: int, n_tokens: int) -> None:
    rng = random.Random(n_context)
    ids = [rng.randrange(97) for _ in range(n_context + n_tokens)]
    found = score_spans(moe, [SpanQuery(ids[n_context:], ids[:n_context])], SEQ_LEN, with_experts=[0])[0]
    expected = windows(n_context, n_tokens, SEQ_LEN)
    assert all(min(n_context + t, SEQ_LEN // 2) < seen <= SEQ_LEN for t, (_, seen) in enumerate(expected))
    alone = [naive(moe, ids[start : n_context + t], [ids[n_context + t]])[0] for t, (start, _) in enumerate(expected)]
    assert found.log_probs_T == pytest.approx(alone, abs=2e-5)
    for t, (start, _) in enumerate(expected):
        chosen = choices_of(moe, ids[start : n_context + t + 1])
        assert [sorted(layer[-1]) for layer in chosen] == [sorted(layer[t]) for layer in found.choices_LTK.tolist()]


def choices_of(model: Transformer, ids: list[int]) -> list[list[list[int]]]:
    """By MoE layer and token the experts, as the routers return them."""
    seen: list[list[list[int]]] = []
    hooks = [router.register_forward_hook(lambda _, __, out: seen.append(out[1].tolist())) for router in model.routers()]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return seen


def test_the_experts_are_those_that_read_the_tokens_of_the_span(moe: Transformer) -> None:
    queries = draw(12, 97)
    scores = score_spans(moe, queries, SEQ_LEN, with_experts=range(12))
    for query, score in zip(queries, scores, strict=True):
        chosen = choices_of(moe, [*query.context_ids, *query.ids])
        assert score.choices_LTK.shape == (2, len(query.ids), 2)
        for layer, expected in zip(score.choices_LTK, chosen, strict=True):
            assert [set(token) for token in layer.tolist()] == [set(token) for token in expected[len(query.context_ids) :]]


def test_the_most_probable_expert_comes_first(moe: Transformer) -> None:
    query = SpanQuery([5], [3, 9])
    router = moe.routers()[0]
    gates: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = router.register_forward_hook(lambda _, __, out: gates.append((out[0][-1], out[1][-1])))
    score = score_spans(moe, [query], SEQ_LEN, with_experts=[0])[0]
    hook.remove()
    weights, ids = gates[0]
    assert score.choices_LTK[0, 0].tolist() == ids[weights.argsort(descending=True)].tolist()


def test_experts_that_are_not_asked_for_are_not_there(moe: Transformer, dense: Transformer) -> None:
    queries = draw(3, 97)
    assert [score.choices_LTK.shape[0] for score in score_spans(moe, queries, SEQ_LEN, with_experts=[1])] == [0, 2, 0]
    assert [score.choices_LTK.shape[0] for score in score_spans(dense, queries, SEQ_LEN, with_experts=[1])] == [0, 0, 0]
