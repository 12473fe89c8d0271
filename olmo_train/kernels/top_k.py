"""The k best experts of each token: torch's top k on a CPU, k rounds of a maximum in registers on a GPU."""

import torch
from torch import Tensor


@torch.library.custom_op("olmo_train::top_k", mutates_args=())
def top_k(scores_NE: Tensor, k: int) -> Tensor:
    """Ids (N, k), int64, of the largest scores of each row, largest first; no gradient.

    torch.topk sorts, which is a large part of a router's time on a GPU (SonicMoE, arXiv 2512.14080, section 4: about 40 %); the
    Triton kernel takes the maximum k times, and the first of equals.
    """
    if scores_NE.is_cuda:
        from olmo_train.kernels.triton_top_k import top_k_rows

        return top_k_rows(scores_NE.contiguous(), k)
    return scores_NE.topk(k, -1).indices


@top_k.register_fake
def _(scores_NE: Tensor, k: int) -> Tensor:
    return scores_NE.new_empty(scores_NE.shape[0], k, dtype=torch.int64)
