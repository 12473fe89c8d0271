"""What surrounds the expert GEMMs: plain torch here, Triton on a GPU (kernels/triton_moe.py). Slots are grouped by expert."""

import torch
from torch import Tensor
from torch.nn import functional as F


def uses_triton(tensor: Tensor) -> bool:
    """Whether the pieces of this tensor's device are the Triton ones."""
    return tensor.is_cuda


def gather_sum(y_SD: Tensor, slots_NK: Tensor, weights_NK: Tensor | None) -> Tensor:
    """sum_k weights[n, k] * y[slots[n, k]], in a fixed order: no atomics, so the same bits every time.

    On the CPU as an embedding bag, which never writes out the N * K rows (docs/performance.md).
    """
    if uses_triton(y_SD):
        from olmo_train.kernels import triton_moe

        return triton_moe.gather_sum(y_SD, slots_NK, weights_NK)
    if y_SD.dtype == torch.float32 and y_SD.device.type == "cpu":
        weights_NK = None if weights_NK is None else weights_NK.detach().float()
        return F.embedding_bag(slots_NK, y_SD.detach(), mode="sum", per_sample_weights=weights_NK)
    n, k = slots_NK.shape
    work = torch.promote_types(y_SD.dtype, torch.float32)
    y_NKD = y_SD.index_select(0, slots_NK.reshape(-1)).view(n, k, -1).to(work)
    if weights_NK is not None:
        y_NKD = y_NKD * weights_NK[..., None].to(work)
    return y_NKD.sum(1).to(y_SD.dtype)


def swiglu(h_SF: Tensor) -> Tensor:
    """silu(gate) * up of rows [gate | up]: (S, 2F) -> (S, F)."""
    if uses_triton(h_SF):
        from olmo_train.kernels import triton_moe

        return triton_moe.swiglu(h_SF)
    gate, up = h_SF.chunk(2, -1)
    return F.silu(gate).mul_(up)


def swiglu_backward(da_SF: Tensor, h_SF: Tensor, gates_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(dh (S, 2F), gate * activation (S, F), gradient of the gates (S,) in float32).

    `da_SF`: gradient of the expert's output before the gate, times w_out. The gradient of a gate is <da, activation>, which is
    <dy, y> without ever needing y. Source: SonicMoE, arXiv 2512.14080, section 3.
    """
    if uses_triton(h_SF):
        from olmo_train.kernels import triton_moe

        return triton_moe.swiglu_backward(da_SF, h_SF, gates_S)
    gate, up = h_SF.chunk(2, -1)
    gates = gates_S[:, None].to(h_SF.dtype)
    silu = F.silu(gate)
    activation = silu * up
    dgates_S = (da_SF * activation).sum(-1, dtype=torch.float32)
    da_SF = da_SF * gates
    dh_SF = torch.empty_like(h_SF)
    dgate, dup = dh_SF.chunk(2, -1)
    torch.mul(da_SF, silu, out=dup)
    dgate.copy_(torch.ops.aten.silu_backward(da_SF.mul_(up), gate))
    return dh_SF, activation.mul_(gates), dgates_S
