"""A stable counting sort of expert ids in Triton: a histogram per block of pairs, one cumulative sum, a scatter."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ONE_HOT_ELEMENTS = 16384
"""Of a block's (pairs, experts) table of ones: 128 registers of each of 128 threads."""


def counting_sort(expert_ids_S: Tensor, n_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """(offsets (E + 1,), pair of each slot (S,), slot of each pair (S,)), all int32."""
    n_pairs = expert_ids_S.numel()
    width = max(triton.next_power_of_2(n_experts), 16)
    block = max(16, min(256, ONE_HOT_ELEMENTS // width))
    n_blocks = triton.cdiv(n_pairs, block)
    device = expert_ids_S.device
    counts_EB = torch.empty(n_experts, n_blocks, dtype=torch.int32, device=device)
    pair_of_slot = torch.empty(n_pairs, dtype=torch.int32, device=device)
    slot_of_pair = torch.empty_like(pair_of_slot)
    _count[(n_blocks,)](expert_ids_S, counts_EB, n_pairs, n_experts, n_blocks, block, width, num_warps=8)
    # Experts before blocks: the slot at which each block's pairs of each expert begin, and each expert's last slot + 1.
    ends = counts_EB.view(-1).cumsum(0, dtype=torch.int32)
    starts = ends - counts_EB.view(-1)
    _place[(n_blocks,)](expert_ids_S, starts, pair_of_slot, slot_of_pair, n_pairs, n_experts, n_blocks, block, width, num_warps=8)
    offsets = torch.zeros(n_experts + 1, dtype=torch.int32, device=device)
    offsets[1:] = ends.view(n_experts, n_blocks)[:, -1]
    return offsets, pair_of_slot, slot_of_pair


@triton.jit
def _count(ids, counts, n_pairs, n_experts, n_blocks, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    b = tl.program_id(0)
    pairs = b * BLOCK + tl.arange(0, BLOCK)
    experts = tl.arange(0, WIDTH)
    expert_of_pair = tl.load(ids + pairs, mask=pairs < n_pairs, other=-1).to(tl.int32)
    ones = (expert_of_pair[:, None] == experts[None, :]).to(tl.int32)
    tl.store(counts + experts * n_blocks + b, tl.sum(ones, 0), mask=experts < n_experts)


@triton.jit
def _place(ids, starts, pair_of_slot, slot_of_pair, n_pairs, n_experts, n_blocks, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    b = tl.program_id(0)
    pairs = b * BLOCK + tl.arange(0, BLOCK)
    experts = tl.arange(0, WIDTH)
    real = pairs < n_pairs
    expert_of_pair = tl.load(ids + pairs, mask=real, other=-1).to(tl.int32)
    ones = (expert_of_pair[:, None] == experts[None, :]).to(tl.int32)
    before = tl.cumsum(ones, 0) - ones  # pairs of the same expert earlier in this block
    start = tl.load(starts + experts * n_blocks + b, mask=experts < n_experts, other=0)
    slots = tl.sum(ones * (before + start[None, :]), 1)
    tl.store(slot_of_pair + pairs, slots, mask=real)
    tl.store(pair_of_slot + slots, pairs, mask=real)
