"""Decoding with a cache is the full forward pass, for every architecture and however the batch is made up."""

import pytest
import torch
from torch import Tensor

from olmo_train.config.model import Gate, ModelConfig, MoEConfig, Norm, NormOrder, QKNorm, YarnConfig
from olmo_train.kernels.choose import REFERENCE, Kernels
from olmo_train.model import decode
from olmo_train.model.decode import Decoder
from olmo_train.model.init import init_params
from olmo_train.model.shapes import param_shapes
from olmo_train.model.transformer import Transformer

KERNELS = Kernels("sdpa", "loop", "chunked")
BASE = {"d_model": 32, "n_layers": 4, "n_heads": 4, "d_ff": 48, "vocab_size": 61, "init_std": 0.2}
YARN = YarnConfig(factor=4.0, original_seq_len=16)


def moe(**values: object) -> MoEConfig:
    base = {"n_experts": 6, "top_k": 2, "d_expert": 12, "load_balancing_loss_weight": 0.01, "router_z_loss_weight": 1e-3}
    return MoEConfig(**{**base, **values})  # type: ignore[arg-type]


ARCHITECTURES = {
    "olmo": {"norm": Norm.LAYER_NORM_PLAIN, "tie_embeddings": True},
    "olmo clipped, gqa": {"norm": Norm.LAYER_NORM_PLAIN, "clip_qkv": 0.3, "n_kv_heads": 2},
    "olmoe": {"qk_norm": QKNorm.FULL, "moe": moe()},
    "olmoe top 1, normalised": {"qk_norm": QKNorm.FULL, "moe": moe(top_k=1, normalize_top_k=True)},
    "sigmoid gates, biased, shared, dense first": {
        "moe": moe(gate=Gate.SIGMOID, normalize_top_k=True, gate_scale=2.5, bias_update_rate=1e-3, n_shared_experts=1, n_dense_layers=1)
    },
    "olmo2": {"norm_order": NormOrder.POST, "qk_norm": QKNorm.FULL},
    "olmo2 gqa, one kv head": {"norm_order": NormOrder.POST, "qk_norm": QKNorm.FULL, "n_kv_heads": 1},
    "norm per head, wide heads, padded rows": {"qk_norm": QKNorm.HEAD, "d_head": 16, "padded_vocab_size": 64},
    "olmo3": {"norm_order": NormOrder.POST, "qk_norm": QKNorm.FULL, "sliding_window": 5, "full_attention_every": 2},
    "olmo3 yarn, gqa": {
        "norm_order": NormOrder.POST, "qk_norm": QKNorm.FULL, "sliding_window": 7, "full_attention_every": 2, "n_kv_heads": 2,
        "rope_yarn": YARN,
    },
    "every layer windowed": {"sliding_window": 1, "full_attention_every": 99, "moe": moe(), "d_ff": None},
}  # fmt: skip


def build(case: str, kernels: Kernels = KERNELS) -> Transformer:
    config = ModelConfig(**{**BASE, **ARCHITECTURES[case]})  # type: ignore[arg-type]
    model = Transformer(config, kernels)
    init_params(model, param_shapes(config), config, seed=3)
    for buffer in model.buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(5)))
    return model.eval()


def tokens(n: int, seed: int) -> list[int]:
    return torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def full(model: Transformer, ids: list[int]) -> Tensor:
    """Logits after the last token, by the definition."""
    logits = model(torch.tensor([ids]))
    assert isinstance(logits, Tensor)
    return logits[0, -1, : model.config.vocab_size]


@pytest.mark.parametrize("case", ARCHITECTURES)
@pytest.mark.parametrize("lengths", [[3], [1, 1], [12, 2, 7], [*range(1, 19)]], ids=lambda n: f"{len(n)} rows")
def test_every_row_has_the_logits_of_its_tokens_alone(case: str, lengths: list[int]) -> None:
    """Through the ring of a windowed layer more than twice, and with rows that leave on the way."""
    model = build(case)
    decoder = Decoder(model)
    rows = [tokens(n, seed) for seed, n in enumerate(lengths)]
    logits = decoder.prefill(rows, 20)
    for step in range(20):
        for row, found in zip(rows, logits, strict=True):
            torch.testing.assert_close(found, full(model, row), rtol=2e-5, atol=2e-5)
        if step == 9 and len(rows) > 2:
            kept = [2, 0]
            decoder.keep(kept)
            rows = [rows[i] for i in kept]
        new = tokens(len(rows), 100 + step)
        rows = [[*row, token] for row, token in zip(rows, new, strict=True)]
        logits = decoder.step(new)


@pytest.mark.parametrize("case", ["olmoe", "olmo3 yarn, gqa"])
def test_rows_may_begin_with_one_prompt(case: str) -> None:
    model = build(case)
    decoder = Decoder(model)
    prompts, copies = [tokens(9, 0), tokens(4, 1)], [3, 2]
    rows = [prompts[0]] * 3 + [prompts[1]] * 2
    logits = decoder.prefill(prompts, 12, copies)
    for step in range(12):
        for row, found in zip(rows, logits, strict=True):
            torch.testing.assert_close(found, full(model, row), rtol=2e-5, atol=2e-5)
        new = tokens(5, step)
        rows = [[*row, token] for row, token in zip(rows, new, strict=True)]
        logits = decoder.step(new)


def test_prompts_are_read_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 8)
    model = build("olmo3")
    rows = [tokens(n, n) for n in (3, 5, 1, 20, 2, 2)]
    assert [len(group) for group, _ in decode._groups(rows, [1] * 6)] == [2, 1, 1, 2]
    decoder = Decoder(model)
    decoder.prefill(rows, 1)
    new = tokens(6, 0)
    for row, token, found in zip(rows, new, decoder.step(new), strict=True):
        torch.testing.assert_close(found, full(model, [*row, token]), rtol=2e-5, atol=2e-5)


def test_a_decoder_begins_again() -> None:
    decoder = Decoder(build("olmo3"))
    first = decoder.prefill([tokens(9, 1)], 3)
    decoder.step([4])
    assert torch.equal(decoder.prefill([tokens(9, 1)], 3), first)


@pytest.mark.parametrize("case", ["olmoe", "olmo2"])
def test_weights_are_shared_and_the_model_stays_as_it_is(case: str) -> None:
    model = build(case)
    before = full(model, tokens(6, 0))
    names = {name: type(module) for name, module in model.named_modules()}
    decoder = Decoder(model)
    for mine, other in zip(model.parameters(), decoder._model.parameters(), strict=True):
        assert mine.data_ptr() == other.data_ptr()
    decoder.prefill([tokens(6, 0)], 1)
    assert {name: type(module) for name, module in model.named_modules()} == names
    assert torch.equal(full(model, tokens(6, 0)), before)


@pytest.mark.parametrize("case", ["olmoe", "olmo3"])
def test_the_reference_kernels_agree(case: str) -> None:
    fast, slow = Decoder(build(case)), Decoder(build(case, REFERENCE))
    rows = [tokens(30, 0), tokens(11, 1)]
    torch.testing.assert_close(fast.prefill(rows, 1), slow.prefill(rows, 1), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(fast.step([1, 2]), slow.step([1, 2]), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("case", ["olmoe", "olmo3"])
def test_bfloat16_stays_near(case: str) -> None:
    model = build(case)
    exact, rounded = Decoder(model), Decoder(build(case).to(torch.bfloat16))
    rows = [tokens(8, 0), tokens(5, 1)]
    for a, b in ((exact.prefill(rows, 2), rounded.prefill(rows, 2)), (exact.step([1, 2]), rounded.step([1, 2]))):
        assert b.dtype == torch.bfloat16
        assert float((a - b.float()).norm() / a.norm()) < 0.05
