"""Shapes and kinds of every parameter, from the config alone; no torch. The transformer builds exactly these."""

import math
from dataclasses import dataclass

from olmo_train.config.model import ModelConfig, MoEConfig, Norm, QKNorm
from olmo_train.config.optim import ParamKind


@dataclass(frozen=True)
class ParamShape:
    """One parameter."""

    name: str
    shape: tuple[int, ...]
    kind: ParamKind
    layer: int | None = None
    is_output: bool = False
    """Projects back into the residual stream."""

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


def d_head(model: ModelConfig) -> int:
    """Width of one attention head."""
    return model.d_head if model.d_head is not None else model.d_model // model.n_heads


def n_kv_heads(model: ModelConfig) -> int:
    """Key and value heads."""
    return model.n_kv_heads if model.n_kv_heads is not None else model.n_heads


def vocab_rows(model: ModelConfig) -> int:
    """Rows of the embedding."""
    return model.padded_vocab_size if model.padded_vocab_size is not None else model.vocab_size


def moe_of_layer(model: ModelConfig, layer: int) -> MoEConfig | None:
    """The MoE config of a layer, or None if the layer is dense."""
    return model.moe if model.moe is not None and layer >= model.moe.n_dense_layers else None


def window_of_layer(model: ModelConfig, layer: int) -> int | None:
    """Tokens a position of this layer attends to, itself included; None: all before it."""
    if model.sliding_window is None or (layer + 1) % model.full_attention_every == 0:
        return None
    return model.sliding_window


def stacked_rows(name: str, shape: tuple[int, ...], model: ModelConfig) -> tuple[int, ...]:
    """Rows (of the last but one dim) of each matrix that a parameter stacks: q, k, v; gate and up; else all; () of a vector."""
    if len(shape) < 2:
        return ()
    rows = shape[-2]
    if name.endswith(".w_qkv.weight"):
        kv_heads = n_kv_heads(model)
        head = rows // (model.n_heads + 2 * kv_heads)
        return model.n_heads * head, kv_heads * head, kv_heads * head
    if name.endswith((".w_in.weight", ".w_in")):
        return rows // 2, rows // 2
    return (rows,)


def param_shapes(model: ModelConfig) -> list[ParamShape]:
    """Every parameter, in the order of the model."""
    d = model.d_model
    out = [ParamShape("embedding.weight", (vocab_rows(model), d), ParamKind.EMBEDDING)]
    for layer in range(model.n_layers):
        out += _attention(model, layer)
        moe = moe_of_layer(model, layer)
        prefix = f"blocks.{layer}."
        if moe is None:
            out += _swiglu(f"{prefix}feed_forward.", d, model.d_ff or 0, layer)
        else:
            out.append(ParamShape(f"{prefix}moe.router.weight", (moe.n_experts, d), ParamKind.ROUTER, layer))
            out.append(ParamShape(f"{prefix}moe.w_in", (moe.n_experts, 2 * moe.d_expert, d), ParamKind.MATRIX, layer))
            out.append(ParamShape(f"{prefix}moe.w_out", (moe.n_experts, d, moe.d_expert), ParamKind.MATRIX, layer, True))
            if moe.n_shared_experts:
                out += _swiglu(f"{prefix}moe.shared.", d, moe.n_shared_experts * moe.d_expert, layer)
        out += _norm(model, f"{prefix}feed_forward_norm.weight", d, layer)
    out += _norm(model, "norm.weight", d, None)
    if not model.tie_embeddings:
        out.append(ParamShape("lm_head.weight", (vocab_rows(model), d), ParamKind.LM_HEAD))
    return out


def _attention(model: ModelConfig, layer: int) -> list[ParamShape]:
    c, h, g = d_head(model), model.n_heads, n_kv_heads(model)
    prefix = f"blocks.{layer}.attention."
    out = [
        ParamShape(f"{prefix}w_qkv.weight", ((h + 2 * g) * c, model.d_model), ParamKind.MATRIX, layer),
        ParamShape(f"{prefix}w_out.weight", (model.d_model, h * c), ParamKind.MATRIX, layer, True),
    ]
    match model.qk_norm:
        case QKNorm.FULL:
            out += _norm(model, f"{prefix}q_norm.weight", h * c, layer) + _norm(model, f"{prefix}k_norm.weight", g * c, layer)
        case QKNorm.HEAD:
            out += _norm(model, f"{prefix}q_norm.weight", c, layer) + _norm(model, f"{prefix}k_norm.weight", c, layer)
        case QKNorm.NONE:
            pass
    return out + _norm(model, f"blocks.{layer}.attention_norm.weight", model.d_model, layer)


def _swiglu(prefix: str, d: int, width: int, layer: int) -> list[ParamShape]:
    return [
        ParamShape(f"{prefix}w_in.weight", (2 * width, d), ParamKind.MATRIX, layer),
        ParamShape(f"{prefix}w_out.weight", (d, width), ParamKind.MATRIX, layer, True),
    ]


def _norm(model: ModelConfig, name: str, width: int, layer: int | None) -> list[ParamShape]:
    return [ParamShape(name, (width,), ParamKind.NORM, layer)] if model.norm == Norm.RMS else []
