"""Top k of short rows in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TABLE_ELEMENTS = 2048
"""Scores held by one program."""


def top_k_rows(scores_NE: Tensor, k: int) -> Tensor:
    """Ids (N, k), int64, of the largest scores of each contiguous row, largest first, the first of equals; NaN is never chosen
    before a number.
    """
    n, n_experts = scores_NE.shape
    width = max(triton.next_power_of_2(n_experts), 2)
    rows = max(1, TABLE_ELEMENTS // width)
    ids_NK = torch.empty(n, k, dtype=torch.int64, device=scores_NE.device)
    _top_k[(triton.cdiv(n, rows),)](scores_NE, ids_NK, n, n_experts, k, rows, width, num_warps=4)
    return ids_NK


@triton.jit
def _top_k(scores, ids, N, E, K: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, WIDTH)
    inside = (row[:, None] < N) & (expert[None, :] < E)
    table = tl.load(scores + row.to(tl.int64)[:, None] * E + expert[None, :], mask=inside, other=0.0).to(tl.float32)
    # -inf is below every finite score, and taken experts are below that by being out of the choice: `free` says who is in it.
    free = inside
    for k in tl.static_range(K):
        value = tl.where(free & (table == table), table, float("-inf"))
        best = tl.max(value, 1)
        candidate = tl.where(free & (value == best[:, None]), expert[None, :], WIDTH)
        chosen = tl.min(candidate, 1)
        tl.store(ids + row.to(tl.int64) * K + k, chosen.to(tl.int64), mask=row < N)
        free = free & (expert[None, :] != chosen[:, None])
