"""Each measure of routing against a loop over tokens that follows the paper's equation, and where the answer is known."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from checkpoints.inspect import routing as routing_module
from checkpoints.inspect.heldout import Heldout
from checkpoints.inspect.measures import RoleVocabulary, to_json
from checkpoints.inspect.observe import Observation, observe
from checkpoints.inspect.routing import RoutingOptions, balance, co_activation, domains, layer_routing, saturation
from checkpoints.inspect.vocabulary import ByRole, vocabulary
from olmo_train.data.loader import IGNORE
from olmo_train.errors import ConfigError
from olmo_train.model.transformer import Transformer

N, E, K = 400, 8, 3


def random_choices(seed: int, n: int = N, n_experts: int = E, k: int = K) -> np.ndarray:
    """(n, k) different experts of each token."""
    return np.random.default_rng(seed).random((n, n_experts)).argsort(1)[:, :k]


def made_up(choices_LNK: np.ndarray, ids: np.ndarray | None = None, n_experts: int = E, **changes: Any) -> Observation:
    """An observation with these choices and ids."""
    n = choices_LNK.shape[1]
    ids = np.arange(n) % 7 if ids is None else ids
    values: dict[str, Any] = {
        "sources": ["a", "b"], "source_N": (np.arange(n) >= n // 2).astype(int), "ids_N": ids,
        "targets_N": np.append(ids[1:], IGNORE), "predicted_N": (ids + 1) % 7, "log_probs_N": np.zeros(n, np.float32),
        "layers": list(range(len(choices_LNK))), "n_experts": n_experts, "choices_LNK": choices_LNK.astype(np.uint8),
        "router_L3": np.zeros((len(choices_LNK), 3)),
    }  # fmt: skip
    return Observation(**{**values, **changes})


# ---- balance -------------------------------------------------------------------------------------------------------------


def test_balance_of_even_and_of_one_sided_routing() -> None:
    even = balance(np.arange(24).reshape(8, 3) % E, E, np.array([2.0, 0.5, 0.7]))
    assert even.load == [1 / E] * E
    assert (even.max_load, even.min_load, even.n_unused) == (1.0, 1.0, 0)
    assert even.load_entropy_frac == pytest.approx(1.0)
    assert (even.router_entropy, even.confidence, even.top_k_mass) == (2.0, 0.5, 0.7)
    one = balance(np.tile([5, 2], (10, 1)), E, np.zeros(3))
    assert (one.max_load, one.min_load, one.n_unused) == (E / 2, 0.0, E - 2)
    assert one.load_entropy_frac == pytest.approx(1 / 3)  # ln 2 over ln 8


# ---- saturation (equation 5) ---------------------------------------------------------------------------------------------


def test_saturation_is_the_loop_of_equation_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_module, "CHUNK_TOKENS", 33)
    now, last = random_choices(1), random_choices(2)
    found = saturation(now, last)
    assert found.top_k == pytest.approx(sum(len(set(now[i]) & set(last[i])) / K for i in range(N)) / N, rel=1e-12)
    assert found.top_1 == sum(now[i][0] == last[i][0] for i in range(N)) / N


def test_the_same_routing_is_saturated_and_random_routing_is_at_chance() -> None:
    now = random_choices(1, 20_000)
    assert (saturation(now, now).top_k, saturation(now, now).top_1) == (1.0, 1.0)
    turned = now[:, ::-1]  # the same experts, the least probable first
    assert (saturation(now, turned).top_k, saturation(now, turned).top_1) == (1.0, 0.0)
    by_chance = saturation(now, random_choices(2, 20_000))
    assert by_chance.top_k == pytest.approx(K / E, abs=0.01)
    assert by_chance.top_1 == pytest.approx(1 / E, abs=0.01)


# ---- co-activation (equation 6) ------------------------------------------------------------------------------------------


def test_co_activation_is_the_loop_of_equation_6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_module, "CHUNK_TOKENS", 33)
    choices = random_choices(3)
    choices[:, 0] = np.where(np.arange(N) % 3 == 0, 7, choices[:, 0])
    choices = np.array([row for row in choices if len(set(row)) == K])
    alone, together = Counter[int](), Counter[tuple[int, int]]()
    for row in choices.tolist():
        alone.update(row)
        together.update((i, j) for i in row for j in row if i != j)
    found = co_activation(choices, E, 5)
    assert found.matrix is not None
    for i in range(E):
        for j in range(E):
            assert found.matrix[i][j] == pytest.approx(together[i, j] / alone[i] if i != j else 0.0, rel=1e-12)
    ranked = sorted(((together[i, j] / alone[i], i, j) for i, j in together), key=lambda pair: -pair[0])
    assert [pair.share for pair in found.strongest] == pytest.approx([share for share, _, _ in ranked[:5]])
    assert found.strongest_mean == pytest.approx(sum(share for share, _, _ in ranked[:5]) / 5)
    assert found.mean == pytest.approx(sum(share for share, _, _ in ranked) / (E * (E - 1)))
    assert co_activation(choices, E, 5, with_matrix=False).matrix is None


def test_experts_that_always_go_together_have_a_share_of_one() -> None:
    choices = np.array([[0, 1], [1, 0], [1, 2], [0, 1]])  # whenever 0 is active so is 1, not the other way round
    found = co_activation(choices, 4, 3)
    assert found.matrix == [[0, 1, 0, 0], [0.75, 0, 0.25, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert [(p.expert, p.other, p.share) for p in found.strongest] == [(0, 1, 1.0), (2, 1, 1.0), (1, 0, 0.75)]
    assert found.mean == pytest.approx(3 / 6)  # expert 3 is never used


def test_the_mean_of_all_pairs_is_what_top_k_leaves() -> None:
    assert co_activation(random_choices(4, 50_000), E, 1).mean == pytest.approx((K - 1) / (E - 1), abs=1e-3)


# ---- domains (equation 7) ------------------------------------------------------------------------------------------------


def test_domain_specialization_is_the_loop_of_equation_7() -> None:
    choices, source_N = random_choices(5), np.arange(N) % 3
    found = domains(choices, E, source_N, ["x", "y", "z"])
    for number, name in enumerate("xyz"):
        mine = [set(row) for row, source in zip(choices.tolist(), source_N, strict=True) if source == number]
        first = [row[0] for row, source in zip(choices.tolist(), source_N, strict=True) if source == number]
        share = [sum(e in chosen for chosen in mine) / len(mine) for e in range(E)]
        assert found[name].share == pytest.approx(share)
        assert found[name].share_top_1 == pytest.approx([first.count(e) / len(first) for e in range(E)])
        assert found[name].specialization == pytest.approx(sum(abs(s - K / E) for s in share) / E / (K / E))


def test_a_source_with_experts_of_its_own_is_told_from_one_without() -> None:
    n = 20_000
    choices = random_choices(6, n, k=2)
    choices[: n // 2] = [3, 4]
    found = domains(choices, E, (np.arange(n) >= n // 2).astype(int), ["own", "plain"])
    assert found["own"].share == [0, 0, 0, 1, 1, 0, 0, 0]
    assert found["own"].specialization == pytest.approx(2 * (1 - 2 / E))  # the most there can be
    assert found["plain"].specialization < 0.05
    assert found["own"].shuffled < 0.8  # dealt out by chance it has half of both


# ---- vocabulary (equation 8) ---------------------------------------------------------------------------------------------


def naive_vocabulary(ids: list[int], choices: list[list[int]], min_count: int) -> dict[int, tuple[int, float, int]]:
    """By id that is frequent enough: (its most frequent expert, share, count)."""
    seen: dict[int, list[list[int]]] = {}
    for token, chosen in zip(ids, choices, strict=True):
        if token != IGNORE:
            seen.setdefault(token, []).append(chosen)
    out = {}
    for token, occurrences in seen.items():
        counts = Counter(expert for chosen in occurrences for expert in chosen)
        best = min(counts, key=lambda expert: (-counts[expert], expert))
        if len(occurrences) >= min_count:
            out[token] = best, counts[best] / len(occurrences), len(occurrences)
    return out


@pytest.mark.parametrize("k", [1, K])
def test_vocabulary_specialization_is_the_loop_of_equation_8(k: int) -> None:
    rng = np.random.default_rng(7)
    ids = rng.zipf(1.5, N) % 60
    seen = made_up(random_choices(7)[None], ids, predicted_N=rng.integers(0, 20, N))
    found = vocabulary(ByRole.of(seen), seen.choices_LNK[0].astype(int)[:, :k], E, min_count=6, n_tokens=4)
    assert (found.k, found.min_count) == (k, 6)
    for role, values in ((found.input, ids), (found.predicted, seen.predicted_N), (found.target, seen.targets_N)):
        naive = naive_vocabulary(values.tolist(), seen.choices_LNK[0, :, :k].tolist(), 6)
        assert role.n_ids == len(naive)
        assert role.mean == pytest.approx(sum(share for _, share, _ in naive.values()) / len(naive))
        for expert in range(E):
            mine = sorted(((-share, -count, token) for token, (best, share, count) in naive.items() if best == expert))
            assert [(-t.share, -t.count, t.id) for t in role.tokens[expert]] == mine[:4]
            assert role.by_expert[expert] == (pytest.approx(-sum(s for s, _, _ in mine) / len(mine)) if mine else None)


def test_an_id_of_one_expert_has_a_share_of_one_and_chance_has_less() -> None:
    ids = np.arange(N) % 7
    seen = made_up(np.stack([ids % E, (ids + 1) % E], 1)[None], ids)
    found = layer_routing(seen, options=RoutingOptions(min_count=5)).layers[0]
    for role in (found.vocabulary.input, found.vocabulary.predicted, found.vocabulary_top_k.input):
        assert role.mean == 1.0
        assert role.shuffled is not None
        assert role.shuffled < 0.5
    assert [[t.id for t in tokens] for tokens in found.vocabulary.input.tokens] == [[e] if e < 7 else [] for e in range(E)]


def test_ids_seen_too_seldom_do_not_count() -> None:
    seen = made_up(random_choices(8)[None], np.arange(N))
    role = layer_routing(seen, options=RoutingOptions(min_count=2)).layers[0].vocabulary.input
    assert role == RoleVocabulary(None, None, 0, [None] * E, [[] for _ in range(E)])


# ---- all of it -----------------------------------------------------------------------------------------------------------


def test_all_measures_of_a_real_checkpoint_are_json(seen: Observation) -> None:
    routing = layer_routing(seen, seen)
    assert (routing.n_experts, routing.top_k, routing.n_tokens) == (4, 2, len(seen.ids_N))
    assert [layer.layer for layer in routing.layers] == [0, 1]
    for layer in routing.layers:
        assert layer.saturation is not None
        assert (layer.saturation.top_k, layer.saturation.top_1) == (1.0, 1.0)
        assert sum(layer.balance.load) == pytest.approx(1.0)
        assert all(sum(domain.share) == pytest.approx(2.0) for domain in layer.domains.values())
    values = to_json(routing)
    assert values["layers"][1]["domains"]["places"]["share"] == routing.layers[1].domains["places"].share
    assert layer_routing(seen).layers[0].saturation is None


def test_a_router_forced_to_two_experts_is_found_out(model: Transformer, heldout: Heldout) -> None:
    """The whole way: a router that sends every token to experts 2 and 1."""

    def force(module: Any, inputs: Any, outputs: Any) -> Any:
        gates, ids, sums = outputs
        return gates, ids.new_tensor([2, 1]).expand_as(ids).contiguous(), sums

    hook = model.routers()[1].register_forward_hook(force)
    try:
        found = layer_routing(observe(model, heldout)).layers[1]
    finally:
        hook.remove()
    assert found.balance.load == [0, 0.5, 0.5, 0]
    assert (found.balance.n_unused, found.balance.max_load) == (2, 2.0)
    assert [(p.expert, p.other, p.share) for p in found.co_activation.strongest[:2]] == [(1, 2, 1.0), (2, 1, 1.0)]
    assert found.domains["animals"].share == [0, 1, 1, 0]
    assert found.vocabulary_top_k.input.mean == 1.0


def test_what_cannot_be_measured_is_refused(seen: Observation) -> None:
    with pytest.raises(ConfigError, match="routing can be measured of a mixture of experts only; this model is dense"):
        layer_routing(made_up(np.zeros((0, N, 0))))
    with pytest.raises(ConfigError, match="saturation compares checkpoints of one architecture over the same tokens"):
        layer_routing(seen, replace(seen, n_experts=5))
