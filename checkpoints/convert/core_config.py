"""OLMo-core's `config.json` as our model config: dense and dropless mixture-of-experts transformers, or the reasons why not.

What is not named here and is switched on is refused, so that an option of a later version is never overlooked.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from olmo_train.config.model import BalanceScope, ModelConfig, MoEConfig, Norm, NormOrder, QKNorm, YarnConfig
from olmo_train.errors import ConfigError

_ORDERS = {
    "default": NormOrder.PRE, "moe": NormOrder.PRE, "reordered_norm": NormOrder.POST, "moe_reordered_norm": NormOrder.POST,
}  # fmt: skip
_OF_NO_MATTER = {"_CLASS_", "type", "dtype", "backend", "use_flash", "full_precision", "use_recompute_qkv_prep"}
"""Numbers are the same, or differ by rounding only."""
YARN = "YaRNRoPEScalingConfig"


@dataclass(frozen=True)
class _Layer:
    """What one block computes. All layers must agree on everything but window and YaRN."""

    order: NormOrder | None
    norm: tuple[str, float]
    heads: tuple[int, int | None, int | None]
    qk_norm: QKNorm
    clip: float | None
    theta: float
    d_ff: int | None
    moe: tuple[int, int, int, bool] | None
    """Experts, top k, width, whether gates are divided by their sum."""
    window: int | None = None
    yarn: tuple[float, int, float, float] | None = None


def model_from_core(values: Mapping[str, Any]) -> ModelConfig:
    """Our model config for their `config.json` (the whole, or its section `model`).

    Raises:
        ConfigError: the model computes something ours does not; lists every reason.
    """
    model = values.get("model", values)
    reasons: list[str] = []
    try:
        layers = [_layer(block, i, model, reasons) for i, block in enumerate(_blocks(model, reasons))]
        _model_problems(model, layers, reasons)
        if not reasons:
            return _model(values, model, layers)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reasons.append(f"{type(error).__name__}: {error}: not a config of OLMo-core's Transformer")
    raise ConfigError([f"{reason}; our model cannot express it" for reason in dict.fromkeys(reasons)])


def _model(values: Mapping[str, Any], model: Mapping[str, Any], layers: list[_Layer]) -> ModelConfig:
    first, full = layers[0], [layer for layer in layers if layer.window is None]
    windows = [layer.window for layer in layers if layer.window is not None]
    yarn = full[0].yarn if full else None
    every = len(layers) + 1 if not full else next(i for i, layer in enumerate(layers, 1) if layer.window is None)
    assert first.order is not None  # _layer
    return ModelConfig(
        d_model=model["d_model"], n_layers=len(layers), n_heads=first.heads[0], n_kv_heads=first.heads[1], d_head=first.heads[2],
        d_ff=first.d_ff, vocab_size=model["vocab_size"], tie_embeddings=bool(model.get("tie_word_embeddings")),
        norm=Norm.RMS if first.norm[0] == "rms" else Norm.LAYER_NORM_PLAIN, norm_eps=first.norm[1], norm_order=first.order,
        qk_norm=first.qk_norm, clip_qkv=first.clip, rope_theta=first.theta, rope_yarn=None if yarn is None else YarnConfig(*yarn),
        sliding_window=windows[0] if windows else None, full_attention_every=every if windows else 4,
        init_std=model.get("init_std", 0.02), z_loss_weight=(values.get("train_module") or {}).get("z_loss_multiplier") or 0.0,
        moe=None if first.moe is None else _moe(first.moe, _blocks(model, [])[0]["feed_forward_moe"], len(layers)),
    )  # fmt: skip


def _moe(shape: tuple[int, int, int, bool], values: Mapping[str, Any], n_layers: int) -> MoEConfig:
    """Their losses are 1 at balance and per token, as ours, and summed over layers unless they are scaled by their number."""
    scale = 1 if values.get("scale_loss_by_num_layers", True) else n_layers
    is_local = values.get("lb_loss_granularity", "local_batch") == "local_batch"
    return MoEConfig(
        n_experts=shape[0], top_k=shape[1], d_expert=shape[2], normalize_top_k=shape[3],
        load_balancing_loss_weight=scale * (values.get("lb_loss_weight") or 0.0),
        router_z_loss_weight=scale * (values.get("z_loss_weight") or 0.0),
        load_balancing_scope=BalanceScope.LOCAL if is_local else BalanceScope.GLOBAL,
    )  # fmt: skip


# ---- what one block is -----------------------------------------------------------------------------------------------------


def _blocks(model: Mapping[str, Any], reasons: list[str]) -> list[Any]:
    """The config of every layer."""
    block, n_layers = model["block"], model["n_layers"]
    pattern = model.get("block_pattern")
    if pattern:
        return [block[pattern[i % len(pattern)]] for i in range(n_layers)]
    overrides = {int(i): override for i, override in (model.get("block_overrides") or {}).items()}
    return [overrides.get(i, block) for i in range(n_layers)]


def _layer(block: Mapping[str, Any], i: int, model: Mapping[str, Any], reasons: list[str]) -> _Layer:
    attention = block.get("sequence_mixer") or block["attention"]
    rope = attention.get("rope") or {}
    feed_forward, moe = block.get("feed_forward"), block.get("feed_forward_moe")
    known = {"name", "sequence_mixer", "attention", "layer_norm", "feed_forward", "feed_forward_moe"}
    _only(block, "block", known, reasons)
    _only(attention, "block.attention", {
        "name", "n_heads", "n_kv_heads", "head_dim", "rope", "clip_qkv", "qk_norm", "sliding_window", "use_head_qk_norm",
    }, reasons)  # fmt: skip
    _only(rope, "block.attention.rope", {"name", "theta", "scaling", "partial_rotary_factor"}, reasons)
    order = _ORDERS.get(block.get("name", "default"))
    for name, value, wanted in (
        ("block.name", block.get("name", "default"), tuple(_ORDERS)),
        ("block.attention.name", attention.get("name", "default"), ("default",)),
        ("block.attention.type", attention.get("type", "attention"), ("attention",)),
        ("block.attention.rope.name", rope.get("name", "default") if rope else None, ("default",)),
        ("block.attention.rope.partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), (1.0,)),
    ):
        if value not in wanted:
            reasons.append(f"{name}={value} is not {' or '.join(map(str, wanted))}")
    norm = _norm(block.get("layer_norm"), "block.layer_norm", reasons)
    qk_norm = QKNorm.NONE
    if attention.get("qk_norm") is not None:
        qk_norm = QKNorm.HEAD if attention.get("use_head_qk_norm") else QKNorm.FULL
        if _norm(attention["qk_norm"], "block.attention.qk_norm", reasons) != norm:
            reasons.append("block.attention.qk_norm is another norm than block.layer_norm")
        if attention.get("clip_qkv") is not None:
            reasons.append("block.attention.clip_qkv with qk_norm: theirs clamps before the norm, ours after it")
    window = _window(attention.get("sliding_window"), i, model["n_layers"])
    return _Layer(
        order, norm, (attention["n_heads"], attention.get("n_kv_heads"), attention.get("head_dim")), qk_norm,
        attention.get("clip_qkv"), float(rope.get("theta", 500_000)), _width(feed_forward, reasons), _experts(moe, reasons),
        window, _yarn(rope, attention.get("head_dim") or model["d_model"] // attention["n_heads"], reasons),
    )  # fmt: skip


def _norm(values: Mapping[str, Any] | None, path: str, reasons: list[str]) -> tuple[str, float]:
    """(rms or plain, eps)."""
    values = values or {"name": None}
    _only(values, path, {"name", "eps", "elementwise_affine"}, reasons)
    name, affine = values.get("name", "default"), values.get("elementwise_affine", True) is not False
    if name in ("rms", "fused_rms") and affine:
        return "rms", values.get("eps") or 1e-5
    if name == "default" and not affine:
        return "plain", values.get("eps") or 1e-5
    reasons.append(f"{path}.name={name} (elementwise_affine={affine}) is neither RMSNorm with a weight nor LayerNorm without")
    return "", 0.0


def _width(values: Mapping[str, Any] | None, reasons: list[str]) -> int | None:
    if values is None:
        return None
    _only(values, "block.feed_forward", {"name", "hidden_size", "activation"}, reasons)
    if values.get("name", "default") != "default" or values.get("activation", "silu") != "silu":
        reasons.append(f"block.feed_forward: {values.get('name')} with {values.get('activation')} is not a SwiGLU")
    return int(values["hidden_size"])


def _experts(values: Mapping[str, Any] | None, reasons: list[str]) -> tuple[int, int, int, bool] | None:
    if values is None:
        return None
    path, router = "block.feed_forward_moe", values.get("router") or {}
    losses = {"lb_loss_weight", "lb_loss_granularity", "z_loss_weight", "scale_loss_by_num_layers"}
    _only(values, path, {"name", "num_experts", "hidden_size", "router"} | losses, reasons)
    _only(router, f"{path}.router", {"name", "top_k", "normalize_expert_weights", "gating_function", "jitter_eps"}, reasons)
    if values.get("name", "default") != "dropless":
        reasons.append(f"{path}.name={values.get('name', 'default')}: it drops tokens beyond a capacity, ours is dropless")
    if router.get("gating_function", "softmax") != "softmax" or router.get("name", "default") != "default":
        reasons.append(f"{path}.router: {router.get('name')} with {router.get('gating_function')} is not a softmax over experts")
    if router.get("normalize_expert_weights") not in (None, 1.0):
        reasons.append(
            f"{path}.router.normalize_expert_weights={router['normalize_expert_weights']}: ours divides by the sum (1.0)"
        )
    normalised = router.get("normalize_expert_weights") is not None
    return int(values["num_experts"]), int(router.get("top_k", 1)), int(values["hidden_size"]), normalised


def _window(values: Mapping[str, Any] | None, i: int, n_layers: int) -> int | None:
    """Source: OLMo-core nn/attention/__init__.py, SlidingWindowAttentionConfig."""
    if values is None:
        return None
    first = values.get("force_full_attention_on_first_layer", True)
    if (first and i == 0) or (values.get("force_full_attention_on_last_layer", True) and i == n_layers - 1):
        return None
    window = values["pattern"][(i - bool(first)) % len(values["pattern"])]
    return None if window == -1 else int(window)


def _yarn(rope: Mapping[str, Any], d_head: int, reasons: list[str]) -> tuple[float, int, float, float] | None:
    scaling = rope.get("scaling")
    if scaling is None:
        return None
    if not str(scaling.get("_CLASS_")).endswith(YARN):
        reasons.append(f"block.attention.rope.scaling={scaling.get('_CLASS_')} is not YaRN")
        return None
    _only(scaling, "block.attention.rope.scaling", {"factor", "beta_fast", "beta_slow", "old_context_len"}, reasons)
    length, slow, theta = scaling.get("old_context_len", 8192), scaling.get("beta_slow", 1), rope.get("theta", 500_000)
    # The ramp's end: theirs is cut at half a head, that of transformers and ours at a head.
    if math.ceil(d_head / 2 * math.log(length / (slow * 2 * math.pi)) / math.log(theta)) > d_head // 2 - 1:
        reasons.append(f"block.attention.rope.scaling.old_context_len={length} with theta={theta}: the ramp ends elsewhere")
    return float(scaling.get("factor", 8.0)), int(length), float(scaling.get("beta_fast", 32)), float(slow)


# ---- what all of them are --------------------------------------------------------------------------------------------------


def _model_problems(model: Mapping[str, Any], layers: list[_Layer], reasons: list[str]) -> None:
    _only(model, "model", {
        "name", "d_model", "vocab_size", "n_layers", "block", "lm_head", "block_pattern", "block_overrides",
        "tie_word_embeddings", "init_method", "init_seed", "init_std", "embedding_init_std", "freeze_params",
    }, reasons)  # fmt: skip
    head = model.get("lm_head") or {}
    _only(head, "model.lm_head", {"name", "layer_norm", "loss_implementation"}, reasons)
    if model.get("name", "default") not in ("default", "moe") or head.get("name", "default") != "default":
        reasons.append(f"model.name={model.get('name')} with lm_head {head.get('name')} is not a plain transformer")
    if _norm(head.get("layer_norm"), "model.lm_head.layer_norm", reasons) != layers[0].norm:
        reasons.append("model.lm_head.layer_norm is another norm than that of the blocks")
    if len({replace(layer, window=None, yarn=None) for layer in layers}) > 1:
        reasons.append("model.block_overrides or block_pattern: layers differ in more than their window")
    windows = [layer.window for layer in layers]
    full = [i for i, window in enumerate(windows, 1) if window is None]
    every = full[0] if full else len(layers) + 1
    if len(set(windows) - {None}) > 1 or (any(windows) and full != list(range(every, len(layers) + 1, every))):
        reasons.append(
            f"block.attention.sliding_window: windows {windows}; ours has one width, and full attention at every k-th layer"
        )
    scaled = {layer.yarn for layer in layers if layer.window is None}
    if len(scaled) > 1 or any(layer.yarn for layer in layers if layer.window is not None):
        reasons.append("block.attention.rope.scaling: YaRN must be on all layers of full attention alike, and on no other")


def _only(values: Mapping[str, Any], path: str, known: set[str], reasons: list[str]) -> None:
    """Refuse what is not named and switched on."""
    for name, value in values.items():
        if name not in known | _OF_NO_MATTER and value not in (None, False):
            reasons.append(f"{path}.{name}={value}")
