"""Gradients of one example: those of plain autograd, what the loss really does, and parts that add up to the whole."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from checkpoints.inspect.moments import MomentWeights
from checkpoints.load import load_model
from checkpoints.opening import open_checkpoint
from checkpoints.trace.gradients import (
    Cell,
    Gradient,
    adam_scale,
    by_expert,
    by_group,
    choose_parameters,
    cosine,
    example_gradient,
    inner,
    rescale,
    total,
)
from checkpoints.trace.influence_examples import Example, build_example
from olmo_train.config.model import ModelConfig, MoEConfig, Norm, NormOrder, QKNorm
from olmo_train.errors import ConfigError
from olmo_train.kernels.choose import REFERENCE, Kernels
from olmo_train.model.init import init_params
from olmo_train.model.shapes import param_shapes
from olmo_train.model.transformer import Losses, Transformer

CPU = torch.device("cpu")
VOCAB = 61
KERNELS = Kernels("sdpa", "loop", "chunked")


def small(**values: object) -> ModelConfig:
    return ModelConfig(**{"d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48, "vocab_size": VOCAB, **values})  # type: ignore[arg-type]


def small_moe(**values: object) -> ModelConfig:
    moe = {
        "n_experts": 12,
        "top_k": 2,
        "d_expert": 12,
        "load_balancing_loss_weight": 0.01,
        "router_z_loss_weight": 1e-3,
        **values,
    }
    return small(moe=MoEConfig(**moe), qk_norm=QKNorm.FULL, z_loss_weight=1e-3)  # type: ignore[arg-type]


VARIANTS = {
    "dense": small(),
    "tied post": small(norm=Norm.LAYER_NORM_PLAIN, tie_embeddings=True, norm_order=NormOrder.POST, n_kv_heads=2),
    "moe": small_moe(),
    "moe shared dense first": small_moe(n_shared_experts=1, n_dense_layers=1),
}


def build(config: ModelConfig, kernels: Kernels = KERNELS) -> Transformer:
    model = Transformer(config, kernels)
    init_params(model, param_shapes(config), config, seed=3)
    return model.eval()


def example(seed: int, length: int, start: int) -> Example:
    ids = np.random.default_rng(seed).integers(0, VOCAB, length)
    return build_example(ids, start, length)


def all_names(config: ModelConfig) -> list[str]:
    return choose_parameters(config, ["all"])


def loss_of(model: Transformer, it: Example, z_weight: float = 0.0) -> float:
    """By the logits, in float64."""
    with torch.no_grad():
        logits_TV = model(torch.from_numpy(it.rows.ids))[0].double()
    labels_T = torch.from_numpy(it.rows.labels)[0]
    z = (logits_TV.logsumexp(-1).square() * (labels_T >= 0)).sum()
    return float(F.cross_entropy(logits_TV, labels_T, reduction="sum") + z_weight * z)


def pair(model: Transformer) -> tuple[Gradient, Gradient]:
    """Of a span of 6 tokens after 5, and of a document of 20 after 8."""
    names = all_names(model.config)
    span = example_gradient(model, names, example(1, 11, 5).rows)
    return span, example_gradient(model, names, example(2, 28, 8).rows, model.config.z_loss_weight)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_those_of_plain_autograd(name: str) -> None:
    config = VARIANTS[name]
    it = example(0, 20, 7)
    plain = build(config, REFERENCE)
    labels_T = torch.from_numpy(it.rows.ids)[0, 7:]
    logits_TV = plain(torch.from_numpy(it.rows.ids))[0, 6:-1]
    z = logits_TV.logsumexp(-1).square().sum()
    (F.cross_entropy(logits_TV, labels_T, reduction="sum") + config.z_loss_weight * z).backward()
    ours = example_gradient(build(config), all_names(config), it.rows, config.z_loss_weight)
    for key, parameter in plain.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(ours[key], expected, rtol=1e-4, atol=1e-5, msg=key)


def test_the_loss_is_the_one_that_training_minimises() -> None:
    config = VARIANTS["moe"]
    it, model = example(0, 20, 7), build(config)
    out = model(torch.from_numpy(it.rows.ids), torch.from_numpy(it.rows.labels))
    assert isinstance(out, Losses)
    out.loss.backward()  # cross entropy and z-loss; the routers' losses belong to the batch
    ours = example_gradient(model, all_names(config), it.rows, config.z_loss_weight)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(ours[key], parameter.grad), key


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_along_the_document_changes_the_span_by_minus_the_inner_product(name: str) -> None:
    model = build(VARIANTS[name])
    span, document = pair(model)
    dot, it = total(inner(span, document, model.config)), example(1, 11, 5)
    square = total(inner(document, document, model.config))
    lr = 1e-2 / square
    before = loss_of(model, it)
    step(model, document, lr)
    forward = loss_of(model, it) - before
    step(model, document, -2 * lr)
    backward = loss_of(model, it) - before
    assert (forward - backward) / 2 == pytest.approx(-lr * dot, rel=2e-2, abs=2e-5)


def test_a_step_of_sgd_changes_the_document_itself_to_first_order() -> None:
    model = build(VARIANTS["moe"])
    z_weight = model.config.z_loss_weight
    it = example(2, 28, 8)
    gradient = example_gradient(model, all_names(model.config), it.rows, z_weight)
    square = total(inner(gradient, gradient, model.config))
    before, lr = loss_of(model, it, z_weight), 1e-2 / square
    sgd = torch.optim.SGD([parameter.requires_grad_() for parameter in model.parameters()], lr)
    for key, parameter in model.named_parameters():
        parameter.grad = gradient[key]
    sgd.step()
    assert loss_of(model, it, z_weight) - before == pytest.approx(-lr * square, rel=2e-2)


def test_with_a_preconditioner_the_step_is_the_preconditioned_one() -> None:
    model = build(VARIANTS["moe"])
    span, document = pair(model)
    generator = torch.Generator().manual_seed(0)
    scales = {key: 0.5 + torch.rand(g.shape, generator=generator) for key, g in span.items()}
    direction = {key: scales[key].square() * g for key, g in document.items()}
    dot = total(inner(rescale(span, scales), rescale(document, scales), model.config))
    it, before = example(1, 11, 5), loss_of(model, example(1, 11, 5))
    lr = 0.02 / abs(dot)
    step(model, direction, lr)
    forward = loss_of(model, it) - before
    step(model, direction, -2 * lr)
    assert (forward - (loss_of(model, it) - before)) / 2 == pytest.approx(-lr * dot, rel=3e-2)


def step(model: Transformer, direction: Gradient, lr: float) -> None:
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter -= lr * direction[key]


@pytest.mark.parametrize("name", VARIANTS)
def test_parts_sum_to_the_whole(name: str) -> None:
    config = VARIANTS[name]
    span, document = pair(build(config))
    cells = inner(span, document, config)
    naive = {key: float((g.double() * document[key].double()).sum()) for key, g in span.items()}
    assert total(cells) == pytest.approx(math.fsum(naive.values()), rel=1e-9)
    groups = by_group(cells)
    assert math.fsum(groups.values()) == pytest.approx(total(cells), rel=1e-9)
    stacked = naive["blocks.1.attention.w_qkv.weight"]
    assert sum(groups[1, f"attention.{part}"] for part in "qkv") == pytest.approx(stacked, rel=1e-9)
    for layer in range(2 if config.moe is not None and config.moe.n_dense_layers == 0 else 0):
        of_layer = sum(number for (at, _), number in by_expert(cells).items() if at == layer)
        names = [f"blocks.{layer}.moe.w_in", f"blocks.{layer}.moe.w_out"]
        assert of_layer == pytest.approx(sum(naive[key] for key in names), rel=1e-9)
        assert of_layer == pytest.approx(sum(groups[layer, f"experts.{part}"] for part in ("gate", "up", "out")), rel=1e-9)


def test_the_rows_of_an_expert_are_its_own() -> None:
    config = VARIANTS["moe"]
    span, document = pair(build(config))
    cells = inner(span, document, config)
    gate = float((span["blocks.1.moe.w_in"][3, :12].double() * document["blocks.1.moe.w_in"][3, :12].double()).sum())
    assert cells[Cell(1, "experts.gate", 3)] == pytest.approx(gate, rel=1e-9)


def test_an_expert_that_not_both_visit_has_exactly_no_part() -> None:
    config = VARIANTS["moe"]
    model = build(config)
    spans, documents = example(1, 4, 1), example(2, 5, 1)
    visits = [visited(model, it) for it in (spans, documents)]
    gradients = [example_gradient(model, all_names(config), it.rows) for it in (spans, documents)]
    parts = by_expert(inner(*gradients, config))
    both = {key for key in parts if key in visits[0] and key in visits[1]}
    assert both
    assert set(parts) - both
    for key, number in parts.items():
        assert (number != 0) == (key in both), key
    for gradient, seen in zip(gradients, visits, strict=True):
        for layer in range(2):
            for expert in range(12):
                assert bool(gradient[f"blocks.{layer}.moe.w_in"][expert].any()) == ((layer, expert) in seen)


def visited(model: Transformer, it: Example) -> set[tuple[int, int]]:
    """(layer, expert) that read a token from which something is predicted; in the last layer only those matter."""
    found = set()
    chosen: list[torch.Tensor] = []
    hooks = [router.register_forward_hook(lambda _, __, out: chosen.append(out[1])) for router in model.routers()]
    model(torch.from_numpy(it.rows.ids[:, :-1]))
    for hook in hooks:
        hook.remove()
    for layer, ids_NK in enumerate(chosen):
        found |= {(layer, int(expert)) for expert in ids_NK.flatten()}
    return found


def test_gradients_are_the_same_every_time() -> None:
    model = build(VARIANTS["moe"])
    first, again = pair(model), pair(model)
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_only_chosen_parameters_get_a_gradient_and_it_is_the_same() -> None:
    model = build(VARIANTS["moe"])
    whole = example_gradient(model, all_names(model.config), example(0, 20, 7).rows)
    names = choose_parameters(model.config, ["experts", "router"], [1])
    some = example_gradient(model, names, example(0, 20, 7).rows)
    assert list(some) == ["blocks.1.moe.router.weight", "blocks.1.moe.w_in", "blocks.1.moe.w_out"]
    assert not model.embedding.weight.requires_grad
    assert all(torch.equal(some[key], whole[key]) for key in some)


def test_an_example_without_targets_has_a_gradient_of_zero() -> None:
    model = build(VARIANTS["moe"])
    it = build_example(np.array([5]), 0, 1)
    assert it.n_targets == 0
    assert not any(g.any() for g in example_gradient(model, all_names(model.config), it.rows).values())


def test_kinds_of_parameters() -> None:
    config = VARIANTS["moe shared dense first"]

    def names(*kinds: str, layers: list[int] | None = None) -> list[str]:
        return choose_parameters(config, kinds, layers)

    assert names("all") == [shape.name for shape in param_shapes(config)]
    assert set(names("all")) - set(names("blocks")) == {"embedding.weight", "norm.weight", "lm_head.weight"}
    assert names("embedding") == ["embedding.weight", "lm_head.weight"]
    assert names("router", "experts") == ["blocks.1.moe.router.weight", "blocks.1.moe.w_in", "blocks.1.moe.w_out"]
    assert [name.split(".", 2)[2] for name in names("feed_forward")] == [
        "feed_forward.w_in.weight", "feed_forward.w_out.weight", "moe.shared.w_in.weight", "moe.shared.w_out.weight",
    ]  # fmt: skip
    assert {name.split(".", 2)[2] for name in names("attention", layers=[1])} == {
        "attention.w_qkv.weight", "attention.w_out.weight", "attention.q_norm.weight", "attention.k_norm.weight",
    }  # fmt: skip


def test_wrong_kinds_and_layers_are_told_together() -> None:
    with pytest.raises(ConfigError) as error:
        choose_parameters(VARIANTS["dense"], ["heads", "blocks"], [0, 2])
    assert "--parameters=heads is not one of all, blocks, attention, feed_forward, experts, router, embedding" in str(error.value)
    assert "--layers=2: the model has layers 0 to 1" in str(error.value)


def test_parameters_that_the_model_has_not() -> None:
    with pytest.raises(ConfigError, match="--parameters=experts,router: this model has none"):
        choose_parameters(VARIANTS["dense"], ["experts", "router"])
    with pytest.raises(ConfigError, match="--layers=0: no parameter of --parameters=embedding is in these layers"):
        choose_parameters(VARIANTS["dense"], ["embedding"], [0])


def test_cosines() -> None:
    assert cosine(6.0, 9.0, 4.0) == pytest.approx(1.0)
    assert cosine(0.0, 9.0, 0.0) is None


# ---- AdamW's scale -------------------------------------------------------------------------------------------------------


def test_the_scale_is_that_of_the_saved_moments(run: Path) -> None:
    checkpoint = open_checkpoint(str(run), 5)
    assert checkpoint.run is not None
    names = choose_parameters(checkpoint.model, ["all"])
    scales = adam_scale(checkpoint, names, CPU)
    moments, optim = MomentWeights.of(checkpoint), checkpoint.run.optim
    some_zero = False
    for name in names:
        v = moments.read(f"exp_avg_sq/{name}").double()
        expected = 1 / ((v / (1 - optim.beta2**5)).sqrt() + optim.eps)
        expected[v == 0] = 0
        some_zero |= bool((v == 0).any())
        torch.testing.assert_close(scales[name].double().square(), expected, rtol=1e-4, atol=0)
    assert some_zero  # ids that no batch had


def test_no_scale_before_the_first_step(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"--precondition=adam: .*step00000000 has taken no step, its moments are zero"):
        adam_scale(open_checkpoint(str(run), 0), ["embedding.weight"], CPU)


def test_no_scale_without_optimizer_state(copy: Path) -> None:
    for path in (copy / "steps" / "step00000010").glob("optim-*"):
        path.unlink()
    with pytest.raises(ConfigError, match="--precondition=adam: .*step00000010 has no optimizer state; give --precondition none"):
        adam_scale(open_checkpoint(str(copy)), ["embedding.weight"], CPU)


def test_no_scale_of_what_another_optimizer_moves(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"no second moments of blocks.9.w and 1 more: another optimizer moves them"):
        adam_scale(open_checkpoint(str(run)), ["embedding.weight", "blocks.9.w", "blocks.9.x"], CPU)


def test_gradients_flow_through_a_loaded_model(run: Path) -> None:
    checkpoint = open_checkpoint(str(run))
    names = choose_parameters(checkpoint.model, ["blocks"])
    gradient = example_gradient(load_model(checkpoint, CPU), names, example(0, 16, 4).rows)
    assert all(g.dtype == torch.float32 for g in gradient.values())
    assert gradient["blocks.0.attention.w_qkv.weight"].any()
