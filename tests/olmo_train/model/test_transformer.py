"""The whole model: parameters as described, documents kept apart, losses consistent, initial values layout-free."""

import hashlib
import itertools

import pytest
import torch
from torch import Tensor

from olmo_train.config.model import Init, ModelConfig, MoEConfig, Norm, NormOrder, QKNorm
from olmo_train.config.optim import ParamKind
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import document_offsets
from olmo_train.kernels.attention import Documents, build_mask
from olmo_train.kernels.choose import REFERENCE, Kernels
from olmo_train.model.init import init_params, initial_rows
from olmo_train.model.rope import build_rotation
from olmo_train.model.shapes import ParamShape, param_shapes, window_of_layer
from olmo_train.model.size import count_params, flops_per_token
from olmo_train.model.transformer import Losses, Transformer
from olmo_train.schema import CONFIG_DIR, load_config

KERNELS = Kernels("sdpa", "loop", "chunked")
OFFSETS = Kernels("flash4", "loop", "chunked")
"""On a CPU, flash attention is a loop over documents."""


def small(**values: object) -> ModelConfig:
    base = {"d_model": 32, "n_layers": 3, "n_heads": 4, "d_ff": 48, "vocab_size": 61}
    return ModelConfig(**{**base, **values})  # type: ignore[arg-type]


def small_moe(**values: object) -> ModelConfig:
    moe = {"n_experts": 5, "top_k": 2, "d_expert": 12, "load_balancing_loss_weight": 0.01, "router_z_loss_weight": 1e-3, **values}
    return small(moe=MoEConfig(**moe), qk_norm=QKNorm.FULL)  # type: ignore[arg-type]


def build(config: ModelConfig, kernels: Kernels = KERNELS) -> Transformer:
    model = Transformer(config, kernels)
    init_params(model, param_shapes(config), config, seed=3)
    return model


def documents_of(numbers_BT: Tensor) -> Documents:
    return Documents(numbers_BT, torch.from_numpy(document_offsets(numbers_BT.numpy())))


VARIANTS = {
    "dense": small(),
    "gqa post": small(n_kv_heads=2, norm_order=NormOrder.POST, qk_norm=QKNorm.FULL),
    "olmo1": small(norm=Norm.LAYER_NORM_PLAIN, tie_embeddings=True, clip_qkv=1.0),
    "head norm": small(qk_norm=QKNorm.HEAD, d_head=16, padded_vocab_size=64),
    "windowed": small(sliding_window=5, full_attention_every=2),
    "moe": small_moe(),
    "moe shared dense first": small_moe(n_shared_experts=2, n_dense_layers=1),
    "moe bias": small_moe(bias_update_rate=1e-3, n_shared_experts=1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_described_parameters_are_the_built_ones(name: str) -> None:
    config = VARIANTS[name]
    built = {n: tuple(p.shape) for n, p in build(config).named_parameters()}
    assert built == {s.name: s.shape for s in param_shapes(config)}
    assert count_params(config).total == sum(p.numel() for p in build(config).parameters())


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "model").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_named_model_is_built_as_described(path) -> None:  # type: ignore[no-untyped-def]
    config = load_config("train", TrainConfig, ["run_name=x", f"model={path.stem}"]).model
    with torch.device("meta"):
        model = Transformer(config, KERNELS)
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == {s.name: s.shape for s in param_shapes(config)}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_is_the_cross_entropy_of_the_logits(name: str) -> None:
    model = build(VARIANTS[name])
    ids = torch.randint(0, 61, (2, 11), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    labels[0, 3] = -100
    logits, losses = model(ids), model(ids, labels)
    assert isinstance(logits, Tensor)
    assert isinstance(losses, Losses)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(losses.loss, expected)
    assert (losses.router is None) == (VARIANTS[name].moe is None)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kernels", [KERNELS, OFFSETS, REFERENCE], ids=["fast", "by offsets", "reference"])
def test_documents_do_not_see_each_other(name: str, kernels: Kernels) -> None:
    """Packed and masked, each document has the logits and gradients it has alone (rotary positions are relative)."""
    model = build(VARIANTS[name], kernels)
    generator = torch.Generator().manual_seed(1)
    lengths = [5, 1, 9, 3]
    documents = [torch.randint(0, 61, (1, n), generator=generator) for n in lengths]
    packed = torch.cat(documents, 1)
    masking = documents_of(torch.repeat_interleave(torch.arange(4, dtype=torch.int32), torch.tensor(lengths))[None])
    together = model(packed, documents=masking)
    assert isinstance(together, Tensor)
    start = 0
    for document, part in zip(documents, together.split(lengths, dim=1), strict=True):
        alone = model(document)
        assert isinstance(alone, Tensor)
        torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-5)
        start += document.shape[1]
    # And changing one document changes no other.
    changed = packed.clone()
    changed[0, 6:15] = (changed[0, 6:15] + 1) % 61
    other = model(changed, documents=masking)
    assert isinstance(other, Tensor)
    if VARIANTS[name].moe is None:
        assert torch.equal(other[:, :6], together[:, :6])
    else:  # other tokens at an expert change the shape of its matrix product, and with it the last bits of all its rows
        torch.testing.assert_close(other[:, :6], together[:, :6], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(other[:, 15:], together[:, 15:], rtol=1e-4, atol=1e-5)
    crossing = model(packed)
    assert isinstance(crossing, Tensor)
    assert not torch.allclose(crossing[:, 6:], together[:, 6:], atol=1e-4)


@pytest.mark.parametrize("with_documents", [False, True], ids=["crossing", "masked"])
@pytest.mark.parametrize("name", ["gqa post", "windowed", "moe"])
@pytest.mark.parametrize("kernels", [KERNELS, OFFSETS], ids=["dense mask", "by offsets"])
def test_a_block_compiles_without_a_graph_break(kernels: Kernels, name: str, with_documents: bool) -> None:
    """Forward and backward, and for new documents without compiling again."""
    torch._dynamo.reset()
    config, t = VARIANTS[name], 70
    model = build(config, kernels)
    block = model.blocks[0]
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        x_BTD = torch.randn(2, t, 32, generator=generator).requires_grad_()
        numbers_BT = (torch.rand(2, t, generator=generator) < 0.1 + 0.7 * seed).int().cumsum(1, dtype=torch.int32)
        documents = documents_of(numbers_BT) if with_documents else None
        mask = build_mask((2, t), window_of_layer(config, 0), documents, torch.device("cpu"), kernels.attention)
        rotation = build_rotation(config, torch.arange(t), is_windowed=False)
        results = []
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            for run in (block, compiled):
                y_BTD = run(x_BTD, rotation, mask)[0]
                results.append((y_BTD, torch.autograd.grad(y_BTD.square().sum(), [x_BTD, *block.parameters()])))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_a_window_limits_what_a_position_sees() -> None:
    model = build(small(sliding_window=4, full_attention_every=99))
    ids = torch.randint(0, 61, (1, 20), generator=torch.Generator().manual_seed(2))
    far = ids.clone()
    far[0, 0] = (far[0, 0] + 1) % 61
    a, b = model(ids), model(far)
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    reach = 3 * 3  # three layers, each three positions back
    assert torch.equal(a[:, reach + 1 :], b[:, reach + 1 :])
    assert not torch.allclose(a[:, reach], b[:, reach], atol=1e-7)


def test_flops_are_counted_per_matrix_product() -> None:
    """Against torch's own counter, forward and backward; attention by hand, causal."""
    from torch.utils.flop_counter import FlopCounterMode

    config, t = small(n_kv_heads=2), 16
    model = build(config, Kernels("reference", "reference", "reference"))
    ids = torch.randint(0, 61, (1, t))
    with FlopCounterMode(display=False) as counter:
        losses = model(ids, ids)
        losses.loss.backward()  # type: ignore[union-attr]
    counted = counter.get_total_flops()
    # The counter sees full attention (T keys each, 2 products, forward + 2 backward) where ours counts (T + 1) / 2.
    full_attention = config.n_layers * 3 * 2 * 2 * config.n_heads * 8 * t * t
    ours = flops_per_token(config, t) * t - full_attention * (t + 1) / (2 * t) + full_attention
    assert counted == pytest.approx(ours, rel=1e-9)


def test_flops_of_a_window_count_its_keys() -> None:
    plain, windowed = small(), small(sliding_window=4, full_attention_every=99)
    t = 10
    keys = sum(min(i + 1, 4) for i in range(t)) / t
    difference = 3 * config_attention(plain) * ((t + 1) / 2 - keys)
    assert flops_per_token(plain, t) - flops_per_token(windowed, t) == pytest.approx(difference)


def config_attention(config: ModelConfig) -> float:
    return config.n_layers * 4 * config.n_heads * (config.d_model // config.n_heads)


# ---- initial values --------------------------------------------------------------------------------------------------------


def test_initial_rows_do_not_depend_on_how_they_are_cut() -> None:
    config = small()
    shape = ParamShape("x", (5000, 700), ParamKind.MATRIX, 0)  # several blocks
    whole = initial_rows(shape, config, 1, (0, 5000))
    for cuts in ([0, 2500, 5000], [0, 1, 1499, 4999, 5000]):
        parts = [initial_rows(shape, config, 1, (a, b)) for a, b in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole)
    assert initial_rows(shape, config, 1, (7, 7)).shape == (0, 700)
    assert not torch.equal(initial_rows(shape, config, 2, (0, 10)), whole[:10])
    other = ParamShape("y", (5000, 700), ParamKind.MATRIX, 0)
    assert not torch.equal(initial_rows(other, config, 1, (0, 10)), whole[:10])


def test_initial_weights_are_the_same_under_every_version_of_torch() -> None:
    """Written down on torch 2.13 and found on 2.11: a published seed leads to the same weights."""
    values = initial_rows(ParamShape("w", (4096, 256), ParamKind.MATRIX, 0), small(), 7, (0, 4096))
    assert values[0, :4].tolist() == pytest.approx([-0.0174340, -0.0087901, -0.0157770, -0.0200597], abs=1e-7)
    assert hashlib.sha256(values.numpy().tobytes()).hexdigest().startswith("60451b461c56bf50")


def test_the_truncated_normal_has_its_deviation_and_its_cut() -> None:
    values = initial_rows(ParamShape("x", (2000, 500), ParamKind.ROUTER, 0), small(), 1, (0, 2000))
    assert values.abs().max() <= 3 * 0.02
    # A normal cut at 3 sigma has 0.9866 of its deviation.
    assert values.std().item() == pytest.approx(0.02 * 0.9866, rel=5e-3)


def test_mitchell_scales_with_depth_and_fan_in() -> None:
    config = small(init=Init.MITCHELL)
    inner = initial_rows(ParamShape("a", (400, 32), ParamKind.MATRIX, 2), config, 1, (0, 400))
    outer = initial_rows(ParamShape("b", (400, 48), ParamKind.MATRIX, 2, is_output=True), config, 1, (0, 400))
    assert inner.std().item() == pytest.approx(0.9866 / 32**0.5, rel=0.05)
    assert outer.std().item() == pytest.approx(0.9866 / (2 * 48 * 3) ** 0.5, rel=0.05)


def test_norms_begin_at_one() -> None:
    assert (initial_rows(ParamShape("n", (32,), ParamKind.NORM), small(), 1, (0, 32)) == 1).all()
