"""What a run asks of its kernels; each kernel's module says of each of its backends whether it can do that here."""

import shlex
from dataclasses import dataclass
from importlib.util import find_spec

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


def why_no_package(here: str, needs: Needs, module: str, package: str) -> str | None:
    """What stands against a backend of a package for CUDA. `here`: kernels.NAME=BACKEND; `module`: what it imports."""
    if needs.device.type != "cuda":
        return f"{here} needs a CUDA device, this is {needs.device.type}; use auto"
    if find_spec(module) is None:
        return f"{here} needs the package {package}, which is not installed; pip install {shlex.quote(package)}, or use auto"
    return None


def why_no_quack(here: str, needs: Needs, instead: str) -> str | None:
    """The same of quack-kernels, which also asks for a generation of GPUs. `instead`: what to use on others."""
    reason = why_no_package(here, needs, "quack", "quack-kernels")
    if reason is None and needs.capability[0] not in (9, 10, 12):
        major, minor = needs.capability
        return f"{here} needs a Hopper GPU or newer (compute capability 9.0), this one has {major}.{minor}; use {instead}"
    return reason


def why_not_in_bfloat16(here: str, needs: Needs, instead: str) -> str | None:
    """What stands against a backend that computes in bfloat16 alone."""
    if needs.dtype != torch.bfloat16:
        return f"{here} computes in bfloat16, and parallel.compute_dtype is another type; set it, or use {instead}"
    return None
