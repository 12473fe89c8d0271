"""Bytes of activations that a block keeps for its backward pass and that come and go in it, from the config alone; no torch.

Follows the code of the model tensor by tensor; `benchmarks/memory.py` and the tests compare it with what is really held.
"""

from dataclasses import dataclass

from olmo_train.config.dtypes import FloatType
from olmo_train.config.model import ModelConfig, MoEConfig, Norm, NormOrder, QKNorm
from olmo_train.config.train import Recompute, TrainConfig
from olmo_train.model.shapes import d_head, moe_of_layer, n_kv_heads, window_of_layer

BYTES = {FloatType.FLOAT32: 4, FloatType.BFLOAT16: 2}


@dataclass(frozen=True)
class Activations:
    """What decides them, beside the model."""

    n_tokens: int
    """Of a micro-batch."""
    seq_len: int
    itemsize: int
    """Bytes of a compute element."""
    is_compiled: bool
    recompute: Recompute
    on_gpu: bool
    """There RMSNorm is one kernel; on a CPU torch composes it and keeps the normalised float32 values too."""
    mask_rows: int
    """Sequences that have a (T, T) mask of their own in layers that need one; 0: kernels mask without it."""
    window_needs_mask: bool
    experts: str
    """Backend of the expert MLP."""


def activations_of(run: TrainConfig, on_gpu: bool) -> Activations:
    """`on_gpu`: what `auto` kernels are there; documents and windows then need no mask."""
    data, parallel = run.data, run.parallel
    dense = run.kernels.attention in ("sdpa", "cudnn", "reference") or (run.kernels.attention == "auto" and not on_gpu)
    rows = data.micro_batch_size // data.seq_len if data.document_masking else int(run.model.sliding_window is not None)
    experts = run.kernels.moe_mlp
    if experts == "auto":
        experts = "quack" if on_gpu else "loop"
    return Activations(
        n_tokens=data.micro_batch_size, seq_len=data.seq_len, itemsize=BYTES[parallel.compute_dtype],
        is_compiled=parallel.compile, recompute=parallel.recompute, on_gpu=on_gpu, mask_rows=rows if dense else 0,
        window_needs_mask=not data.document_masking, experts=experts,
    )  # fmt: skip


def kept_by_block(model: ModelConfig, layer: int, how: Activations) -> dict[str, int]:
    """Bytes that one block keeps between its forward and its backward pass, by what they are."""
    if how.recompute == Recompute.FULL:
        return {"inputs of blocks": how.n_tokens * how.itemsize * model.d_model}
    if how.recompute == Recompute.SELECTIVE:
        parts = _products(model, layer, how)
    else:
        parts = _compiled(model, layer, how) if how.is_compiled else _eager(model, layer, how)
    kept = {name: how.n_tokens * per_token for name, per_token in parts.items()}
    if how.mask_rows and not (how.window_needs_mask and window_of_layer(model, layer) is None):
        kept["masks"] = how.mask_rows * how.seq_len**2 * how.itemsize  # added to the scores, so in their type; one per layer
    return {name: size for name, size in kept.items() if size}


def recomputed_by_block(model: ModelConfig, layer: int, how: Activations) -> int:
    """Bytes that recompute brings back while the backward pass is in this block."""
    if how.recompute == Recompute.NONE:
        return 0
    whole = Activations(**{**vars(how), "recompute": Recompute.NONE})
    return sum(kept_by_block(model, layer, whole).values()) - sum(kept_by_block(model, layer, how).values())


# ---- per token: eager, compiled, and with the products alone -----------------------------------------------------------------


def _eager(model: ModelConfig, layer: int, how: Activations) -> dict[str, int]:
    """Every operator keeps its own inputs or outputs."""
    c, d = how.itemsize, model.d_model
    q, kv = _widths(model)
    copies = 0 if how.on_gpu or model.norm != Norm.RMS else 4
    qk = q + kv if model.qk_norm != QKNorm.NONE else 0
    # A norm's input in float32: a copy, and in fp32 the tensor itself; q and k are then views of the projection's output.
    norms = 2 * (4 + copies) * d + ((4 if c < 4 else 0) + copies) * qk + 4 * 4
    clipped = 0 if model.clip_qkv is None else c * ((qk and q + kv) + kv)
    return {
        "residual stream, inputs of sublayers": 2 * c * d,
        "norms, float32": norms,
        "attention": c * (q + 2 * kv) + c * (q + kv) + c * q + 4 * model.n_heads + clipped,
        **_feed_forward(model, layer, c, router=8, swiglu=4),
    }


def _compiled(model: ModelConfig, layer: int, how: Activations) -> dict[str, int]:
    """What the default partitioner of torch.compile keeps: outputs and inputs of products and attention; the rest runs again.

    Pre-norm: the stream twice and both normed inputs. Post-norm: the stream twice and both outputs of sublayers.
    """
    c, d = how.itemsize, model.d_model
    q, kv = _widths(model)
    clipped = 0 if model.clip_qkv is None else c * kv
    return {
        "residual stream, inputs of sublayers": 4 * c * d + 4 * 4,
        "attention": c * (q + 2 * kv) + c * (q + kv) + c * q + 4 * model.n_heads + clipped,
        **_feed_forward(model, layer, c, router=c, swiglu=3),
    }


def _products(model: ModelConfig, layer: int, how: Activations) -> dict[str, int]:
    """The block's input and the outputs of what parallel/recompute.py keeps; compiled, not those that no gradient needs."""
    c, d = how.itemsize, model.d_model
    q, kv = _widths(model)
    moe = moe_of_layer(model, layer)
    last = c * d if not how.is_compiled or model.norm_order == NormOrder.POST else 0
    shared = c * d if moe is not None and moe.n_shared_experts and not how.is_compiled else 0
    return {
        "inputs of blocks": c * d,
        "attention": c * (q + 2 * kv) + c * q + 4 * model.n_heads + c * d,
        **_feed_forward(model, layer, c, router=c, swiglu=2),
        "outputs of feed-forwards": last + shared,
    }


def _feed_forward(model: ModelConfig, layer: int, c: int, router: int, swiglu: int) -> dict[str, int]:
    """`router`: bytes per logit. `swiglu`: hidden widths kept by a dense SwiGLU: 2 pre-activations, silu, product."""
    moe = moe_of_layer(model, layer)
    if moe is None:
        return {"feed-forward": swiglu * c * (model.d_ff or 0)}
    return {
        "router and routing": router * moe.n_experts + 20 * moe.top_k + 8,  # gates, ids; pair and slot in int32
        "expert pre-activations": c * 2 * moe.d_expert * moe.top_k,
        "feed-forward": swiglu * c * moe.n_shared_experts * moe.d_expert,
    }


def _widths(model: ModelConfig) -> tuple[int, int]:
    """(of the queries, of the keys)."""
    return model.n_heads * d_head(model), n_kv_heads(model) * d_head(model)


# ---- what comes and goes -----------------------------------------------------------------------------------------------------


def forward_transients(model: ModelConfig, layer: int, how: Activations) -> int:
    """Bytes beside what is kept, at the fullest moment of a block's forward pass."""
    c, n = how.itemsize, how.n_tokens
    moe = moe_of_layer(model, layer)
    if moe is None:
        return n * c * (model.d_model + (model.d_ff or 0))
    rows = model.d_model + (moe.d_expert if how.experts != "loop" else 0)  # outputs of slots; activations
    return n * moe.top_k * c * rows + n * c * model.d_model


def backward_transients(model: ModelConfig, layer: int, how: Activations) -> int:
    """Bytes beside what is kept and the gradients of weights, at the fullest moment of a block's backward pass."""
    c, n, d = how.itemsize, how.n_tokens, model.d_model
    moe = moe_of_layer(model, layer)
    stream, norm = 2 * c * d, 0 if how.is_compiled else 8 * d  # gradients of the stream and of the sublayer; a norm's float32
    if moe is None:
        return n * (stream + max(norm, 2 * c * (model.d_ff or 0)))  # products of SwiGLU's backward, less what they free
    return n * (stream + norm + moe.top_k * c * _expert_rows(d, moe, how.experts))


def _expert_rows(d: int, moe: MoEConfig, backend: str) -> int:
    """Elements per slot that kernels/experts.py holds at once in its backward pass, beside h."""
    f = moe.d_expert
    match backend:
        case "quack":  # dh and the gated activation, then dh and dx
            return max(3 * f, 2 * f + d)
        case "loop":  # dx; the rest is one expert's
            return d
    return max(d + 4 * f, 2 * d + 2 * f)  # dy, da, dh, gated; then dh, dx, x
