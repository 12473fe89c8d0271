"""What selective recomputing keeps: attention and the experts run once, whichever library they come from."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from olmo_train.config.train import Recompute
from olmo_train.kernels.attention import attention, build_mask
from olmo_train.parallel.recompute import recompute


class Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[op.name()] += 1
        return op(*args, **(kwargs or {}))


class Layer(nn.Module):
    """Attention between two cheap operations."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, x_BTHC: Tensor) -> Tensor:
        """(B, T, H, C) -> the same."""
        b, t = x_BTHC.shape[:2]
        x_BTHC = x_BTHC.sin()
        mask = build_mask((b, t), None, None, x_BTHC.device, self.backend)
        return attention(x_BTHC, x_BTHC, x_BTHC, mask, self.backend).tanh()


@pytest.mark.parametrize(
    ("backend", "op"),
    [
        ("sdpa", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        ("flash4", "olmo_train::flash_attention"),
        ("varlen", "torch_attn::_varlen_attn"),
    ],
)
@pytest.mark.parametrize(("kind", "runs"), [(Recompute.SELECTIVE, 1), (Recompute.FULL, 2)])
def test_selective_recomputing_keeps_attention(kind: Recompute, runs: int, backend: str, op: str) -> None:
    """`varlen` has no kernel for a CPU: its shapes are traced on the meta device."""
    layer = Layer(backend)
    recompute(layer, kind)
    x_BTHC = torch.randn(2, 8, 2, 8, device="meta" if backend == "varlen" else "cpu").requires_grad_()
    with Calls() as calls:
        layer(x_BTHC).sum().backward()
    assert calls.count[op] == runs
    assert calls.count["aten::sin"] == 2
