"""What a model asks of its kernels."""

import torch

from olmo_train.config.model import ModelConfig
from olmo_train.kernels.needs import Needs
from olmo_train.model.shapes import d_head, n_kv_heads, vocab_rows


def kernel_needs(model: ModelConfig, seq_len: int, document_masking: bool, device: torch.device, dtype: torch.dtype) -> Needs:
    """`seq_len`: tokens of a sequence; `dtype`: of the forward pass."""
    moe = model.moe
    return Needs(
        device=device,
        dtype=dtype,
        d_model=model.d_model,
        n_heads=model.n_heads,
        n_kv_heads=n_kv_heads(model),
        d_head=d_head(model),
        seq_len=seq_len,
        has_documents=document_masking,
        has_windows=model.sliding_window is not None,
        d_expert=None if moe is None else moe.d_expert,
        n_experts=0 if moe is None else moe.n_experts,
        top_k=0 if moe is None else moe.top_k,
        vocab_rows=vocab_rows(model),
        has_z_loss=model.z_loss_weight > 0,
    )
