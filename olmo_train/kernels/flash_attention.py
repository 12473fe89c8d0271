"""FlashAttention 2, 3 and 4 behind one custom operator, so that a compiled block has no graph break; on a CPU, its definition.

Of each library the two functions are called that take no part in autograd: `_flash_attn_fwd` and `_flash_attn_bwd` of
flash_attn.cute (as `torch.nn.attention` does, but all arguments by name and the number of results open: torch 2.11 to 2.13 expect
two, 4.0.0b36 returns five), the dispatcher's `flash_attn_3::fwd` and `bwd`, and the private pair of flash-attn 2.7 and newer.

Sources: Dao, arXiv 2307.08691 (the backward pass from the logsumexp: section 3.1.2); Shah et al., arXiv 2407.08608.
"""

import importlib
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

LIBRARIES = ("flash4", "flash3", "flash2")
"""flash-attn-4 (flash_attn.cute), FlashAttention 3 (flash_attn_interface), flash-attn 2."""


class _Rows(NamedTuple):
    """What belongs together: rows of equal length, or documents one after the other."""

    offsets: Tensor | None
    """int32 (n,), where documents begin, and the end; None: tensors are (B, T, ...) and each row is one document."""
    max_len: int
    window: int | None

    def lengths(self) -> dict[str, Any]:
        """Arguments that all three libraries know by these names."""
        if self.offsets is None:
            return {}
        both = {"cu_seqlens": self.offsets, "max_seqlen": self.max_len}
        return {f"{name}_{side}": value for name, value in both.items() for side in ("q", "k")}


# ---- the operator --------------------------------------------------------------------------------------------------------


@torch.library.custom_op("olmo_train::flash_attention", mutates_args=())
def flash_attention(
    q_BTHC: Tensor, k_BTGC: Tensor, v_BTGC: Tensor, offsets: Tensor | None, window: int | None, library: str
) -> tuple[Tensor, Tensor]:
    """Causal attention within documents and windows; the second result, for the backward pass, has no gradient.

    Args:
        offsets: int32 (n,), where documents begin in the flattened B * T tokens, then B * T, which may be repeated.
        window: keys a query sees, itself included. library: one of LIBRARIES; not looked at on a CPU.

    Returns out (B, T, H, C) in the dtype of q, and the logsumexp of the scores, float32: (B, H, T), with offsets (H, B * T).
    """
    rows = _Rows(offsets, q_BTHC.shape[1], window)
    q, k, v = (_flat(x, rows) for x in (q_BTHC, k_BTGC, v_BTGC))
    out, lse = _define(q, k, v, rows) if q.device.type == "cpu" else _forward(q, k, v, rows, library)
    return out.contiguous().view(q_BTHC.shape), lse.contiguous()


@flash_attention.register_fake
def _(
    q_BTHC: Tensor, k_BTGC: Tensor, v_BTGC: Tensor, offsets: Tensor | None, window: int | None, library: str
) -> tuple[Tensor, Tensor]:
    b, t, h, _ = q_BTHC.shape
    lse_shape = (b, h, t) if offsets is None else (h, b * t)
    return q_BTHC.new_empty(q_BTHC.shape), q_BTHC.new_empty(lse_shape, dtype=torch.float32)


@torch.library.custom_op("olmo_train::flash_attention_backward", mutates_args=())
def _flash_attention_backward(
    dout_BTHC: Tensor,
    q_BTHC: Tensor,
    k_BTGC: Tensor,
    v_BTGC: Tensor,
    out_BTHC: Tensor,
    lse: Tensor,
    offsets: Tensor | None,
    window: int | None,
    library: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv), contiguous."""
    rows = _Rows(offsets, q_BTHC.shape[1], window)
    # Ours to allocate: the libraries follow the strides of q, k, v, and the compiler has been promised contiguous gradients.
    grads = tuple(x.new_empty(x.shape) for x in (q_BTHC, k_BTGC, v_BTGC))
    inputs = [_flat(x, rows) for x in (dout_BTHC.contiguous(), q_BTHC, k_BTGC, v_BTGC, out_BTHC)]
    run = _define_backward if q_BTHC.device.type == "cpu" else _backward
    run((*inputs, lse), tuple(_flat(x, rows) for x in grads), rows, library)
    return grads[0], grads[1], grads[2]


@_flash_attention_backward.register_fake
def _(
    dout_BTHC: Tensor,
    q_BTHC: Tensor,
    k_BTGC: Tensor,
    v_BTGC: Tensor,
    out_BTHC: Tensor,
    lse: Tensor,
    offsets: Tensor | None,
    window: int | None,
    library: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return q_BTHC.new_empty(q_BTHC.shape), k_BTGC.new_empty(k_BTGC.shape), v_BTGC.new_empty(v_BTGC.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q_BTHC, k_BTGC, v_BTGC, offsets, ctx.window, ctx.library = inputs
    out_BTHC, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)  # no zeros for the gradient of lse
    ctx.save_for_backward(q_BTHC, k_BTGC, v_BTGC, out_BTHC, lse, offsets)


def _autograd(ctx, dout_BTHC, _dlse):  # type: ignore[no-untyped-def]
    if dout_BTHC is None:
        return (None,) * 6
    return (*_flash_attention_backward(dout_BTHC, *ctx.saved_tensors, ctx.window, ctx.library), None, None, None)


flash_attention.register_autograd(_autograd, setup_context=_setup_context)


def _flat(x: Tensor, rows: _Rows) -> Tensor:
    """(B, T, ...) as the libraries want it: B * T in front for documents, a last stride of 1."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x if rows.offsets is None else x.flatten(0, 1)


# ---- the libraries -------------------------------------------------------------------------------------------------------


def _forward(q: Tensor, k: Tensor, v: Tensor, rows: _Rows, library: str) -> tuple[Tensor, Tensor]:
    """(out, logsumexp) of (B, T, heads, C), or with offsets (B * T, heads, C)."""
    if library == "flash4":
        interface = importlib.import_module("flash_attn.cute.interface")
        # Within an operator nothing requires gradients, and then lse is only returned if asked for.
        out, lse, *_ = interface._flash_attn_fwd(q, k, v, return_lse=True, **_flash4_options(rows))
    elif library == "flash3":
        importlib.import_module("flash_attn_interface")  # registers the operators
        out, lse, *_ = torch.ops.flash_attn_3.fwd(q, k, v, num_splits=1, **_flash3_options(q, rows))
    else:
        interface = importlib.import_module("flash_attn.flash_attn_interface")
        forward = interface._flash_attn_forward if rows.offsets is None else interface._flash_attn_varlen_forward
        out, lse, *_ = forward(q, k, v, return_softmax=False, **_flash2_options(q, rows))
    return out, lse


def _backward(saved: tuple[Tensor, ...], grads: tuple[Tensor, ...], rows: _Rows, library: str) -> None:
    """Fill dq, dk, dv from (dout, q, k, v, out, lse)."""
    dout, q, k, v, out, lse = saved
    grad_names = dict(zip(("dq", "dk", "dv"), grads, strict=True))
    # Otherwise the parts of dq are added up in the order in which blocks finish.
    deterministic = torch.are_deterministic_algorithms_enabled()
    if library == "flash4":
        interface = importlib.import_module("flash_attn.cute.interface")
        options = _flash4_options(rows) | grad_names
        interface._flash_attn_bwd(q, k, v, out, dout, lse, deterministic=deterministic, **options)
    elif library == "flash3":
        importlib.import_module("flash_attn_interface")
        options = _flash3_options(q, rows) | grad_names
        torch.ops.flash_attn_3.bwd(dout, q, k, v, out, lse, deterministic=deterministic, **options)
    else:
        interface = importlib.import_module("flash_attn.flash_attn_interface")
        backward = interface._flash_attn_backward if rows.offsets is None else interface._flash_attn_varlen_backward
        options = _flash2_options(q, rows) | grad_names
        backward(dout, q, k, v, out, lse, deterministic=deterministic, rng_state=None, **options)


def _flash4_options(rows: _Rows) -> dict[str, Any]:
    """The default scale is C ** -0.5; a window counts the keys before the query."""
    left = None if rows.window is None else rows.window - 1
    return {"causal": True, "window_size_left": left, **rows.lengths()}


def _flash3_options(q: Tensor, rows: _Rows) -> dict[str, Any]:
    return {"softmax_scale": q.shape[-1] ** -0.5, "is_causal": True, **_signed_window(rows), **rows.lengths()}


def _flash2_options(q: Tensor, rows: _Rows) -> dict[str, Any]:
    plain = {"dropout_p": 0.0, "softcap": 0.0, "alibi_slopes": None}
    return {"softmax_scale": q.shape[-1] ** -0.5, "causal": True, **plain, **_signed_window(rows), **rows.lengths()}


def _signed_window(rows: _Rows) -> dict[str, int]:
    """Versions 2 and 3 write "no limit" as -1; nothing lies to the right of a causal query."""
    return {"window_size_left": -1 if rows.window is None else rows.window - 1, "window_size_right": 0}


# ---- the definition, one document after the other ------------------------------------------------------------------------


def _define(q: Tensor, k: Tensor, v: Tensor, rows: _Rows) -> tuple[Tensor, Tensor]:
    """What the libraries compute, and in which shape: pins the meaning of offsets, window and lse where there is no GPU."""
    shape = q.shape
    q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    out, lse_HN = torch.zeros_like(q), q.new_zeros(q.shape[1], q.shape[0], dtype=torch.float32)
    for part in _documents(rows, len(q)):
        scores = _scores(q[part], k[part], rows.window)
        lse_HN[:, part] = scores.logsumexp(-1).float()
        out[part] = (scores.softmax(-1) @ _per_head(v[part], q.shape[1])).transpose(0, 1).to(q.dtype)
    lse = lse_HN if rows.offsets is not None else lse_HN.view(-1, *shape[:2]).transpose(0, 1)
    return out.view(shape), lse


def _define_backward(saved: tuple[Tensor, ...], grads: tuple[Tensor, ...], rows: _Rows, _library: str) -> None:
    """With P = exp(scores - lse): dV = P^T dO, dS = P * (dO V^T - sum(dO * O)), dQ = dS K, dK = dS^T Q."""
    lse_HN = saved[5] if rows.offsets is not None else saved[5].transpose(0, 1).flatten(1)
    dout, q, k, v, out = (x.reshape(-1, *x.shape[-2:]) for x in saved[:5])
    dq, dk, dv = (x.view(-1, *x.shape[-2:]) for x in grads)
    h, g, scale = q.shape[1], k.shape[1], q.shape[-1] ** -0.5

    def per_group(x_HNC: Tensor) -> Tensor:
        return x_HNC.unflatten(0, (g, h // g)).sum(1).transpose(0, 1)

    for part in _documents(rows, len(q)):
        probs = (_scores(q[part], k[part], rows.window) - lse_HN[:, part, None]).exp()
        dout_HNC, out_HNC = _per_head(dout[part], h), _per_head(out[part], h)
        dprobs = dout_HNC @ _per_head(v[part], h).mT
        dscores = probs * (dprobs - (dout_HNC * out_HNC).sum(-1, keepdim=True)) * scale
        dq[part] = (dscores @ _per_head(k[part], h)).transpose(0, 1).to(dq.dtype)
        dk[part] = per_group(dscores.mT @ _per_head(q[part], h)).to(dk.dtype)
        dv[part] = per_group(probs.mT @ dout_HNC).to(dv.dtype)


def _documents(rows: _Rows, n_tokens: int) -> list[slice]:
    ends = list(range(0, n_tokens + 1, rows.max_len)) if rows.offsets is None else rows.offsets.tolist()
    return [slice(start, end) for start, end in pairwise(ends) if end > start]


def _scores(q_NHC: Tensor, k_NGC: Tensor, window: int | None) -> Tensor:
    """(H, N, N), -inf where a query may not look."""
    h, n = q_NHC.shape[1], len(q_NHC)
    scores = _per_head(q_NHC, h) @ _per_head(k_NGC, h).mT * q_NHC.shape[-1] ** -0.5
    distance = torch.arange(n)[:, None] - torch.arange(n)
    allowed = (distance >= 0) & (distance < (n if window is None else window))
    return scores.masked_fill(~allowed, float("-inf"))


def _per_head(x_NGC: Tensor, n_heads: int) -> Tensor:
    """(H, N, C) in float32 or better; query head h reads group h * G // H."""
    work = torch.promote_types(x_NGC.dtype, torch.float32)
    return x_NGC.transpose(0, 1).repeat_interleave(n_heads // x_NGC.shape[1], 0).to(work)
