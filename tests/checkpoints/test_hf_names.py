"""What Hugging Face's classes cannot express is refused with every reason."""

import pytest
import torch

from checkpoints.hf_names import from_hf, hf_model_type, model_from_hf
from olmo_train.config.model import ModelConfig, MoEConfig, Norm, QKNorm
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


def test_a_checkpoint_that_does_not_fit_is_named_tensor_by_tensor() -> None:
    model = ModelConfig(d_model=8, n_layers=1, n_heads=2, vocab_size=9, norm=Norm.RMS, qk_norm=QKNorm.FULL)
    model.moe = MoEConfig(n_experts=3, top_k=1, d_expert=4, load_balancing_loss_weight=0.0, router_z_loss_weight=0.0)
    with pytest.raises(ConfigError) as caught:
        from_hf({"model.embed_tokens.weight": torch.zeros(9, 7)}, model)
    text = str(caught.value)
    assert "embedding.weight: shape (9, 7) in the checkpoint, (9, 8) by the config" in text
    assert "blocks.0.moe.w_in: the checkpoint has no model.layers.0.mlp.experts.0.gate_proj.weight and 5 more" in text
