"""Token-expert pairs sorted by expert: static shapes, no host synchronisation, the same bits every time."""

from typing import NamedTuple

import torch
from torch import Tensor


class Routing(NamedTuple):
    """Where each of the S = N * K pairs (token n's k-th choice is pair n * K + k) stands among slots grouped by expert.

    Slots of an expert stay in token order, so nothing depends on how the sort was done.
    """

    offsets: Tensor
    """int32 (E + 1,): expert e has slots offsets[e] to offsets[e + 1]."""
    pair_of_slot: Tensor
    """int32 (S,)."""
    slot_of_pair: Tensor
    """int32 (S,), the inverse."""


def route(expert_ids_NK: Tensor, n_experts: int) -> Routing:
    """Group pairs by expert; on a GPU by a counting sort in Triton (kernels/triton_routing.py)."""
    if expert_ids_NK.is_cuda:
        from olmo_train.kernels.triton_routing import counting_sort

        return Routing(*counting_sort(expert_ids_NK.reshape(-1), n_experts))
    return route_by_sorting(expert_ids_NK, n_experts)


def route_by_sorting(expert_ids_NK: Tensor, n_experts: int) -> Routing:
    """The same with torch's stable sort, on any device."""
    flat = expert_ids_NK.reshape(-1)
    sorted_experts, pair_of_slot = torch.sort(flat, stable=True)
    bounds = torch.arange(n_experts + 1, device=flat.device, dtype=flat.dtype)
    offsets = torch.searchsorted(sorted_experts, bounds, out_int32=True)
    slot_of_pair = torch.empty(flat.shape, dtype=torch.int32, device=flat.device)
    slot_of_pair[pair_of_slot] = torch.arange(flat.numel(), device=flat.device, dtype=torch.int32)
    return Routing(offsets, pair_of_slot.int(), slot_of_pair)
