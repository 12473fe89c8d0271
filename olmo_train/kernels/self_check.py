"""Let a backend prove itself on this device: output and gradients against the float32 reference, at the run's widths."""

from collections.abc import Callable

import torch
from torch import Tensor

from olmo_train.kernels.attention import Documents, attention, build_mask
from olmo_train.kernels.cross_entropy import IGNORE, linear_cross_entropy
from olmo_train.kernels.moe_mlp import moe_mlp
from olmo_train.kernels.needs import Needs

TOKENS, EXPERTS, VOCAB = 512, 8, 1024
MAX_ERROR = {torch.bfloat16: 0.03, torch.float16: 0.01, torch.float32: 1e-3, torch.float64: 1e-3}
"""Norm of the difference over norm of the reference. bf16 rounds by 2^-9 per operation; three matmuls in a row reach about 0.01.
float32 on a GPU may run through TF32."""


def find_fault(kernel: str, backend: str, needs: Needs) -> str | None:
    """What is wrong with a backend here, as it would be written in the log; None: its numbers are right."""
    problem = {"attention": _attention, "moe_mlp": _moe_mlp, "cross_entropy": _cross_entropy}[kernel]
    try:
        error = problem(backend, needs)
    except Exception as failure:  # third-party compilers raise anything; a backend that fails here would fail the run
        text = str(failure).strip().splitlines()
        return f"kernels.{kernel}={backend} failed its check: {type(failure).__name__}: {text[0] if text else ''}"
    if error > MAX_ERROR[needs.dtype]:
        return f"kernels.{kernel}={backend} failed its check: relative error {error:.1e}, limit {MAX_ERROR[needs.dtype]:.0e}"
    return None


def _compare(run: Callable[[list[Tensor], str], Tensor], leaves: list[Tensor], backend: str, dtype: torch.dtype) -> float:
    """The largest relative error of the output and of the gradients; `leaves` are float32."""
    results = []
    for name, kind in ((backend, dtype), ("reference", torch.float32)):
        inputs = [leaf.to(dtype).to(kind).requires_grad_() for leaf in leaves]  # both sides see the same rounded values
        out = run(inputs, name)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device)
        loss = out.sum() if out.dim() == 0 else (out.float() * weights).sum()
        results.append([out.detach(), *torch.autograd.grad(loss, inputs)])
    errors = [(a.float() - b).norm() / b.norm().clamp_min(1e-12) for a, b in zip(*results, strict=True)]
    worst = torch.stack(errors).max()
    return float(worst) if bool(worst.isfinite()) else float("inf")


def _normal(shape: tuple[int, ...], scale: float, needs: Needs, seed: int) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(needs.device)


def _attention(backend: str, needs: Needs) -> float:
    """Two rows; with documents of odd lengths and a window where the run has them."""
    b, t = 2, TOKENS // 2
    documents = None
    if needs.has_documents:
        starts = torch.tensor([0, 1, 40, 167, 256, 300, 512], dtype=torch.int32, device=needs.device)
        numbers = torch.bucketize(torch.arange(b * t, device=needs.device), starts, right=True).int()
        documents = Documents(numbers.view(b, t), torch.nn.functional.pad(starts, (0, 9), value=b * t))
    window = 100 if needs.has_windows else None
    shapes = [(b, t, heads, needs.d_head) for heads in (needs.n_heads, needs.n_kv_heads, needs.n_kv_heads)]

    def run(inputs: list[Tensor], name: str) -> Tensor:
        mask = build_mask((b, t), window, documents, needs.device, name)
        return attention(inputs[0], inputs[1], inputs[2], mask, name)

    return _compare(run, [_normal(shape, 1.0, needs, 9 + i) for i, shape in enumerate(shapes)], backend, needs.dtype)


def _moe_mlp(backend: str, needs: Needs) -> float:
    """Tokens skewed over few experts, one of them without any."""
    n_experts, width, d = min(needs.n_experts, EXPERTS), needs.d_expert or 1, needs.d_model
    k = min(needs.top_k, max(1, n_experts - 1))
    scores = torch.randn(TOKENS, n_experts, generator=torch.Generator().manual_seed(2)) + torch.linspace(1, 0, n_experts)
    if n_experts > k:
        scores[:, -1] = -torch.inf
    gates, ids = (t.to(needs.device) for t in scores.softmax(-1).topk(k, -1))
    leaves = [
        _normal((TOKENS, d), 1.0, needs, 3),
        _normal((n_experts, 2 * width, d), d**-0.5, needs, 4),
        _normal((n_experts, d, width), width**-0.5, needs, 5),
        gates,
    ]

    def run(inputs: list[Tensor], name: str) -> Tensor:
        return moe_mlp(inputs[0], inputs[1], inputs[2], inputs[3], ids, name)[0]

    return _compare(run, leaves, backend, needs.dtype)


def _cross_entropy(backend: str, needs: Needs) -> float:
    d, z_weight = needs.d_model, 1e-2 if needs.has_z_loss else 0.0
    labels = torch.randint(0, VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(6)).to(needs.device)
    labels[::5] = IGNORE
    leaves = [_normal((TOKENS, d), 1.0, needs, 7), _normal((VOCAB, d), d**-0.5, needs, 8)]

    def run(inputs: list[Tensor], name: str) -> Tensor:
        return linear_cross_entropy(inputs[0], inputs[1], labels, z_weight, name)[0]

    return _compare(run, leaves, backend, needs.dtype)
