"""One table between our parameters and Hugging Face's, used both ways; and the same for configs.

    olmoe: OlmoeForCausalLM    olmo: OlmoForCausalLM    olmo2: Olmo2ForCausalLM    olmo3: Olmo3ForCausalLM

Weights come in two layouts: "files", the keys that released checkpoints and `save_pretrained` have (one tensor per expert), and
"module", the state dict of a model in transformers 5 (experts stacked).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from olmo_train.config.model import Gate, ModelConfig, MoEConfig, Norm, NormOrder, QKNorm, YarnConfig
from olmo_train.errors import ConfigError
from olmo_train.model.shapes import ParamShape, d_head, n_kv_heads, param_shapes, stacked_rows, vocab_rows, window_of_layer

ARCHITECTURES = {
    "olmoe": "OlmoeForCausalLM", "olmo": "OlmoForCausalLM", "olmo2": "Olmo2ForCausalLM", "olmo3": "Olmo3ForCausalLM",
}  # fmt: skip

# Our name after `blocks.{i}.` (or the whole name) -> theirs after `model.layers.{i}.`; several are concatenated along dim 0.
_WHOLE = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_LAYER: dict[str, list[str]] = {
    "attention.w_qkv.weight": ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
    "attention.w_out.weight": ["self_attn.o_proj.weight"],
    "attention.q_norm.weight": ["self_attn.q_norm.weight"],
    "attention.k_norm.weight": ["self_attn.k_norm.weight"],
    "feed_forward.w_in.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "feed_forward.w_out.weight": ["mlp.down_proj.weight"],
    "moe.router.weight": ["mlp.gate.weight"],
}
_NORMS = {
    NormOrder.PRE: {
        "attention_norm.weight": "input_layernorm.weight",
        "feed_forward_norm.weight": "post_attention_layernorm.weight",
    },
    NormOrder.POST: {
        "attention_norm.weight": "post_attention_layernorm.weight",
        "feed_forward_norm.weight": "post_feedforward_layernorm.weight",
    },
}
_EXPERTS = {
    "moe.w_in": (["mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight"], "mlp.experts.gate_up_proj"),
    "moe.w_out": (["mlp.experts.{e}.down_proj.weight"], "mlp.experts.down_proj"),
}


def hf_names(shape: ParamShape, model: ModelConfig, layout: str = "files") -> list[list[str]]:
    """Their names for one of our parameters: the outer list is stacked (experts), inner lists are concatenated along rows."""
    if shape.layer is None:
        return [[_WHOLE[shape.name]]]
    ours, theirs = shape.name.removeprefix(f"blocks.{shape.layer}."), f"model.layers.{shape.layer}."
    if ours in _EXPERTS:
        files, module = _EXPERTS[ours]
        if layout == "module":
            return [[theirs + module]]
        return [[theirs + name.format(e=e) for name in files] for e in range(shape.shape[0])]
    if ours in _LAYER:
        return [[theirs + name for name in _LAYER[ours]]]
    return [[theirs + _NORMS[model.norm_order][ours]]]


def to_hf(params: Mapping[str, Tensor], model: ModelConfig, layout: str = "files") -> dict[str, Tensor]:
    """Our parameters under their names; views where possible.

    Raises:
        ConfigError: the architecture has no Hugging Face class that computes the same.
    """
    hf_model_type(model)
    out: dict[str, Tensor] = {}
    for shape in param_shapes(model):
        names = hf_names(shape, model, layout)
        per_expert = (
            params[shape.name].unbind(0) if len(names) > 1 or "{e}" in str(_EXPERTS.get(shape.name)) else [params[shape.name]]
        )
        for value, group in zip(per_expert, names, strict=True):
            rows = part_rows(shape, model) if len(group) > 1 else (value.shape[0],)
            for name, part in zip(group, value.split(rows), strict=True):
                out[name] = part
    return out


def from_hf(params: Mapping[str, Tensor], model: ModelConfig, layout: str = "files") -> dict[str, Tensor]:
    """Their parameters under our names.

    Raises:
        ConfigError: a tensor is missing or has another shape than the config says.
    """
    out: dict[str, Tensor] = {}
    problems = []
    for shape in param_shapes(model):
        names = hf_names(shape, model, layout)
        missing = [name for group in names for name in group if name not in params]
        if missing:
            problems.append(
                f"{shape.name}: the checkpoint has no {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}"
            )
            continue
        groups = [torch.cat([params[name] for name in group]) if len(group) > 1 else params[group[0]] for group in names]
        value = torch.stack(groups) if len(groups) > 1 or (layout == "files" and len(shape.shape) == 3) else groups[0]
        if tuple(value.shape) != shape.shape:
            problems.append(f"{shape.name}: shape {tuple(value.shape)} in the checkpoint, {shape.shape} by the config")
        out[shape.name] = value
    if problems:
        raise ConfigError(problems)
    return out


def part_rows(shape: ParamShape, model: ModelConfig) -> tuple[int, ...]:
    """Rows of each tensor of theirs that one of our matrices (of an expert, where experts are stacked) is made of."""
    return stacked_rows(shape.name, shape.shape, model) or shape.shape


# ---- configs -----------------------------------------------------------------------------------------------------------


def hf_model_type(model: ModelConfig) -> str:
    """Which Hugging Face architecture computes exactly what this config does.

    Raises:
        ConfigError: none does; lists every reason.
    """
    moe, reasons = model.moe, []
    if moe is not None:
        kind = "olmoe"
        for name, bad in {
            "n_shared_experts": moe.n_shared_experts > 0, "n_dense_layers": moe.n_dense_layers > 0,
            "gate=sigmoid": moe.gate != Gate.SOFTMAX, "gate_scale": moe.gate_scale != 1.0,
            "bias_update_rate": moe.bias_update_rate > 0,
        }.items():  # fmt: skip
            if bad:
                reasons.append(f"model.moe.{name}: OlmoeForCausalLM cannot express it")
    elif model.norm == Norm.LAYER_NORM_PLAIN:
        kind = "olmo"
    else:
        kind = "olmo3" if model.sliding_window is not None else "olmo2"
    wants = {
        "olmoe": (Norm.RMS, NormOrder.PRE, QKNorm.FULL), "olmo": (Norm.LAYER_NORM_PLAIN, NormOrder.PRE, QKNorm.NONE),
        "olmo2": (Norm.RMS, NormOrder.POST, QKNorm.FULL), "olmo3": (Norm.RMS, NormOrder.POST, QKNorm.FULL),
    }[kind]  # fmt: skip
    for name, want in zip(("norm", "norm_order", "qk_norm"), wants, strict=True):
        if getattr(model, name) != want:
            reasons.append(f"model.{name}={getattr(model, name)}: {ARCHITECTURES[kind]} has {want}")
    if kind in ("olmoe", "olmo") and model.sliding_window is not None:
        reasons.append(f"model.sliding_window: {ARCHITECTURES[kind]} attends to everything")
    if kind in ("olmo2", "olmo3") and model.clip_qkv is not None:
        reasons.append(f"model.clip_qkv: {ARCHITECTURES[kind]} does not clamp")
    if kind == "olmo" and model.norm_eps != 1e-5:
        reasons.append(f"model.norm_eps={model.norm_eps}: OlmoForCausalLM has 1e-5")
    if kind in ("olmoe", "olmo") and d_head(model) * model.n_heads != model.d_model:
        reasons.append(f"model.d_head={model.d_head}: {ARCHITECTURES[kind]} has d_model / n_heads")
    if reasons:
        raise ConfigError([f"{reason}; no Hugging Face class computes the same" for reason in reasons])
    return kind


def hf_config(model: ModelConfig, seq_len: int) -> dict[str, Any]:
    """The values of a Hugging Face `config.json`. `seq_len` becomes max_position_embeddings."""
    kind = hf_model_type(model)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_theta}
    if model.rope_yarn is not None:
        y = model.rope_yarn
        rope |= {
            "rope_type": "yarn", "factor": y.factor, "original_max_position_embeddings": y.original_seq_len,
            "beta_fast": y.beta_fast, "beta_slow": y.beta_slow, "attention_factor": y.attention_factor,
        }  # fmt: skip
    out: dict[str, Any] = {
        "model_type": kind, "architectures": [ARCHITECTURES[kind]], "vocab_size": vocab_rows(model), "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers, "num_attention_heads": model.n_heads, "num_key_value_heads": n_kv_heads(model),
        "max_position_embeddings": seq_len, "tie_word_embeddings": model.tie_embeddings, "hidden_act": "silu",
        "attention_bias": False, "initializer_range": model.init_std, "rope_parameters": rope,
    }  # fmt: skip
    if model.moe is not None:
        m = model.moe
        out |= {
            "intermediate_size": m.d_expert,
            "num_experts": m.n_experts,
            "num_experts_per_tok": m.top_k,
            "norm_topk_prob": m.normalize_top_k,
        }
    else:
        out["intermediate_size"] = model.d_ff
    if model.norm == Norm.RMS:
        out["rms_norm_eps"] = model.norm_eps
    if model.clip_qkv is not None:
        out["clip_qkv"] = model.clip_qkv
    if kind in ("olmo2", "olmo3") and model.d_head is not None:
        out["head_dim"] = model.d_head
    if kind == "olmo3":
        windowed = {"rope_type": "default", "rope_theta": model.rope_theta}
        out |= {
            "sliding_window": model.sliding_window,
            "layer_types": [
                "full_attention" if window_of_layer(model, i) is None else "sliding_attention" for i in range(model.n_layers)
            ],
            "rope_parameters": {"full_attention": rope, "sliding_attention": windowed},
        }
    return out


def model_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Our config for a Hugging Face `config.json`. Loss weights, which it does not hold, are zero.

    Raises:
        ConfigError: another architecture, or a value we do not compute.
    """
    kind = values.get("model_type")
    if kind not in ARCHITECTURES:
        raise ConfigError(f"model_type={kind} is not one of {', '.join(ARCHITECTURES)}")
    wanted = ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"]
    wanted += ["num_experts", "num_experts_per_tok"] if kind == "olmoe" else []
    reasons = [f"{name} is missing" for name in wanted if name not in values]
    if reasons:
        raise ConfigError(reasons)
    if values.get("attention_bias") or values.get("hidden_act", "silu") != "silu":
        reasons.append("attention_bias and an activation other than silu are not supported")
    if values.get("quantization_config"):
        reasons.append("quantization_config: the weights are quantised; take the folder they were quantised from")
    theta, yarn = _rope_from_hf(values, reasons)
    every = _full_attention_every(values, reasons) if kind == "olmo3" else 4
    if reasons:
        raise ConfigError(reasons)
    return ModelConfig(
        d_model=values["hidden_size"], n_layers=values["num_hidden_layers"], n_heads=values["num_attention_heads"],
        n_kv_heads=values.get("num_key_value_heads"), d_head=values.get("head_dim"), vocab_size=values["vocab_size"],
        d_ff=None if kind == "olmoe" else values["intermediate_size"], tie_embeddings=values.get("tie_word_embeddings", False),
        norm=Norm.LAYER_NORM_PLAIN if kind == "olmo" else Norm.RMS,
        norm_eps=1e-5 if kind == "olmo" else values.get("rms_norm_eps", 1e-5),
        norm_order=NormOrder.POST if kind in ("olmo2", "olmo3") else NormOrder.PRE,
        qk_norm=QKNorm.NONE if kind == "olmo" else QKNorm.FULL,
        clip_qkv=values.get("clip_qkv") if kind in ("olmoe", "olmo") else None, rope_theta=theta, rope_yarn=yarn,
        full_attention_every=every, sliding_window=values.get("sliding_window", 4096) if kind == "olmo3" else None,
        init_std=values.get("initializer_range", 0.02), moe=_moe_from_hf(values) if kind == "olmoe" else None,
    )  # fmt: skip


def _rope_from_hf(values: Mapping[str, Any], reasons: list[str]) -> tuple[float, YarnConfig | None]:
    """(theta, YaRN) of `rope_parameters`, or of `rope_theta` and `rope_scaling` as before transformers 5."""
    rope = dict(values.get("rope_parameters") or {})
    windowed = rope.get("sliding_attention") or {}
    rope = dict(rope.get("full_attention", rope)) | dict(values.get("rope_scaling") or {})
    default = 500_000.0 if values["model_type"] == "olmo3" else 10_000.0
    theta = float(rope.get("rope_theta") or values.get("rope_theta") or default)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if windowed.get("rope_type", "default") != "default" or float(windowed.get("rope_theta") or theta) != theta:
        reasons.append(
            f"rope_parameters.sliding_attention={windowed}: windowed layers rotate plainly, with the theta of the others"
        )
    if kind not in ("default", "yarn"):
        reasons.append(f"rope_type={kind} is not supported")
        return theta, None
    known = ["rope_type", "type", "rope_theta"]
    if kind == "yarn":
        known += ["factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"]
    harmless = {"partial_rotary_factor": 1.0, "truncate": True}
    odd = {name: value for name, value in rope.items() if name not in known and value not in (None, harmless.get(name))}
    reasons += [f"rope {name}={value} is not supported" for name, value in odd.items()]
    if kind == "default":
        return theta, None
    original = rope.get("original_max_position_embeddings") or values.get("max_position_embeddings")
    if rope.get("factor") is None or original is None:
        reasons.append("rope_type=yarn without factor and original_max_position_embeddings")
        return theta, None
    betas = rope.get("beta_fast") or 32.0, rope.get("beta_slow") or 1.0
    return theta, YarnConfig(float(rope["factor"]), original, float(betas[0]), float(betas[1]), rope.get("attention_factor"))


def _moe_from_hf(values: Mapping[str, Any]) -> MoEConfig:
    return MoEConfig(
        n_experts=values["num_experts"], top_k=values["num_experts_per_tok"], d_expert=values["intermediate_size"],
        normalize_top_k=values.get("norm_topk_prob", False), load_balancing_loss_weight=0.0, router_z_loss_weight=0.0,
    )  # fmt: skip


def _full_attention_every(values: Mapping[str, Any], reasons: list[str]) -> int:
    types = values.get("layer_types") or []
    if types and len(types) != values["num_hidden_layers"]:
        reasons.append(f"layer_types has {len(types)} entries, num_hidden_layers={values['num_hidden_layers']}")
    full = [i + 1 for i, kind in enumerate(types) if kind == "full_attention"]
    every = full[0] if full else (values["num_hidden_layers"] + 1 if types else 4)
    if types and full != list(range(every, len(types) + 1, every)):
        reasons.append(f"layer_types has full attention at layers {full}, not at every k-th")
    return every
