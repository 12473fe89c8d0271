"""Attention of one new token per row over the keys that a cache holds; forward only."""

from torch import Tensor
from torch.nn import functional as F


def decode_attention(q_BHC: Tensor, k_BGSC: Tensor, v_BGSC: Tensor, bias_B11S: Tensor | None) -> Tensor:
    """Softmax(q k^T / sqrt(C) + bias) v over all S keys: (B, H, C).

    The query heads that share a kv head stand where sdpa expects positions, so that no key is repeated for them.
    `bias_B11S`: -inf hides a key from a row; None: nothing is hidden.
    """
    b, h, c = q_BHC.shape
    g = k_BGSC.shape[1]
    return F.scaled_dot_product_attention(q_BHC.reshape(b, g, h // g, c), k_BGSC, v_BGSC, bias_B11S).reshape(b, h, c)
