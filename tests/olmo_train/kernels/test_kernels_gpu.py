"""On a GPU: every installed backend of the experts and of the loss in bfloat16 against the float32 reference."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from olmo_train.kernels import cross_entropy, moe_mlp
from olmo_train.kernels.choose import choose_kernels
from olmo_train.kernels.needs import Needs
from olmo_train.kernels.self_check import find_fault
from tests.olmo_train.kernels.test_moe_mlp import inputs

pytestmark = pytest.mark.gpu
NEEDS = Needs(
    torch.device("cuda"), torch.bfloat16, d_model=256, n_heads=4, n_kv_heads=2, d_head=64, seq_len=512, d_expert=128, n_experts=16,
    top_k=4, vocab_rows=1024,
)  # fmt: skip


def errors(run: Callable[[list[Tensor], str], list[Tensor]], leaves: list[Tensor], backend: str) -> list[float]:
    """Relative errors of results and gradients; both sides start from the same bfloat16 values."""
    low = [leaf.bfloat16() if leaf.is_floating_point() else leaf for leaf in leaves]
    high = [leaf.float() if leaf.is_floating_point() else leaf for leaf in low]
    ours, expected = run(low, backend), run(high, "reference")
    return [float((a.float() - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(ours, expected, strict=True)]


def skip_unless_it_runs(module: object, backend: str, needs: Needs = NEEDS) -> None:
    reason = module.why_not(backend, needs)  # type: ignore[attr-defined]
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("routing", ["random", "one hot expert", "empty expert", "only k experts"])
@pytest.mark.parametrize("shape", [(1024, 256, 128, 16, 4), (1000, 128, 64, 8, 8), (37, 64, 32, 5, 1), (2048, 512, 256, 64, 8)])
@pytest.mark.parametrize("backend", ["quack", "grouped_mm", "megablocks", "loop"])
def test_experts(backend: str, shape: tuple[int, int, int, int, int], routing: str) -> None:
    skip_unless_it_runs(moe_mlp, backend)

    def run(values: list[Tensor], name: str) -> list[Tensor]:
        leaves = [v.detach().requires_grad_() for v in values[:4]]
        y, counts = moe_mlp.moe_mlp(leaves[0], leaves[1], leaves[2], leaves[3], values[4], name)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
        return [y.detach(), counts.float(), *torch.autograd.grad(y, leaves, dy)]

    values = [v.cuda() for v in inputs(*shape, routing)]
    assert max(errors(run, values, backend)) < 0.03


@pytest.mark.parametrize("backend", ["quack", "grouped_mm"])
def test_experts_give_the_same_bits_every_time(backend: str) -> None:
    skip_unless_it_runs(moe_mlp, backend)
    values = [v.cuda() for v in inputs(1024, 256, 128, 16, 4)]
    results = []
    for _ in range(3):
        leaves = [v.bfloat16().detach().requires_grad_() for v in values[:4]]
        y, _ = moe_mlp.moe_mlp(leaves[0], leaves[1], leaves[2], leaves[3], values[4], backend)
        results.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), leaves)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("z_weight", [0.0, 1e-3])
@pytest.mark.parametrize(("n", "vocab"), [(1000, 50304), (37, 1000), (4096, 4096)])
@pytest.mark.parametrize("backend", ["quack", "triton", "chunked"])
def test_loss(monkeypatch: pytest.MonkeyPatch, backend: str, n: int, vocab: int, z_weight: float, masked: bool) -> None:
    skip_unless_it_runs(cross_entropy, backend, dataclasses.replace(NEEDS, has_z_loss=z_weight > 0, vocab_rows=vocab))
    monkeypatch.setitem(cross_entropy.CHUNK_ELEMENTS, "cuda", 300 * vocab)  # several chunks and a short one
    labels = torch.randint(0, vocab, (n,), device="cuda")
    if masked:
        labels[::3] = cross_entropy.IGNORE

    def run(values: list[Tensor], name: str) -> list[Tensor]:
        leaves = [v.detach().requires_grad_() for v in values]
        loss, ce, _ = cross_entropy.linear_cross_entropy(leaves[0], leaves[1], labels, z_weight, name)
        return [loss.detach(), ce, *torch.autograd.grad(loss / n, leaves)]

    leaves = [torch.randn(n, 256, device="cuda"), torch.randn(vocab, 256, device="cuda") / 16]
    assert max(errors(run, leaves, backend)) < 0.03


def test_auto_chooses_and_what_it_chooses_is_right() -> None:
    kernels = choose_kernels({"attention": "auto", "moe_mlp": "auto", "cross_entropy": "auto"}, NEEDS)
    print(kernels.describe(), *kernels.passed_over, sep="\n")
    for kernel in ("attention", "moe_mlp", "cross_entropy"):
        assert find_fault(kernel, getattr(kernels, kernel), NEEDS) is None
