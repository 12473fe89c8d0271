"""Logits, loss and gradients of every released architecture equal transformers', in float32, for random weights.

transformers gives no gradient to the embedding row of `pad_token_id`; OLMo's trainers do, and so do we (docs/models.md). So the
configs here have no padding id, and one test says what happens with one.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoints.hf_names import from_hf, hf_config, model_from_hf, to_hf
from olmo_train.config.model import ModelConfig
from olmo_train.kernels.choose import REFERENCE, Kernels
from olmo_train.model.transformer import Losses, Transformer

transformers = pytest.importorskip("transformers")
KERNELS = Kernels("sdpa", "loop", "chunked")
SHAPE = {
    "vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "max_position_embeddings": 64,
    "pad_token_id": None, "eos_token_id": 0, "bos_token_id": None,
}  # fmt: skip
MOE = {"intermediate_size": 20, "num_experts": 7, "num_experts_per_tok": 3}
CASES = {
    "olmoe": ("OlmoeConfig", MOE),
    "olmoe gqa": ("OlmoeConfig", {**MOE, "num_key_value_heads": 2}),
    "olmoe top 1": ("OlmoeConfig", {**MOE, "num_experts_per_tok": 1}),
    "olmoe all experts": ("OlmoeConfig", {**MOE, "num_experts_per_tok": 7}),
    "olmoe normalised": ("OlmoeConfig", {**MOE, "norm_topk_prob": True}),
    "olmoe clipped": ("OlmoeConfig", {**MOE, "clip_qkv": 0.5}),
    "olmoe wide": ("OlmoeConfig", {**MOE, "hidden_size": 64, "num_attention_heads": 2, "vocab_size": 77, "rope_theta": 500.0}),
    "olmo": ("OlmoConfig", {"intermediate_size": 52, "tie_word_embeddings": True}),
    "olmo untied": ("OlmoConfig", {"intermediate_size": 52, "clip_qkv": 0.3, "num_key_value_heads": 3}),
    "olmo2": ("Olmo2Config", {"intermediate_size": 52}),
    "olmo2 gqa": ("Olmo2Config", {"intermediate_size": 52, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 5e5}),
    "olmo3": ("Olmo3Config", {"intermediate_size": 52, "num_hidden_layers": 8, "sliding_window": 9}),
    "olmo3 gqa": ("Olmo3Config", {"intermediate_size": 52, "num_hidden_layers": 4, "sliding_window": 4, "num_key_value_heads": 3}),
    "olmo3 yarn": (
        "Olmo3Config",
        {
            "intermediate_size": 52, "num_hidden_layers": 4, "sliding_window": 9,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32.0,
                             "beta_slow": 1.0, "attention_factor": 1.1386},
        },
    ),
}  # fmt: skip


def their_model(config_class: str, values: dict[str, Any], seed: int) -> Any:
    """A transformers model whose norms are not all ones and whose routing is not a tie."""
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**{**SHAPE, **values})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(1.0, 0.2) if param.ndim == 1 else param.normal_(0.0, 0.08)
    return model


def our_model(theirs: Any, kernels: Kernels = KERNELS) -> tuple[Transformer, ModelConfig]:
    config = model_from_hf(theirs.config.to_dict())
    ours = Transformer(config, kernels)
    ours.load_state_dict(from_hf(dict(theirs.named_parameters()), config, "module"))
    return ours, config


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach() - b.detach()).norm() / b.detach().norm().clamp_min(1e-12))


def compare(theirs: Any, ids: Tensor, kernels: Kernels = KERNELS) -> None:
    """Logits, loss, and the gradient of every parameter, to 1e-5 relative."""
    ours, config = our_model(theirs, kernels)
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    expected = theirs(input_ids=ids, labels=ids)
    logits, losses = ours(ids), ours(ids, labels)
    assert isinstance(logits, Tensor)
    assert isinstance(losses, Losses)
    loss = losses.loss / (labels != -100).sum()
    assert relative(logits, expected.logits) < 1e-5
    assert relative(loss, expected.loss) < 1e-5
    loss.backward()
    expected.loss.backward()
    grads = to_hf({name: param.grad for name, param in ours.named_parameters()}, config, "module")  # type: ignore[misc]
    named = dict(theirs.named_parameters())
    assert set(grads) == set(named)
    for name, param in named.items():
        assert relative(grads[name], param.grad) < 1e-5, name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("seed", "shape"), [(0, (2, 33)), (1, (1, 64)), (2, (3, 2))])
def test_logits_loss_and_gradients_are_theirs(case: str, seed: int, shape: tuple[int, int]) -> None:
    theirs = their_model(*CASES[case], seed)
    ids = torch.randint(0, theirs.config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))
    compare(theirs, ids)


@pytest.mark.parametrize("case", ["olmoe", "olmo2 gqa", "olmo3"])
def test_the_reference_kernels_agree_too(case: str) -> None:
    theirs = their_model(*CASES[case], 3)
    compare(theirs, torch.randint(0, 101, (2, 20), generator=torch.Generator().manual_seed(3)), REFERENCE)


@pytest.mark.parametrize("favourite", [[2], [0, 5]])
def test_one_expert_takes_every_token_and_others_none(favourite: list[int]) -> None:
    theirs = their_model("OlmoeConfig", {**MOE, "num_experts_per_tok": len(favourite)}, 4)
    with torch.no_grad():
        # Entry 0 of every hidden state is large and positive, and the router's rows look at little else.
        theirs.model.embed_tokens.weight[:, 0] = 3.0
        for layer in theirs.model.layers:
            layer.post_attention_layernorm.weight.abs_()
            layer.mlp.gate.weight[:, 0] = -5.0
            layer.mlp.gate.weight[favourite, 0] = 5.0
    ids = torch.randint(0, 101, (2, 12), generator=torch.Generator().manual_seed(4))
    ours, _ = our_model(theirs)
    stats = ours(ids, router_only=True)
    assert stats is not None
    assert (stats.counts[:, favourite] == ids.numel()).all()
    assert (stats.counts.sum(1) == len(favourite) * ids.numel()).all()  # the others have no token at all
    compare(theirs, ids)


def test_the_padding_row_is_the_one_difference() -> None:
    theirs = their_model("OlmoeConfig", {**MOE, "pad_token_id": 1}, 0)
    ids = torch.tensor([[1, 5, 1, 7, 9, 1]])
    ours, _config = our_model(theirs)
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    losses = ours(ids, labels)
    assert isinstance(losses, Losses)
    (losses.loss / 5).backward()
    theirs(input_ids=ids, labels=ids).loss.backward()
    mine, other = ours.embedding.weight.grad, theirs.model.embed_tokens.weight.grad
    assert mine is not None
    assert relative(mine[2:], other[2:]) < 1e-5
    assert float(other[1].abs().max()) == 0.0 < float(mine[1].abs().max())


# ---- the key map -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", ["files", "module"])
def test_the_key_map_leads_back(case: str, layout: str) -> None:
    theirs = their_model(*CASES[case], 0)
    ours, config = our_model(theirs)
    params = {name: p.detach() for name, p in ours.named_parameters()}
    again = from_hf(to_hf(params, config, layout), config, layout)
    assert set(again) == set(params)
    assert all(torch.equal(again[name], params[name]) for name in params)


@pytest.mark.parametrize("case", ["olmoe", "olmo", "olmo2 gqa", "olmo3"])
def test_the_names_are_those_of_a_saved_checkpoint(case: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import load_file

    theirs = their_model(*CASES[case], 0)
    theirs.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    ours, config = our_model(theirs)
    mapped = to_hf({name: p.detach() for name, p in ours.named_parameters()}, config, "files")
    assert set(mapped) == set(saved)
    assert all(torch.equal(mapped[name], saved[name]) for name in saved)


@pytest.mark.parametrize("case", CASES)
def test_configs_lead_back(case: str) -> None:
    config = model_from_hf(their_model(*CASES[case], 0).config.to_dict())
    values = hf_config(config, 64)
    again = model_from_hf(values)
    assert again == config
    loaded = transformers.AutoConfig.for_model(**{k: v for k, v in values.items() if k != "architectures"})
    assert model_from_hf(loaded.to_dict()) == config
