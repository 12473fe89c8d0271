"""The expert MLP of a dropless mixture-of-experts layer: one function, its backends, and the plain reference.

    y_n = sum_k gates_nk * w_out[e] (silu(g) * u),   [g; u] = w_in[e] x_n,   e = expert_ids_nk

All backends but the reference are one custom operator with a hand-written backward pass that keeps only x, the pre-activations
h and the routing, not the gathered inputs, activations or outputs: 2 ND + 4 NKF bytes in bf16 instead of ~3 times that.
Source of the memory plan: SonicMoE, arXiv 2512.14080, section 3. The gradient of a gate is <dA', A> over the hidden width.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from olmo_train.kernels.cpu_threads import run_each

BACKENDS = ("loop", "grouped_mm", "reference")


def moe_mlp(x_ND: Tensor, w_in_EFD: Tensor, w_out_EDF: Tensor, gates_NK: Tensor, expert_ids_NK: Tensor, backend: str) -> Tensor:
    """Send every token through its experts and add the results, weighted by the gates.

    Args:
        w_in_EFD: (E, 2 * d_expert, D), gate rows before up rows. w_out_EDF: (E, D, d_expert).
        gates_NK: weight of each chosen expert, any float dtype. expert_ids_NK: int64.
        backend: "loop" (a matmul per expert; CPU, any size), "grouped_mm" (torch's grouped GEMM; widths must be multiples of
            16 bytes), "reference" (differentiable definition).

    Returns (N, D) in the dtype of x.
    """
    if backend == "reference":
        return _reference(x_ND, w_in_EFD, w_out_EDF, gates_NK, expert_ids_NK)
    return _moe_mlp(x_ND, w_in_EFD, w_out_EDF, gates_NK, expert_ids_NK, backend)[0]


def _reference(x_ND: Tensor, w_in_EFD: Tensor, w_out_EDF: Tensor, gates_NK: Tensor, expert_ids_NK: Tensor) -> Tensor:
    y_ND = torch.zeros_like(x_ND)
    for e in range(w_in_EFD.shape[0]):
        token, k = torch.where(expert_ids_NK == e)
        gate, up = (x_ND[token] @ w_in_EFD[e].T).chunk(2, -1)
        out = (F.silu(gate) * up) @ w_out_EDF[e].T
        y_ND = y_ND.index_add(0, token, out * gates_NK[token, k, None].to(out.dtype))
    return y_ND


# ---- routing: token-expert pairs sorted by expert, without host synchronisation ----------------------------------------


def _sort_by_expert(expert_ids_NK: Tensor, n_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """(offsets (E + 1,) int32, pair of each slot (S,), slot of each pair (S,)); S = N * K, slots are grouped by expert.

    The sort is stable: slots of an expert stay in token order, so results do not depend on the sort's implementation.
    """
    flat = expert_ids_NK.reshape(-1)
    sorted_experts, pair_of_slot = torch.sort(flat, stable=True)
    bounds = torch.arange(n_experts + 1, device=flat.device)
    offsets = torch.searchsorted(sorted_experts, bounds, out_int32=True)
    slot_of_pair = torch.empty_like(pair_of_slot)
    slot_of_pair[pair_of_slot] = torch.arange(flat.numel(), device=flat.device)
    return offsets, pair_of_slot, slot_of_pair


def _gather_sum(y_SD: Tensor, slots_NK: Tensor, weights_NK: Tensor | None) -> Tensor:
    """sum_k weights[n, k] * y[slots[n, k]], in a fixed order: no atomics, so the same bits every time.

    On the CPU as an embedding bag, which never writes out the N * K rows (docs/performance.md).
    """
    if y_SD.device.type == "cpu" and y_SD.dtype == torch.float32:
        weights_NK = None if weights_NK is None else weights_NK.detach()
        return F.embedding_bag(slots_NK, y_SD.detach(), mode="sum", per_sample_weights=weights_NK)
    n, k = slots_NK.shape
    work = torch.promote_types(y_SD.dtype, torch.float32)
    y_NKD = y_SD.index_select(0, slots_NK.reshape(-1)).view(n, k, -1).to(work)
    if weights_NK is not None:
        y_NKD = y_NKD * weights_NK[..., None].to(work)
    return y_NKD.sum(1).to(y_SD.dtype)


# ---- the operator --------------------------------------------------------------------------------------------------------


@torch.library.custom_op("olmo_train::moe_mlp", mutates_args=())
def _moe_mlp(
    x_ND: Tensor, w_in_EFD: Tensor, w_out_EDF: Tensor, gates_NK: Tensor, expert_ids_NK: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y (N, D), and for the backward pass: h (S, 2F), offsets (E + 1,), pair of slot (S,), slot of pair (S,))."""
    offsets, pair_of_slot, slot_of_pair = _sort_by_expert(expert_ids_NK, w_in_EFD.shape[0])
    n, k = expert_ids_NK.shape
    h_SF, y_SD = _experts(x_ND, pair_of_slot // k, (w_in_EFD, w_out_EDF), offsets, backend)
    y_ND = _gather_sum(y_SD, slot_of_pair.view(n, k), gates_NK.to(y_SD.dtype))
    return y_ND, h_SF, offsets, pair_of_slot, slot_of_pair


@_moe_mlp.register_fake
def _(
    x_ND: Tensor, w_in_EFD: Tensor, w_out_EDF: Tensor, gates_NK: Tensor, expert_ids_NK: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    slots = expert_ids_NK.numel()
    h_SF = x_ND.new_empty(slots, w_in_EFD.shape[1])
    offsets = expert_ids_NK.new_empty(w_in_EFD.shape[0] + 1, dtype=torch.int32)
    return torch.empty_like(x_ND), h_SF, offsets, expert_ids_NK.new_empty(slots), expert_ids_NK.new_empty(slots)


@torch.library.custom_op("olmo_train::moe_mlp_backward", mutates_args=())
def _moe_mlp_backward(
    dy_ND: Tensor,
    x_ND: Tensor,
    w_in_EFD: Tensor,
    w_out_EDF: Tensor,
    gates_NK: Tensor,
    h_SF: Tensor,
    offsets: Tensor,
    pair_of_slot: Tensor,
    slot_of_pair: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx (N, D), dw_in, dw_out, dgates (N, K))."""
    n, k = gates_NK.shape
    token_of_slot = pair_of_slot // k
    saved = _Saved(x_ND, token_of_slot, h_SF, gates_NK.reshape(-1)[pair_of_slot], w_in_EFD, w_out_EDF, offsets)
    dx_SD, dw_in_EFD, dw_out_EDF, dgates_S = _experts_backward(dy_ND.contiguous(), saved, backend)
    dx_ND = _gather_sum(dx_SD, slot_of_pair.view(n, k), None)
    return dx_ND, dw_in_EFD, dw_out_EDF, dgates_S[slot_of_pair].view(n, k).to(gates_NK.dtype)


@_moe_mlp_backward.register_fake
def _(
    dy_ND: Tensor,
    x_ND: Tensor,
    w_in_EFD: Tensor,
    w_out_EDF: Tensor,
    gates_NK: Tensor,
    h_SF: Tensor,
    offsets: Tensor,
    pair_of_slot: Tensor,
    slot_of_pair: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x_ND), torch.empty_like(w_in_EFD), torch.empty_like(w_out_EDF), torch.empty_like(gates_NK)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x_ND, w_in_EFD, w_out_EDF, gates_NK, _, ctx.backend = inputs
    _, h_SF, offsets, pair_of_slot, slot_of_pair = output
    ctx.mark_non_differentiable(h_SF, offsets, pair_of_slot, slot_of_pair)
    ctx.save_for_backward(x_ND, w_in_EFD, w_out_EDF, gates_NK, h_SF, offsets, pair_of_slot, slot_of_pair)


def _backward(ctx, dy_ND, *_):  # type: ignore[no-untyped-def]
    return (*_moe_mlp_backward(dy_ND, *ctx.saved_tensors, ctx.backend), None, None)


_moe_mlp.register_autograd(_backward, setup_context=_setup_context)


# ---- the experts, slots in and slots out -----------------------------------------------------------------------------------


class _Saved(NamedTuple):
    """What the backward pass of the experts needs."""

    x_ND: Tensor
    token_of_slot: Tensor
    h_SF: Tensor
    gates_S: Tensor
    w_in_EFD: Tensor
    w_out_EDF: Tensor
    offsets: Tensor


def _experts(
    x_ND: Tensor, token_of_slot: Tensor, weights: tuple[Tensor, Tensor], offsets: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """(h (S, 2F), y (S, D))."""
    w_in_EFD, w_out_EDF = weights
    if backend == "grouped_mm":
        ends = offsets[1:].contiguous()
        h_SF = F.grouped_mm(x_ND.index_select(0, token_of_slot), w_in_EFD.mT, offs=ends)
        return h_SF, F.grouped_mm(_swiglu(h_SF), w_out_EDF.mT, offs=ends)
    n_slots = len(token_of_slot)
    h_SF, y_SD = x_ND.new_empty(n_slots, w_in_EFD.shape[1]), x_ND.new_empty(n_slots, x_ND.shape[1])

    def one(expert: tuple[int, slice]) -> None:
        e, rows = expert
        torch.mm(x_ND.index_select(0, token_of_slot[rows]), w_in_EFD[e].T, out=h_SF[rows])
        torch.mm(_swiglu(h_SF[rows]), w_out_EDF[e].T, out=y_SD[rows])

    run_each(one, _rows_of_experts(offsets))
    return h_SF, y_SD


def _experts_backward(dy_ND: Tensor, saved: _Saved, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx (S, D), dw_in, dw_out, dgates (S,) in float32); dy is the gradient of the sum, not yet times the gates."""
    x_ND, token_of_slot, h_SF, gates_S, w_in_EFD, w_out_EDF, offsets = saved
    if backend == "grouped_mm":
        ends = offsets[1:].contiguous()
        dy_SD, x_SD = dy_ND.index_select(0, token_of_slot), x_ND.index_select(0, token_of_slot)
        dh_SF, gated_SF, dgates_S = _swiglu_backward(F.grouped_mm(dy_SD, w_out_EDF, offs=ends), h_SF, gates_S)
        dw_out_EDF = F.grouped_mm(dy_SD.mT, gated_SF, offs=ends)
        return F.grouped_mm(dh_SF, w_in_EFD, offs=ends), F.grouped_mm(dh_SF.mT, x_SD, offs=ends), dw_out_EDF, dgates_S
    dx_SD = x_ND.new_empty(len(token_of_slot), x_ND.shape[1])
    dgates_S = gates_S.new_empty(len(gates_S), dtype=torch.float32)
    dw_in_EFD, dw_out_EDF = torch.empty_like(w_in_EFD), torch.empty_like(w_out_EDF)
    idle = offsets.diff() == 0
    dw_in_EFD[idle], dw_out_EDF[idle] = 0, 0

    def one(expert: tuple[int, slice]) -> None:
        e, rows = expert
        dy, x = dy_ND.index_select(0, token_of_slot[rows]), x_ND.index_select(0, token_of_slot[rows])
        dh, gated, dgates_S[rows] = _swiglu_backward(dy @ w_out_EDF[e], h_SF[rows], gates_S[rows])
        torch.mm(dy.T, gated, out=dw_out_EDF[e])
        torch.mm(dh, w_in_EFD[e], out=dx_SD[rows])
        torch.mm(dh.T, x, out=dw_in_EFD[e])

    run_each(one, _rows_of_experts(offsets))
    return dx_SD, dw_in_EFD, dw_out_EDF, dgates_S


def _rows_of_experts(offsets: Tensor) -> list[tuple[int, slice]]:
    """(expert, its slots) of every expert that has any, the busiest first. Per expert, activations stay in the CPU's caches."""
    rows = [(e, slice(start, end)) for e, (start, end) in enumerate(pairwise(offsets.tolist())) if end > start]
    return sorted(rows, key=lambda row: row[1].start - row[1].stop)


def _swiglu(h_SF: Tensor) -> Tensor:
    gate, up = h_SF.chunk(2, -1)
    return F.silu(gate).mul_(up)


def _swiglu_backward(da_SF: Tensor, h_SF: Tensor, gates_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(dh (S, 2F), gate * activation (S, F), gradient of the gates (S,) in float32)."""
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
