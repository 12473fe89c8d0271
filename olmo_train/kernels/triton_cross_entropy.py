"""Softmax, loss and gradient of a chunk of logits in Triton, in place: each logit is read twice and written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 4096


@torch.library.custom_op("olmo_train::loss_and_gradient", mutates_args=("logits_NV",))
def loss_and_gradient(
    logits_NV: Tensor, labels_N: Tensor, z_weight: float, ignore: int, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """(cross entropy (N,), logsumexp^2 (N,)), float32, zero where the label is `ignore`.

    With `needs_grad` the logits are overwritten by the gradient of cross entropy + z_weight * logsumexp^2, summed over rows.
    """
    n, vocab = logits_NV.shape
    ce_N = torch.empty(n, dtype=torch.float32, device=logits_NV.device)
    z_N = torch.empty_like(ce_N)
    block = min(MAX_BLOCK, triton.next_power_of_2(vocab))
    _rows[(n,)](logits_NV, labels_N, ce_N, z_N, vocab, logits_NV.stride(0), z_weight, ignore, needs_grad, block, num_warps=8)
    return ce_N, z_N


@loss_and_gradient.register_fake
def _(logits_NV: Tensor, labels_N: Tensor, z_weight: float, ignore: int, needs_grad: bool) -> tuple[Tensor, Tensor]:
    rows = logits_NV.new_empty(logits_NV.shape[0], dtype=torch.float32)
    return rows, torch.empty_like(rows)


@triton.jit
def _rows(
    logits, labels, ce, z, V: tl.constexpr, stride, z_weight, IGNORE: tl.constexpr, NEEDS_GRAD: tl.constexpr, BLOCK: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64)
    row = logits + n * stride
    label = tl.load(labels + n)
    kept = label != IGNORE
    # One pass for the maximum and the sum of exponentials, each lane for itself; lanes meet at the end.
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        value = tl.load(row + columns, mask=columns < V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(largest, value)
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # a lane that has seen no column yet: exp(-inf - 0) = 0
        total = total * tl.exp(largest - safe) + tl.exp(value - safe)
        largest = higher
    top = tl.max(largest, 0)
    lse = top + tl.log(tl.sum(total * tl.exp(largest - top), 0))
    at_label = tl.load(row + tl.where(kept, label, 0)).to(tl.float32)
    tl.store(ce + n, tl.where(kept, lse - at_label, 0.0))
    tl.store(z + n, tl.where(kept, lse * lse, 0.0))
    if NEEDS_GRAD:
        factor = tl.where(kept, 1 + 2 * z_weight * lse, 0.0)
        one = tl.where(kept, 1.0, 0.0)
        for start in range(0, V, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            value = tl.load(row + columns, mask=columns < V, other=float("-inf")).to(tl.float32)
            gradient = tl.exp(value - lse) * factor - tl.where(columns == label, one, 0.0)
            tl.store(row + columns, gradient.to(logits.dtype.element_ty), mask=columns < V)
