"""Watching a model changes nothing, and what is seen is what its routers chose and its softmax said."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from checkpoints.inspect import observe as observe_module
from checkpoints.inspect.heldout import Heldout
from checkpoints.inspect.kept import token_arrays
from checkpoints.inspect.observe import Observation, observe, router_probs, score_next, watch_routers
from olmo_train.config.model import Gate, MoEConfig
from olmo_train.data.loader import IGNORE
from olmo_train.model.moe import Router
from olmo_train.model.transformer import Losses, Transformer


def test_every_token_is_seen_once_and_padding_never(seen: Observation, heldout: Heldout) -> None:
    assert seen.sources == ["animals", "places"]
    at = 0
    for number, source in enumerate(heldout.sources):
        for row, length in enumerate(source.lengths_R):
            stop = at + int(length)
            assert seen.ids_N[at:stop].tolist() == source.rows.ids[row, :length].tolist()
            assert seen.targets_N[at:stop].tolist() == [*source.rows.ids[row, 1:length], IGNORE]
            assert set(seen.source_N[at:stop]) == {number}
            at = stop
    assert at == len(seen.ids_N)
    assert any(source.lengths_R[-1] < heldout.seq_len for source in heldout.sources)  # there was padding to leave out


def test_tokens_alone_give_the_same_arrays(seen: Observation, heldout: Heldout) -> None:
    for name, expected in token_arrays(heldout).items():
        assert np.array_equal(getattr(seen, name), expected), name


def logits_and_router_inputs(model: Transformer, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    states: list[torch.Tensor] = []
    hooks = [router.register_forward_hook(lambda m, inputs, o: states.append(inputs[0])) for router in model.routers()]
    with torch.no_grad():
        logits = model(ids)[0]
    for hook in hooks:
        hook.remove()
    return logits, states


def test_choices_and_predictions_are_those_of_a_loop_over_rows(seen: Observation, heldout: Heldout, model: Transformer) -> None:
    at = 0
    for source in heldout.sources:
        for row, length in zip(source.rows.ids, source.lengths_R, strict=True):
            ids, stop = torch.from_numpy(row[None]), at + int(length)
            logits, states = logits_and_router_inputs(model, ids)
            for layer, (router, x) in enumerate(zip(model.routers(), states, strict=True)):
                probs = (x @ router.weight.T).softmax(-1)[:length]
                ranked = probs.argsort(-1, descending=True)[:, : router.top_k]
                assert seen.choices_LNK[layer, at:stop].tolist() == ranked.tolist()
            assert seen.predicted_N[at:stop].tolist() == logits.argmax(-1)[:length].tolist()
            expected = [float(logits[t].log_softmax(-1)[row[t + 1]]) for t in range(length - 1)]
            assert seen.log_probs_N[at:stop].tolist() == pytest.approx([*expected, 0.0], abs=1e-5)
            at = stop


def test_means_of_the_router_are_those_of_its_own_sums(model: Transformer, heldout: Heldout, seen: Observation) -> None:
    """The formula of the probabilities stands in model/moe.py too; what routers report of them must agree."""
    ids = torch.from_numpy(heldout.sources[0].rows.ids)
    with torch.no_grad(), watch_routers(model) as choices:
        _, stats = model.hidden(ids)
    assert stats is not None
    for layer, choice in enumerate(choices):
        assert float(choice.router_N3[:, 1].sum()) == pytest.approx(float(stats.confidence[layer]), rel=1e-5)
        assert choice.expert_ids_NK.flatten().bincount(minlength=4).tolist() == stats.counts[layer].tolist()
    assert ((seen.router_L3[:, 0] > 0) & (seen.router_L3[:, 0] < math.log(4))).all()
    assert (seen.router_L3[:, 1] < seen.router_L3[:, 2]).all()


def test_watching_changes_no_bit_and_leaves_no_hook(model: Transformer, heldout: Heldout) -> None:
    ids = torch.from_numpy(heldout.sources[0].rows.ids[:4])
    with torch.no_grad():
        plain = model(ids)
        with watch_routers(model):
            watched = model(ids)
    assert torch.equal(plain, watched)
    assert not any(router._forward_hooks for router in model.routers())


def test_it_does_not_depend_on_the_batch(
    model: Transformer, heldout: Heldout, seen: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe_module, "BATCH_TOKENS", {"cpu": 1})
    monkeypatch.setattr(observe_module, "LOGIT_ELEMENTS", {"cpu": 1})
    again = observe(model, heldout)
    assert np.array_equal(again.choices_LNK, seen.choices_LNK)
    assert np.array_equal(again.predicted_N, seen.predicted_N)
    assert np.allclose(again.log_probs_N, seen.log_probs_N, atol=1e-5)
    assert np.allclose(again.router_L3, seen.router_L3, rtol=1e-6)


def test_twice_gives_the_same_bits(model: Transformer, heldout: Heldout, seen: Observation) -> None:
    again = observe(model, heldout)
    for name in ("choices_LNK", "log_probs_N", "predicted_N", "router_L3"):
        assert np.array_equal(getattr(again, name), getattr(seen, name)), name


@pytest.mark.parametrize("gate", list(Gate))
def test_probabilities_are_the_routers(gate: Gate) -> None:
    moe = MoEConfig(n_experts=6, top_k=2, d_expert=4, gate=gate, load_balancing_loss_weight=0.0, router_z_loss_weight=0.0)
    router = Router(8, moe)
    nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(0))
    x_ND = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, _, sums = router(x_ND)
        probs_NE = router_probs(router, x_ND)
    torch.testing.assert_close(probs_NE.sum(0), sums.probs)
    torch.testing.assert_close(probs_NE.sum(-1), torch.ones(5))


def test_a_selection_bias_does_not_decide_who_is_most_probable() -> None:
    moe = MoEConfig(
        n_experts=3, top_k=2, d_expert=4, load_balancing_loss_weight=0.0, router_z_loss_weight=0.0, bias_update_rate=0.1
    )
    router = Router(2, moe)
    router.weight.data = torch.tensor([[1.0, 0.0], [0.9, 0.0], [0.0, 0.0]])
    router.bias.data = torch.tensor([0.0, 0.5, -9.0])
    model = nn.ModuleDict({"router": router})
    model.routers = lambda: [router]  # type: ignore[assignment]
    with torch.no_grad(), watch_routers(model) as seen:  # type: ignore[arg-type]
        _, chosen, _ = model["router"](torch.tensor([[1.0, 0.0]]))
    assert chosen.tolist() == [[1, 0]]  # in the order of score and bias
    assert seen[0].expert_ids_NK.tolist() == [[0, 1]]


def test_ranks_count_what_is_more_probable(model: Transformer) -> None:
    x_ND = torch.randn(50, 32, generator=torch.Generator().manual_seed(4))
    targets = torch.randint(0, 300, (50,), generator=torch.Generator().manual_seed(5))
    targets[7] = IGNORE
    with torch.no_grad():
        scores = score_next(model, x_ND, targets)
        logits = x_ND @ model.lm_head.weight.T
    for n in range(50):
        if n != 7:
            assert int(scores.ranks_N[n]) == 1 + sum(float(z) > float(logits[n, targets[n]]) for z in logits[n])
    assert float(scores.log_probs_N[7]) == 0.0


def test_rows_beyond_the_vocabulary_are_never_predicted(model: Transformer) -> None:
    x_ND = torch.randn(20, 32, generator=torch.Generator().manual_seed(6))
    vocabulary = model.config.vocab_size
    model.config.vocab_size = 40
    try:
        with torch.no_grad():
            scores = score_next(model, x_ND, torch.zeros(20, dtype=torch.int64))
    finally:
        model.config.vocab_size = vocabulary
    assert int(scores.predicted_N.max()) < 40
    assert int(scores.ranks_N.max()) <= 40


def test_the_loss_is_the_models_own(model: Transformer, heldout: Heldout, seen: Observation) -> None:
    for number, source in enumerate(heldout.sources):
        with torch.no_grad():
            out = model(torch.from_numpy(source.rows.ids), torch.from_numpy(source.rows.labels))
        assert isinstance(out, Losses)
        assert -seen.log_probs_N[seen.source_N == number].sum() == pytest.approx(float(out.cross_entropy), rel=1e-5)
