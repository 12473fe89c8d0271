"""What a run asks of its kernels; each kernel's module says of each of its backends whether it can do that here."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Needs:
    """Device, number format and shapes of a run, as far as kernels care."""

    device: torch.device
    dtype: torch.dtype
    """Of activations and of the weights in the forward pass."""
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    seq_len: int
    has_documents: bool = False
    """Attention stays within documents."""
    has_windows: bool = False
    """Some layers attend to a sliding window."""
    d_expert: int | None = None
    """None: no MoE layer."""
    n_experts: int = 0
    top_k: int = 0
    vocab_rows: int = 0
    has_z_loss: bool = False
    """z-loss on the output softmax."""

    @property
    def capability(self) -> tuple[int, int]:
        """CUDA compute capability; (0, 0) on a CPU."""
        if self.device.type != "cuda":
            return 0, 0
        return torch.cuda.get_device_capability(self.device)
