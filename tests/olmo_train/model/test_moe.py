"""Routing options and router losses, each against a few lines that say what it should be."""

import pytest
import torch
from torch import nn

from olmo_train.config.model import Gate, MoEConfig
from olmo_train.model.losses import load_balancing_loss, router_z_loss, updated_bias
from olmo_train.model.moe import MoE, Router

N, D, E, K = 40, 16, 6, 2


def config(**values: object) -> MoEConfig:
    base = {"n_experts": E, "top_k": K, "d_expert": 8, "load_balancing_loss_weight": 0.01, "router_z_loss_weight": 1e-3}
    return MoEConfig(**{**base, **values})  # type: ignore[arg-type]


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in module.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.3)
    return module


def counts_of(ids: torch.Tensor) -> torch.Tensor:
    """float32 (1, E): of one layer."""
    return torch.bincount(ids.flatten(), minlength=E).float()[None]


def hidden() -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(9))


def test_softmax_gates_are_not_renormalised() -> None:
    router = filled(Router(D, config()))
    gates, ids, _ = router(hidden())
    probs = (hidden() @ router.weight.T).softmax(-1)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(gates, probs.gather(1, ids))
    assert (gates.sum(1) < 1).all()
    assert torch.equal(ids, probs.topk(K, -1).indices)


def test_normalised_gates_sum_to_one_and_scale_multiplies() -> None:
    gates, _, _ = filled(Router(D, config(normalize_top_k=True, gate_scale=2.5)))(hidden())
    torch.testing.assert_close(gates.sum(1), torch.full((N,), 2.5))


def test_sigmoid_gates_are_independent() -> None:
    router = filled(Router(D, config(gate=Gate.SIGMOID)))
    gates, ids, stats = router(hidden())
    scores = (hidden() @ router.weight.T).sigmoid()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(gates, scores.gather(1, ids))
    torch.testing.assert_close(stats.probs, (scores / scores.sum(-1, keepdim=True)).sum(0))


def test_the_bias_changes_the_choice_but_never_the_gate() -> None:
    for gate in Gate:
        router = filled(Router(D, config(gate=gate, bias_update_rate=1e-3)))
        plain, _, _ = router(hidden())
        router.bias.copy_(torch.tensor([100.0, 0, 0, 0, 0, 0]))  # type: ignore[operator, union-attr]
        gates, ids, _ = router(hidden())
        assert (ids == 0).any(1).all()
        logits = hidden() @ router.weight.T  # type: ignore[operator, union-attr]
        scores = logits.softmax(-1) if gate == Gate.SOFTMAX else logits.sigmoid()
        torch.testing.assert_close(gates, scores.gather(1, ids))
        assert not torch.equal(plain, gates)


def test_no_bias_buffer_without_bias_balancing() -> None:
    assert dict(Router(D, config()).named_buffers()) == {}


def test_stats_are_sums_over_tokens() -> None:
    router = filled(Router(D, config()))
    _, _, stats = router(hidden())
    logits = hidden() @ router.weight.T  # type: ignore[operator, union-attr]
    torch.testing.assert_close(stats.z, logits.logsumexp(-1).square().sum())
    torch.testing.assert_close(stats.confidence, logits.softmax(-1).amax(-1).sum())
    halves = [router(part)[2] for part in hidden().split(N // 2)]
    for whole, a, b in zip(stats, *halves, strict=True):
        torch.testing.assert_close(whole, a + b)


@pytest.mark.parametrize("backend", ["reference", "loop"])
def test_counts_are_those_of_the_experts(backend: str) -> None:
    moe = filled(MoE(D, config(), backend))
    _, ids, _ = moe.router(hidden())  # type: ignore[operator]
    _, stats = moe(hidden()[None])
    assert stats.counts.dtype == torch.float32
    assert stats.counts.tolist() == torch.bincount(ids.flatten(), minlength=E).tolist()


def test_shared_experts_are_added_to_the_routed_sum() -> None:
    moe = filled(MoE(D, config(n_shared_experts=2), "reference"))
    x = hidden()[None]
    y, _ = moe(x)
    routed, shared = moe(x)[0] - moe.shared(x), moe.shared(x)  # type: ignore[operator, misc]
    torch.testing.assert_close(y, routed + shared)
    # Two experts of width 8 summed are one of width 16: gate rows of both, then up rows of both.
    w_in, w_out = moe.shared.w_in.weight, moe.shared.w_out.weight  # type: ignore[union-attr]
    parts = []
    for e in range(2):
        rows = slice(8 * e, 8 * e + 8)
        gate, up = x @ w_in[:16][rows].T, x @ w_in[16:][rows].T  # type: ignore[index]
        parts.append((nn.functional.silu(gate) * up) @ w_out[:, rows].T)  # type: ignore[index]
    torch.testing.assert_close(shared, parts[0] + parts[1])


def test_the_balance_loss_is_one_at_balance_and_e_over_k_at_worst() -> None:
    even = torch.full((3, E), N * K / E)
    assert load_balancing_loss(even, torch.full((3, E), N / E), N, N, K).item() == pytest.approx(1.0)
    worst = torch.tensor([[N, N, 0, 0, 0, 0]], dtype=torch.float32)
    assert load_balancing_loss(worst, worst / K, N, N, K).item() == pytest.approx(E / K)


def test_the_balance_loss_is_transformers_divided_by_top_k() -> None:
    """For one layer; over several, theirs multiplies means over all layers, ours (megablocks') is the mean of products."""
    theirs = pytest.importorskip("transformers.models.olmoe.modeling_olmoe").load_balancing_loss_func
    router = filled(Router(D, config()))
    logits = hidden() @ router.weight.T  # type: ignore[operator, union-attr]
    _, ids, stats = router(hidden())
    ours = load_balancing_loss(counts_of(ids), stats.probs[None], N, N, K)
    torch.testing.assert_close(ours * K, theirs((logits,), E, K))


def test_the_balance_loss_of_parts_adds_up_to_the_whole() -> None:
    """With counts of the whole batch, the micro-batches' shares sum to the loss and the gradient of the whole."""
    router = filled(Router(D, config()))
    _, ids, whole = router(hidden())
    counts = counts_of(ids)
    (expected,) = torch.autograd.grad(load_balancing_loss(counts, whole.probs[None], N, N, K), router.weight)  # type: ignore[arg-type]
    got = torch.zeros_like(expected)
    for part in hidden().split([7, 13, 20]):
        _, _, stats = router(part)
        got += torch.autograd.grad(load_balancing_loss(counts, stats.probs[None], N, N, K), router.weight)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(got, expected)


def test_the_z_loss_has_olmoes_effective_weight() -> None:
    """megablocks: zloss_weight / (L * T * k) * sum logsumexp^2; ours with zloss_weight / k is the same."""
    logits = torch.randn(2, N, E, generator=torch.Generator().manual_seed(1))  # two layers
    z = logits.logsumexp(-1).square().sum(-1)
    megablocks = 0.001 * z.sum() / (2 * N * 8)
    torch.testing.assert_close(0.001 / 8 * router_z_loss(z, N), megablocks)


def test_the_bias_goes_up_for_underloaded_experts_and_stays_centred() -> None:
    moe = config(bias_update_rate=0.1)
    bias = updated_bias(torch.zeros(4), torch.tensor([10.0, 2.0, 4.0, 4.0]), moe)  # mean 5
    torch.testing.assert_close(bias, torch.tensor([-0.15, 0.05, 0.05, 0.05]))
    assert abs(float(bias.sum())) < 1e-6
    assert torch.equal(updated_bias(torch.zeros(4), torch.full((4,), 5.0), moe), torch.zeros(4))
