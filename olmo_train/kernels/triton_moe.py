"""What surrounds the expert GEMMs, in Triton: the sum over each token's experts without atomics, SwiGLU, and their gradients."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 2048


def gather_sum(y_SD: Tensor, slots_NK: Tensor, weights_NK: Tensor | None) -> Tensor:
    """sum_k weights[n, k] * y[slots[n, k]] in float32, returned in the dtype of y; None: weights of 1."""
    (n, k), d = slots_NK.shape, y_SD.shape[1]
    out_ND = torch.empty(n, d, dtype=y_SD.dtype, device=y_SD.device)
    block = min(MAX_BLOCK, triton.next_power_of_2(d))
    weights = slots_NK if weights_NK is None else weights_NK.contiguous()
    grid = (n, triton.cdiv(d, block))
    _gather_sum[grid](y_SD, slots_NK.contiguous(), weights, out_ND, d, k, weights_NK is not None, block, num_warps=4)
    return out_ND


def swiglu(h_SF: Tensor) -> Tensor:
    """silu(gate) * up of rows [gate | up]: (S, 2F) -> (S, F), computed in float32."""
    n, width = h_SF.shape[0], h_SF.shape[1] // 2
    out_SF = torch.empty(n, width, dtype=h_SF.dtype, device=h_SF.device)
    block = min(MAX_BLOCK, triton.next_power_of_2(width))
    _swiglu[(n, triton.cdiv(width, block))](h_SF, out_SF, width, block, num_warps=4)
    return out_SF


def swiglu_backward(da_SF: Tensor, h_SF: Tensor, gates_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(dh (S, 2F), gate * activation (S, F), <da, activation> (S,) float32) in one pass; da is not yet times the gate."""
    n, width = da_SF.shape
    dh_SF, gated_SF = torch.empty_like(h_SF), torch.empty_like(da_SF)
    dgates_S = torch.empty(n, dtype=torch.float32, device=h_SF.device)
    block = min(MAX_BLOCK, triton.next_power_of_2(width))
    _swiglu_backward[(n,)](da_SF, h_SF, gates_S, dh_SF, gated_SF, dgates_S, width, block, num_warps=4)
    return dh_SF, gated_SF, dgates_S


@triton.jit
def _gather_sum(y, slots, weights, out, D, K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < D
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(K):
        slot = tl.load(slots + n * K + k).to(tl.int64)
        value = tl.load(y + slot * D + columns, mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            value *= tl.load(weights + n * K + k).to(tl.float32)
        total += value
    tl.store(out + n * D + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu(h, out, F, BLOCK: tl.constexpr):
    s = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < F
    gate = tl.load(h + s * 2 * F + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(h + s * 2 * F + F + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + s * F + columns, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(da, h, gates, dh, gated, dgates, F: tl.constexpr, BLOCK: tl.constexpr):
    s = tl.program_id(0).to(tl.int64)
    weight = tl.load(gates + s).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, F, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < F
        d = tl.load(da + s * F + columns, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(h + s * 2 * F + columns, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(h + s * 2 * F + F + columns, mask=inside, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        activation = silu * up
        total += d * activation
        d *= weight
        dgate = d * up * (sigmoid + silu * (1 - sigmoid))
        tl.store(dh + s * 2 * F + columns, dgate.to(dh.dtype.element_ty), mask=inside)
        tl.store(dh + s * 2 * F + F + columns, (d * silu).to(dh.dtype.element_ty), mask=inside)
        tl.store(gated + s * F + columns, (weight * activation).to(gated.dtype.element_ty), mask=inside)
    tl.store(dgates + s, tl.sum(total, 0))
