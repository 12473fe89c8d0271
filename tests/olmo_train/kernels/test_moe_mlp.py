"""The expert MLP of every backend against the definition: values and all gradients, however tokens fall on experts."""

import pytest
import torch
from torch import Tensor

from olmo_train.kernels import cpu_threads
from olmo_train.kernels.moe_mlp import moe_mlp

FAST = ["loop", "grouped_mm"]  # those a CPU runs; the others: test_triton.py


def inputs(
    n: int, d: int, f: int, experts: int, k: int, routing: str = "random", dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """(x, w_in, w_out, gates, expert ids)."""
    generator = torch.Generator().manual_seed(n * 1000 + d + experts)
    x = torch.randn(n, d, generator=generator)
    w_in, w_out = (
        torch.randn(experts, 2 * f, d, generator=generator) / d**0.5,
        torch.randn(experts, d, f, generator=generator) / f**0.5,
    )
    scores = torch.randn(n, experts, generator=generator)
    if routing == "one hot expert":
        scores[:, 1] += 100
    if routing == "empty expert":
        scores[:, 0] -= 100
    if routing == "only k experts":
        scores[:, :k] += 100
    gates, ids = scores.softmax(-1).topk(k, -1)
    return [t.to(dtype) for t in (x, w_in, w_out, gates)] + [ids]


def run(values: list[Tensor], backend: str) -> list[Tensor]:
    """Output and gradients of x, w_in, w_out, gates."""
    leaves = [t.detach().clone().requires_grad_() for t in values[:4]]
    y, counts = moe_mlp(*leaves, values[4], backend)
    assert torch.equal(counts.long(), values[4].flatten().bincount(minlength=len(values[1])))
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("routing", ["random", "one hot expert", "empty expert", "only k experts"])
@pytest.mark.parametrize("shape", [(64, 16, 8, 4, 2), (37, 32, 16, 8, 8), (128, 24, 12, 5, 1), (1, 8, 4, 3, 2)])
def test_every_backend_is_the_reference(backend: str, routing: str, shape: tuple[int, int, int, int, int]) -> None:
    values = inputs(*shape, routing)
    for ours, expected in zip(run(values, backend), run(values, "reference"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(33, 17, 7, 3, 2), (50, 31, 47, 6, 3)])
def test_the_loop_takes_any_width(shape: tuple[int, int, int, int, int]) -> None:
    values = inputs(*shape)
    for ours, expected in zip(run(values, "loop"), run(values, "reference"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_double_precision_agrees_to_its_own_accuracy() -> None:
    values = inputs(40, 12, 6, 4, 2, dtype=torch.float64)
    for ours, expected in zip(run(values, "loop"), run(values, "reference"), strict=True):
        torch.testing.assert_close(ours, expected.to(ours.dtype), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", FAST)
def test_bfloat16_agrees_with_float32(backend: str) -> None:
    values = inputs(64, 32, 16, 4, 2)
    low = [t.bfloat16() for t in values[:4]] + values[4:]
    for ours, expected in zip(run(low, backend), run(values, "reference"), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - expected).norm() / expected.norm() < 0.02


def test_the_number_of_threads_changes_no_bit() -> None:
    values = inputs(256, 32, 16, 8, 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(values, "loop")
        torch.set_num_threads(2)
        two = run(values, "loop")
        assert torch.get_num_threads() == 2  # starting workers changed no setting
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_work_on_threads_reports_its_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    def fail(item: int) -> None:
        if item == 3:
            raise RuntimeError("piece 3")

    try:
        with pytest.raises(RuntimeError, match="piece 3"):
            cpu_threads.run_each(fail, list(range(6)))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", FAST)
def test_the_operator_keeps_its_promises_to_the_compiler(backend: str) -> None:
    """Schema, fake tensors and autograd registration, by torch's own checker."""
    values = inputs(16, 8, 4, 4, 2)
    leaves = [t.requires_grad_() for t in values[:4]]
    torch.library.opcheck(torch.ops.olmo_train.moe_mlp.default, (*leaves, values[4], backend))


def test_no_graph_break_under_compile() -> None:
    values = inputs(16, 8, 4, 4, 2)
    compiled = torch.compile(moe_mlp, backend="aot_eager", fullgraph=True)
    expected = run(values, "loop")
    leaves = [t.clone().requires_grad_() for t in values[:4]]
    y, _ = compiled(*leaves, values[4], "loop")
    torch.testing.assert_close(y.detach(), expected[0])
