"""Causal attention with sliding windows and document masking: one function, its backends, and the plain reference."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BACKENDS = ("sdpa", "reference")


class Mask(NamedTuple):
    """Which keys a query may see: those before it, in its window, in its document."""

    allowed: Tensor | None
    """bool (B or 1, 1, T, T), True where a query may look; None: plain causal, which kernels know without a mask."""


def build_mask(seq_len: int, window: int | None, documents_BT: Tensor | None, device: torch.device) -> Mask:
    """The mask of one kind of layer, shared by all layers of that kind.

    `window`: tokens a position sees, itself included. `documents_BT`: attention stays within equal numbers.
    """
    if documents_BT is None and (window is None or window >= seq_len):
        return Mask(None)
    position = torch.arange(seq_len, device=device)
    distance = position[:, None] - position[None, :]
    allowed = distance >= 0
    if window is not None:
        allowed = allowed & (distance < window)
    allowed = allowed[None, None]
    if documents_BT is not None:
        allowed = allowed & (documents_BT[:, None, :, None] == documents_BT[:, None, None, :])
    return Mask(allowed)


def attention(q_BHTC: Tensor, k_BGTC: Tensor, v_BGTC: Tensor, mask: Mask, backend: str) -> Tensor:
    """Softmax(q k^T / sqrt(C)) v over the keys that `mask` allows; query head h reads kv head h * G // H.

    Returns (B, H, T, C). Source: Vaswani et al., arXiv 1706.03762, equation 1; grouped queries: arXiv 2305.13245.
    """
    match backend:
        case "sdpa":
            grouped = q_BHTC.shape[1] != k_BGTC.shape[1]
            causal = mask.allowed is None
            return F.scaled_dot_product_attention(q_BHTC, k_BGTC, v_BGTC, mask.allowed, is_causal=causal, enable_gqa=grouped)
        case "reference":
            return _reference(q_BHTC, k_BGTC, v_BGTC, mask)
    raise AssertionError(backend)


def _reference(q_BHTC: Tensor, k_BGTC: Tensor, v_BGTC: Tensor, mask: Mask) -> Tensor:
    """The definition, in float32 (or better), holding all scores."""
    dtype = q_BHTC.dtype
    work = torch.float64 if dtype == torch.float64 else torch.float32
    repeat = q_BHTC.shape[1] // k_BGTC.shape[1]
    q, k, v = (
        q_BHTC.to(work),
        k_BGTC.to(work).repeat_interleave(repeat, 1),
        v_BGTC.to(work).repeat_interleave(repeat, 1),
    )
    scores_BHTT = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    allowed = mask.allowed
    if allowed is None:
        allowed = torch.ones(scores_BHTT.shape[-2:], dtype=torch.bool, device=q.device).tril()
    return (scores_BHTT.masked_fill(~allowed, float("-inf")).softmax(-1) @ v).to(dtype)
