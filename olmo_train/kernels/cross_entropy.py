"""Output projection and cross entropy that never hold all logits: one function, its backends, and the plain reference."""

import torch
from torch import Tensor
from torch.nn import functional as F

from olmo_train.kernels.needs import Needs, why_no_package, why_no_quack, why_not_in_bfloat16
from olmo_train.kernels.quack_library import quack_module

BACKENDS = ("quack", "triton", "chunked", "reference")
IGNORE = -100
CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}
"""Logits held at once: 16 MiB in fp32 on a CPU (its caches; docs/performance.md), 512 MiB in bf16 on a GPU."""
QUACK_CHUNK = 4096
"""Tokens; quack's own default."""


def why_not(backend: str, needs: Needs) -> str | None:
    """What stands against a backend here; None: nothing."""
    here = f"kernels.cross_entropy={backend}"
    if backend == "triton":
        return why_no_package(here, needs, "triton", "triton")
    if backend == "quack":
        reason = why_no_quack(here, needs, "triton")
        if reason is None and needs.has_z_loss:
            reason = f"{here} has no z-loss, and model.z_loss_weight is not 0; use triton"
        reason = reason or why_not_in_bfloat16(here, needs, "chunked")
        if reason is not None:
            return reason
        if needs.d_model % 8 or needs.vocab_rows % 8:
            return (
                f"{here} needs multiples of 8: model.d_model={needs.d_model}, rows of the output projection={needs.vocab_rows}; "
                "pad model.padded_vocab_size, or use triton"
            )
    return None


def auto_order(needs: Needs) -> tuple[str, ...]:
    """Backends to try, best first."""
    return ("quack", "triton", "chunked") if needs.device.type == "cuda" else ("chunked",)


def linear_cross_entropy(
    x_ND: Tensor, w_VD: Tensor, labels_N: Tensor, z_weight: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of softmax(x w^T) against labels, plus `z_weight` * logsumexp(logits)^2, summed over positions.

    Args:
        labels_N: int64; IGNORE (-100) leaves a position out. Logits are taken to float32 before the softmax.
        backend: "quack" (quack-kernels' fused one; no z-loss, and its sum is returned as zero), "triton" (chunks; softmax and
            gradient in one kernel), "chunked" (chunks, plain torch), "reference".

    Returns:
        (cross entropy plus z-loss, differentiable; cross entropy; sum of logsumexp^2), nats summed over positions, float32.
        Source of the z-loss: PaLM, arXiv 2204.02311, section 5.
    """
    match backend:
        case "reference":
            return _reference(x_ND, w_VD, labels_N, z_weight)
        case "quack":
            return _quack(x_ND, w_VD, labels_N)
    loss, ce, z = _Chunked.apply(x_ND, w_VD, labels_N, z_weight, backend == "triton")
    return loss, ce, z


def _reference(x_ND: Tensor, w_VD: Tensor, labels_N: Tensor, z_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    logits_NV = (x_ND @ w_VD.T).float()
    ce = F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE, reduction="sum")
    z = (logits_NV.logsumexp(-1).square() * (labels_N != IGNORE)).sum()
    return ce + z_weight * z, ce.detach(), z.detach()


def _quack(x_ND: Tensor, w_VD: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    chunked_linear_cross_entropy = quack_module("linear_cross_entropy").chunked_linear_cross_entropy
    n = x_ND.shape[0]
    if n % 8:  # its loads take 8 rows at a time; rows without a label cost nothing
        x_ND, labels_N = F.pad(x_ND, (0, 0, 0, -n % 8)), F.pad(labels_N, (0, -n % 8), value=IGNORE)
    loss = chunked_linear_cross_entropy(x_ND, w_VD, labels_N, QUACK_CHUNK, IGNORE, "sum")
    return loss, loss.detach(), torch.zeros_like(loss)


class _Chunked(torch.autograd.Function):
    """Chunks of positions: logits, loss and gradients at once, so that no logits outlive their chunk or are computed twice.

    Saved for backward: dx (as large as x) and dw (as large as w), which the backward pass scales by the incoming gradient.
    """

    @staticmethod
    def forward(ctx, x_ND, w_VD, labels_N, z_weight, in_triton):  # type: ignore[no-untyped-def]
        n, vocab = x_ND.shape[0], w_VD.shape[0]
        chunk = max(1, min(n, CHUNK_ELEMENTS.get(x_ND.device.type, 2**28) // vocab))
        needs_grad = any(ctx.needs_input_grad[:2])
        dx_ND = torch.empty_like(x_ND) if needs_grad else None
        dw_VD = torch.zeros_like(w_VD, dtype=torch.float32) if needs_grad else None
        ce = torch.zeros((), dtype=torch.float32, device=x_ND.device)
        z = torch.zeros_like(ce)
        for start in range(0, n, chunk):
            rows = slice(start, min(start + chunk, n))
            x, labels = x_ND[rows], labels_N[rows]
            part = _in_triton if in_triton else _in_torch
            ce_rows, z_rows, dlogits = part(x @ w_VD.T, labels, z_weight, needs_grad)
            ce += ce_rows.sum()
            z += z_rows.sum()
            if dx_ND is None or dw_VD is None:
                continue
            torch.mm(dlogits, w_VD, out=dx_ND[rows])
            if dw_VD.dtype == x.dtype:
                dw_VD.addmm_(dlogits.T, x)
            else:
                dw_VD += dlogits.T @ x
        ctx.save_for_backward(dx_ND, dw_VD)
        ctx.w_dtype = w_VD.dtype
        ctx.mark_non_differentiable(ce, z)
        return ce + z_weight * z, ce, z

    @staticmethod
    def backward(ctx, dloss, *_):  # type: ignore[no-untyped-def]
        dx_ND, dw_VD = ctx.saved_tensors
        # In float32: a factor like 1/32767 rounded to bfloat16 would scale the whole body's gradient, and not the head's, by up
        # to 1/256. dw in place, since a second copy is as large as the output projection: backward can run once.
        return (dx_ND.float() * dloss).to(dx_ND.dtype), dw_VD.mul_(dloss).to(ctx.w_dtype), None, None, None


def _in_triton(logits: Tensor, labels: Tensor, z_weight: float, needs_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(cross entropy (N,), logsumexp^2 (N,), gradient, in place of the logits)."""
    from olmo_train.kernels.triton_cross_entropy import loss_and_gradient

    return *loss_and_gradient(logits, labels, z_weight, IGNORE, needs_grad), logits


def _in_torch(logits: Tensor, labels: Tensor, z_weight: float, needs_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch, float32."""
    dtype = logits.dtype
    logits = logits.float()
    kept = labels != IGNORE
    target = labels.clamp_min(0)[:, None]
    at_target = logits.gather(1, target)[:, 0]
    largest = logits.amax(-1)
    exps = logits.sub_(largest[:, None]).exp_()  # in place of the logits
    total = exps.sum(-1)
    lse = largest + total.log()
    ce_rows, z_rows = (lse - at_target) * kept, lse.square() * kept
    if not needs_grad:
        return ce_rows, z_rows, exps
    # d/dlogits = softmax * (1 + 2 z_weight lse) - onehot
    dlogits = exps.mul_(((1 + 2 * z_weight * lse) * kept / total)[:, None])
    dlogits.scatter_add_(1, target, -kept[:, None].to(dlogits.dtype))
    return ce_rows, z_rows, dlogits.to(dtype)
