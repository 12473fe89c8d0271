"""The expert MLP of a dropless mixture-of-experts layer: one function, its backends, and the plain reference.

    y_n = sum_k gates_nk * w_out[e] (silu(g) * u),   [g; u] = w_in[e] x_n,   e = expert_ids_nk

All backends but the reference are one custom operator with a hand-written backward pass that keeps only x, the pre-activations
h and the routing, not the gathered inputs, activations or outputs: 2 ND + 4 NKF bytes in bf16 instead of ~3 times that.
Source of the memory plan: SonicMoE, arXiv 2512.14080, section 3. The backends themselves: kernels/experts.py.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from olmo_train.kernels import experts
from olmo_train.kernels.expert_pieces import gather_sum
from olmo_train.kernels.needs import Needs
from olmo_train.kernels.routing import route

BACKENDS = ("quack", "grouped_mm", "megablocks", "loop", "reference")
why_not = experts.why_not


def auto_order(needs: Needs) -> tuple[str, ...]:
    """Backends to try, best first. On a CPU a matmul per expert wins, a thread each (docs/performance.md)."""
    has_experts = needs.d_expert is not None
    return ("quack", "grouped_mm", "loop") if needs.device.type == "cuda" and has_experts else ("loop",)


def moe_mlp(
    x_ND: Tensor, w_in_EFD: Tensor, w_out_EDF: Tensor, gates_NK: Tensor, expert_ids_NK: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """Send every token through its experts and add the results, weighted by the gates.

    Args:
        w_in_EFD: (E, 2 * d_expert, D), gate rows before up rows. w_out_EDF: (E, D, d_expert).
        gates_NK: weight of each chosen expert, any float dtype. expert_ids_NK: int64.
        backend: "quack" (fused GEMMs of quack-kernels, bf16 on Hopper and newer), "grouped_mm" (torch's grouped GEMM; widths
            must be multiples of 16 bytes), "megablocks" (its grouped GEMM, which waits for the GPU), "loop" (a matmul per expert;
            CPU, any size), "reference" (differentiable definition).

    Returns:
        ((N, D) in the dtype of x; int32 (E,), tokens sent to each expert, without a gradient).
    """
    if backend == "reference":
        return _reference(x_ND, w_in_EFD, w_out_EDF, gates_NK, expert_ids_NK)
    y_ND, _, offsets, _, _ = _moe_mlp(x_ND, w_in_EFD, w_out_EDF, gates_NK, expert_ids_NK, backend)
    return y_ND, offsets.diff()


def _reference(
    x_ND: Tensor, w_in_EFD: Tensor, w_out_EDF: Tensor, gates_NK: Tensor, expert_ids_NK: Tensor
) -> tuple[Tensor, Tensor]:
    y_ND = torch.zeros_like(x_ND)
    counts = []
    for e in range(w_in_EFD.shape[0]):
        token, k = torch.where(expert_ids_NK == e)
        gate, up = (x_ND[token] @ w_in_EFD[e].T).chunk(2, -1)
        out = (F.silu(gate) * up) @ w_out_EDF[e].T
        y_ND = y_ND.index_add(0, token, out * gates_NK[token, k, None].to(out.dtype))
        counts.append(len(token))
    return y_ND, torch.tensor(counts, dtype=torch.int32, device=x_ND.device)


# ---- the operator --------------------------------------------------------------------------------------------------------


@torch.library.custom_op("olmo_train::moe_mlp", mutates_args=())
def _moe_mlp(
    x_ND: Tensor, w_in_EFD: Tensor, w_out_EDF: Tensor, gates_NK: Tensor, expert_ids_NK: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y (N, D), and for the backward pass: h (S, 2F), offsets (E + 1,), pair of slot (S,), slot of pair (S,))."""
    offsets, pair_of_slot, slot_of_pair = route(expert_ids_NK, w_in_EFD.shape[0])
    n, k = expert_ids_NK.shape
    h_SF, y_SD = experts.forward(x_ND, pair_of_slot // k, (w_in_EFD, w_out_EDF), offsets, backend)
    y_ND = gather_sum(y_SD, slot_of_pair.view(n, k), gates_NK)
    return y_ND, h_SF, offsets, pair_of_slot, slot_of_pair


@_moe_mlp.register_fake
def _(
    x_ND: Tensor, w_in_EFD: Tensor, w_out_EDF: Tensor, gates_NK: Tensor, expert_ids_NK: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def int32(size: int) -> Tensor:
        return expert_ids_NK.new_empty(size, dtype=torch.int32)

    slots = expert_ids_NK.numel()
    h_SF = x_ND.new_empty(slots, w_in_EFD.shape[1])
    return torch.empty_like(x_ND), h_SF, int32(w_in_EFD.shape[0] + 1), int32(slots), int32(slots)


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
    gates_S = gates_NK.reshape(-1)[pair_of_slot]
    saved = experts.Saved(x_ND, pair_of_slot // k, h_SF, gates_S, w_in_EFD, w_out_EDF, offsets)
    dx_SD, dw_in_EFD, dw_out_EDF, dgates_S = experts.backward(dy_ND.contiguous(), saved, backend)
    dx_ND = gather_sum(dx_SD, slot_of_pair.view(n, k), None)
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
    ctx.set_materialize_grads(False)  # or autograd fills a gradient of zeros for h, as large as h
    ctx.save_for_backward(x_ND, w_in_EFD, w_out_EDF, gates_NK, h_SF, offsets, pair_of_slot, slot_of_pair)


def _backward(ctx, dy_ND, *_):  # type: ignore[no-untyped-def]
    return (*_moe_mlp_backward(dy_ND, *ctx.saved_tensors, ctx.backend), None, None)


_moe_mlp.register_autograd(_backward, setup_context=_setup_context)
