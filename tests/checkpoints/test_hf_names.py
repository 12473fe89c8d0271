"""What Hugging Face's classes cannot express is refused with every reason."""

from typing import Any

import pytest
import torch

from checkpoints.hf_names import from_hf, hf_model_type, model_from_hf
from olmo_train.config.model import ModelConfig, MoEConfig, Norm, QKNorm, YarnConfig
from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError
from olmo_train.schema import load_config


def model_of(*overrides: str) -> ModelConfig:
    return load_config("train", TrainConfig, ["run_name=x", *overrides]).model


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("olmoe_1b_7b", "olmoe"),
        ("olmo_1b", "olmo"),
        ("olmo2_32b", "olmo2"),
        ("olmo3_7b", "olmo3"),
        ("tiny_moe", "olmoe"),
        ("tiny_dense", "olmo2"),
    ],
)
def test_each_model_has_its_class(model: str, kind: str) -> None:
    assert hf_model_type(model_of(f"model={model}")) == kind


def test_every_reason_is_given() -> None:
    model = model_of(
        "model=tiny_moe", "model.moe.n_shared_experts=1", "model.moe.gate=sigmoid", "model.qk_norm=head", "model.sliding_window=8"
    )
    with pytest.raises(ConfigError) as caught:
        hf_model_type(model)
    text = str(caught.value)
    for part in ("model.moe.n_shared_experts", "model.moe.gate=sigmoid", "model.qk_norm=head", "model.sliding_window"):
        assert part in text
    assert "no Hugging Face class computes the same" in text


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model=tiny_moe", "model.moe.n_dense_layers=1", "model.d_ff=8"], "model.moe.n_dense_layers"),
        (["model=tiny_moe", "model.moe.gate_scale=2"], "model.moe.gate_scale"),
        (["model=tiny_moe", "model.moe.bias_update_rate=1e-3"], "model.moe.bias_update_rate"),
        (["model=tiny_moe", "model.d_head=16"], "model.d_head=16: OlmoeForCausalLM has d_model / n_heads"),
        (["model=tiny_dense", "model.clip_qkv=1"], "model.clip_qkv: Olmo2ForCausalLM does not clamp"),
        (["model=tiny_dense", "model.norm_order=pre"], "model.norm_order=pre: Olmo2ForCausalLM has post"),
        (["model=olmo_1b", "model.norm_eps=1e-6"], "model.norm_eps=1e-06: OlmoForCausalLM has 1e-5"),
    ],
)
def test_each_reason_has_its_message(overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hf_model_type(model_of(*overrides))
    assert reason in str(caught.value)


def test_foreign_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="model_type=llama is not one of olmoe, olmo, olmo2, olmo3"):
        model_from_hf({"model_type": "llama"})
    base = {
        "model_type": "olmo3",
        "hidden_size": 8,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "vocab_size": 9,
        "intermediate_size": 8,
    }
    with pytest.raises(ConfigError, match="attention_bias"):
        model_from_hf({**base, "attention_bias": True})
    with pytest.raises(ConfigError, match="rope_type=linear is not supported"):
        model_from_hf({**base, "rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 1.0}}})
    odd = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    with pytest.raises(ConfigError, match=r"layer_types has full attention at layers \[1, 4\], not at every k-th"):
        model_from_hf({**base, "layer_types": odd})


BASE = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 9, "intermediate_size": 8,
    "max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "olmoe"}, ["num_experts is missing", "num_experts_per_tok is missing"]),
        ({"model_type": "olmo2", "quantization_config": {"bits": 4}}, ["quantization_config: the weights are quantised"]),
        ({"model_type": "olmo2", "hidden_act": "gelu"}, ["an activation other than silu"]),
        ({"model_type": "olmo2", "rope_parameters": {**YARN, "mscale": 0.7}}, ["rope mscale=0.7 is not supported"]),
        ({"model_type": "olmo2", "rope_parameters": {**YARN, "truncate": False}}, ["rope truncate=False is not supported"]),
        ({"model_type": "olmo2", "rope_parameters": {"partial_rotary_factor": 0.5}}, ["rope partial_rotary_factor=0.5 is not"]),
        ({"model_type": "olmo2", "rope_parameters": {"rope_type": "yarn"}}, ["rope_type=yarn without factor"]),
        ({"model_type": "olmo3", "layer_types": ["full_attention"]}, ["layer_types has 1 entries, num_hidden_layers=2"]),
        ({"model_type": "olmo3", "rope_parameters": {"full_attention": YARN, "sliding_attention": YARN}},
         ["rope_parameters.sliding_attention", "windowed layers rotate plainly"]),
        ({"model_type": "olmo3", "rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 5.0}}},
         ["with the theta of the others"]),
    ],
)  # fmt: skip
def test_what_a_config_asks_for_beyond_ours_is_refused(values: dict[str, Any], reason: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        model_from_hf({**BASE, **values})
    assert all(part in str(caught.value) for part in reason), str(caught.value)


def test_configs_of_before_transformers_5_are_read() -> None:
    older = {"model_type": "olmo3", "rope_theta": 7e4, "rope_scaling": {**YARN, "attention_factor": 1.2}, "sliding_window": 5}
    model = model_from_hf({**BASE, **older, "layer_types": ["sliding_attention", "full_attention"]})
    assert model.rope_theta == 7e4
    assert model.rope_yarn == YarnConfig(4.0, 16, attention_factor=1.2)
    assert (model.sliding_window, model.full_attention_every) == (5, 2)
    plain = model_from_hf({**BASE, "model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2, "rope_scaling": None})
    assert (plain.rope_theta, plain.rope_yarn, plain.norm_eps) == (1e4, None, 1e-5)
    with_default_window = model_from_hf({**BASE, "model_type": "olmo3"})
    assert (with_default_window.sliding_window, with_default_window.rope_theta) == (4096, 5e5)


def test_values_a_class_ignores_are_ignored() -> None:
    assert model_from_hf({**BASE, "model_type": "olmo2", "clip_qkv": 8.0}).clip_qkv is None
    assert model_from_hf({**BASE, "model_type": "olmo", "rms_norm_eps": 0.1}).norm_eps == 1e-5
    assert model_from_hf({**BASE, "model_type": "olmo", "clip_qkv": 8.0}).clip_qkv == 8.0


def test_a_checkpoint_that_does_not_fit_is_named_tensor_by_tensor() -> None:
    model = ModelConfig(d_model=8, n_layers=1, n_heads=2, vocab_size=9, norm=Norm.RMS, qk_norm=QKNorm.FULL)
    model.moe = MoEConfig(n_experts=3, top_k=1, d_expert=4, load_balancing_loss_weight=0.0, router_z_loss_weight=0.0)
    with pytest.raises(ConfigError) as caught:
        from_hf({"model.embed_tokens.weight": torch.zeros(9, 7)}, model)
    text = str(caught.value)
    assert "embedding.weight: shape (9, 7) in the checkpoint, (9, 8) by the config" in text
    assert "blocks.0.moe.w_in: the checkpoint has no model.layers.0.mlp.experts.0.gate_proj.weight and 5 more" in text
