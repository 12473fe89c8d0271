"""The experts themselves, slots in and slots out: forward and backward of each backend, with what each needs to run.

A backend keeps h (the pre-activations) in a layout of its own: rows [gate | up], or gate and up interleaved (quack). It never
leaves the operator in kernels/moe_mlp.py.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from olmo_train.kernels.cpu_threads import run_each
from olmo_train.kernels.expert_pieces import swiglu, swiglu_backward
from olmo_train.kernels.needs import Needs, why_no_package, why_no_quack, why_not_in_bfloat16
from olmo_train.kernels.quack_library import quack_module

TUNED_TOKENS = 1024
"""quack times its candidates once per shape, for seconds: worth it for the multiples of this that training repeats."""


class Saved(NamedTuple):
    """What the backward pass needs."""

    x_ND: Tensor
    token_of_slot: Tensor
    """int32 (S,)."""
    h_SF: Tensor
    gates_S: Tensor
    w_in_EFD: Tensor
    w_out_EDF: Tensor
    offsets: Tensor
    """int32 (E + 1,)."""


def why_not(backend: str, needs: Needs) -> str | None:
    """What stands against a backend here; None: nothing."""
    here = f"kernels.moe_mlp={backend}"
    reason = None
    if backend == "quack":
        reason = why_no_quack(here, needs, "grouped_mm") or why_not_in_bfloat16(here, needs, "grouped_mm")
    if backend == "megablocks":
        reason = why_no_package(here, needs, "grouped_gemm", "megablocks[gg]") or why_not_in_bfloat16(here, needs, "grouped_mm")
    if reason is not None:
        return reason
    if backend == "grouped_mm" and not hasattr(F, "grouped_mm"):
        return f"{here} needs torch 2.10 or newer, this is {torch.__version__}; use auto"
    if backend in ("quack", "megablocks", "grouped_mm"):
        itemsize = needs.dtype.itemsize
        for name, width in (("model.d_model", needs.d_model), ("model.moe.d_expert", needs.d_expert or 0)):
            if width * itemsize % 16:
                return f"{here}: {name}={width} * {itemsize} bytes is no multiple of 16; change it, or use loop"
    return None


def forward(
    x_ND: Tensor, token_of_slot: Tensor, weights: tuple[Tensor, Tensor], offsets: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """(h (S, 2F), y (S, D)); `weights`: w_in (E, 2F, D), gate rows before up rows, and w_out (E, D, F)."""
    w_in_EFD, w_out_EDF = weights
    match backend:
        case "quack":
            quack = quack_module("gemm_interface")
            tuned = x_ND.shape[0] % TUNED_TOKENS == 0
            h_SF, a_SF = quack.gemm_gated(
                x_ND, w_in_EFD.mT, activation="swiglu", cu_seqlens_m=offsets, A_idx=token_of_slot, tuned=tuned,
                concat_layout=("B",),
            )  # fmt: skip
            return h_SF, quack.gemm(a_SF, w_out_EDF.mT, cu_seqlens_m=offsets, tuned=tuned)
        case "loop":
            return _loop_forward(x_ND, token_of_slot, weights, offsets)
        case _:
            h_SF = _rows_times(x_ND.index_select(0, token_of_slot), w_in_EFD.mT, offsets, backend)
            return h_SF, _rows_times(swiglu(h_SF), w_out_EDF.mT, offsets, backend)


def backward(dy_ND: Tensor, saved: Saved, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx (S, D), dw_in, dw_out, dgates (S,) in float32); `dy_ND`: gradient of the sum, contiguous, not yet times the gates."""
    match backend:
        case "quack":
            return _quack_backward(dy_ND, saved)
        case "loop":
            return _loop_backward(dy_ND, saved)
    x_ND, token_of_slot, h_SF, gates_S, w_in_EFD, w_out_EDF, offsets = saved
    dy_SD = dy_ND.index_select(0, token_of_slot)
    dh_SF, gated_SF, dgates_S = swiglu_backward(_rows_times(dy_SD, w_out_EDF, offsets, backend), h_SF, gates_S)
    dw_out_EDF = _transposed_times(dy_SD, gated_SF, offsets, backend)
    del dy_SD, gated_SF  # before the next large ones
    dx_SD = _rows_times(dh_SF, w_in_EFD, offsets, backend)
    dw_in_EFD = _transposed_times(dh_SF, x_ND.index_select(0, token_of_slot), offsets, backend)
    return dx_SD, dw_in_EFD, dw_out_EDF, dgates_S


# ---- quack: gather in the load, SwiGLU and its gradient in the epilogue -------------------------------------------------------


def _quack_backward(dy_ND: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four GEMMs, of which the first also recomputes the activation and reduces the gradient of the gates.

    Source: SonicMoE, arXiv 2512.14080, algorithm 3; calls: quack 0.6.5, quack/gemm_interface.py.
    """
    quack = quack_module("gemm_interface")
    x_ND, token_of_slot, h_SF, gates_S, w_in_EFD, w_out_EDF, offsets = saved
    tuned = x_ND.shape[0] % TUNED_TOKENS == 0
    dh_SF, gated_SF, dgates_S = quack.gemm_dgated(
        dy_ND, w_out_EDF, h_SF, activation="swiglu", colvec_scale=gates_S.float(), colvec_reduce=True, cu_seqlens_m=offsets,
        A_idx=token_of_slot, dynamic_scheduler=False, tuned=tuned,
    )  # fmt: skip
    dw_out_EDF = torch.empty_like(w_out_EDF)
    quack.gemm(dy_ND.T, gated_SF, out=dw_out_EDF, cu_seqlens_k=offsets, A_idx=token_of_slot, tuned=tuned)
    del gated_SF
    dx_SD = quack.gemm(dh_SF, w_in_EFD, cu_seqlens_m=offsets, tuned=tuned, concat_layout=("B",))
    dw_in_EFD = torch.empty_like(w_in_EFD)
    # h and dh are interleaved; "out" writes gate columns into the first half of the rows of w_in, up columns into the second.
    quack.gemm(x_ND.T, dh_SF, out=dw_in_EFD.mT, cu_seqlens_k=offsets, A_idx=token_of_slot, tuned=tuned, concat_layout=("out",))
    return dx_SD, dw_in_EFD, dw_out_EDF, dgates_S


# ---- grouped GEMMs of torch and of MegaBlocks ------------------------------------------------------------------------------


def _rows_times(a_SM: Tensor, w_EMN: Tensor, offsets: Tensor, backend: str) -> Tensor:
    """Rows of each expert times its matrix: (S, N)."""
    if backend == "megablocks":
        from grouped_gemm import backend as grouped_gemm

        is_transposed = not w_EMN.is_contiguous()  # the library takes contiguous tensors and a flag
        w = w_EMN.mT if is_transposed else w_EMN
        return grouped_gemm.gmm(a_SM, w, _sizes_on_host(offsets), False, is_transposed)
    return F.grouped_mm(a_SM, w_EMN, offs=offsets[1:])


def _transposed_times(a_SM: Tensor, b_SN: Tensor, offsets: Tensor, backend: str) -> Tensor:
    """a^T b over the rows of each expert: (E, M, N); zero for an expert without rows."""
    if backend == "megablocks":
        from grouped_gemm import backend as grouped_gemm

        return grouped_gemm.gmm(a_SM, b_SN, _sizes_on_host(offsets), True, False)
    return F.grouped_mm(a_SM.mT, b_SN, offs=offsets[1:])


def _sizes_on_host(offsets: Tensor) -> Tensor:
    """Rows of each expert; MegaBlocks' grouped GEMM wants them on the host, so this waits for the GPU. The others do not."""
    return offsets.diff().long().cpu()


# ---- a matmul per expert: the CPU ------------------------------------------------------------------------------------------


def _loop_forward(x_ND: Tensor, token_of_slot: Tensor, weights: tuple[Tensor, Tensor], offsets: Tensor) -> tuple[Tensor, Tensor]:
    w_in_EFD, w_out_EDF = weights
    n_slots = len(token_of_slot)
    h_SF, y_SD = x_ND.new_empty(n_slots, w_in_EFD.shape[1]), x_ND.new_empty(n_slots, x_ND.shape[1])

    def one(expert: tuple[int, slice]) -> None:
        e, rows = expert
        torch.mm(x_ND.index_select(0, token_of_slot[rows]), w_in_EFD[e].T, out=h_SF[rows])
        torch.mm(swiglu(h_SF[rows]), w_out_EDF[e].T, out=y_SD[rows])

    run_each(one, _rows_of_experts(offsets))
    return h_SF, y_SD


def _loop_backward(dy_ND: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x_ND, token_of_slot, h_SF, gates_S, w_in_EFD, w_out_EDF, offsets = saved
    dx_SD = x_ND.new_empty(len(token_of_slot), x_ND.shape[1])
    dgates_S = gates_S.new_empty(len(gates_S), dtype=torch.float32)
    dw_in_EFD, dw_out_EDF = torch.empty_like(w_in_EFD), torch.empty_like(w_out_EDF)
    idle = offsets.diff() == 0
    dw_in_EFD[idle], dw_out_EDF[idle] = 0, 0

    def one(expert: tuple[int, slice]) -> None:
        e, rows = expert
        dy, x = dy_ND.index_select(0, token_of_slot[rows]), x_ND.index_select(0, token_of_slot[rows])
        dh, gated, dgates_S[rows] = swiglu_backward(dy @ w_out_EDF[e], h_SF[rows], gates_S[rows])
        torch.mm(dy.T, gated, out=dw_out_EDF[e])
        torch.mm(dh, w_in_EFD[e], out=dx_SD[rows])
        torch.mm(dh.T, x, out=dw_in_EFD[e])

    run_each(one, _rows_of_experts(offsets))
    return dx_SD, dw_in_EFD, dw_out_EDF, dgates_S


def _rows_of_experts(offsets: Tensor) -> list[tuple[int, slice]]:
    """(expert, its slots) of every expert that has any, the busiest first. Per expert, activations stay in the CPU's caches."""
    rows = [(e, slice(start, end)) for e, (start, end) in enumerate(pairwise(offsets.tolist())) if end > start]
    return sorted(rows, key=lambda row: row[1].start - row[1].stop)
