"""Output projection and cross entropy that never hold all logits: one function, its backends, and the plain reference."""

import torch
from torch import Tensor
from torch.nn import functional as F

BACKENDS = ("chunked", "reference")
IGNORE = -100
CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}
"""Logits held at once: 16 MiB in fp32 on a CPU (its caches; docs/performance.md), 1 GiB on a GPU."""


def linear_cross_entropy(
    x_ND: Tensor, w_VD: Tensor, labels_N: Tensor, z_weight: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of softmax(x w^T) against labels, plus `z_weight` * logsumexp(logits)^2, summed over positions.

    Args:
        labels_N: int64; IGNORE (-100) leaves a position out. Logits are taken to float32 before the softmax.

    Returns:
        (cross entropy plus z-loss, differentiable; cross entropy; sum of logsumexp^2), nats summed over positions, float32.
        Source of the z-loss: PaLM, arXiv 2204.02311, section 5.
    """
    if backend == "reference":
        return _reference(x_ND, w_VD, labels_N, z_weight)
    loss, ce, z = _Chunked.apply(x_ND, w_VD, labels_N, z_weight)
    return loss, ce, z


def _reference(x_ND: Tensor, w_VD: Tensor, labels_N: Tensor, z_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    logits_NV = (x_ND @ w_VD.T).float()
    ce = F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE, reduction="sum")
    z = (logits_NV.logsumexp(-1).square() * (labels_N != IGNORE)).sum()
    return ce + z_weight * z, ce.detach(), z.detach()


class _Chunked(torch.autograd.Function):
    """Chunks of positions: logits, loss and gradients at once, so that no logits outlive their chunk or are computed twice.

    Saved for backward: dx (as large as x) and dw (as large as w), which the backward pass scales by the incoming gradient.
    """

    @staticmethod
    def forward(ctx, x_ND, w_VD, labels_N, z_weight):  # type: ignore[no-untyped-def]
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
            logits = (x @ w_VD.T).float()
            kept = labels != IGNORE
            target = labels.clamp_min(0)[:, None]
            at_target = logits.gather(1, target)[:, 0]
            largest = logits.amax(-1)
            exps = logits.sub_(largest[:, None]).exp_()  # in place of the logits
            total = exps.sum(-1)
            lse = largest + total.log()
            ce += ((lse - at_target) * kept).sum()
            z += (lse.square() * kept).sum()
            if dx_ND is None or dw_VD is None:
                continue
            # d/dlogits = softmax * (1 + 2 z_weight lse) - onehot
            dlogits = exps.mul_(((1 + 2 * z_weight * lse) * kept / total)[:, None])
            dlogits.scatter_add_(1, target, -kept[:, None].to(dlogits.dtype))
            dlogits = dlogits.to(x.dtype)
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
        return dx_ND * dloss.to(dx_ND.dtype), (dw_VD * dloss).to(ctx.w_dtype), None, None
