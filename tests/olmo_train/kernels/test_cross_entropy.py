"""Projection and cross entropy in chunks against the definition, and against torch's."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from olmo_train.kernels import cross_entropy
from olmo_train.kernels.cross_entropy import IGNORE, linear_cross_entropy


def run(backend: str, n: int, vocab: int, z_weight: float, masked: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n + vocab)
    x = torch.randn(n, 12, generator=generator).to(dtype).requires_grad_()
    w = (torch.randn(vocab, 12, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(0, vocab, (n,), generator=generator)
    if masked == "some":
        labels[::3] = IGNORE
    if masked == "all":
        labels[:] = IGNORE
    loss, ce, z = linear_cross_entropy(x, w, labels, z_weight, backend)
    dx, dw = torch.autograd.grad(loss * 0.37, (x, w))
    return [loss.detach(), ce, z, dx, dw]


@pytest.mark.parametrize("masked", ["none", "some", "all"])
@pytest.mark.parametrize("z_weight", [0.0, 1e-2])
@pytest.mark.parametrize(("n", "vocab"), [(1, 5), (50, 97), (33, 101)])
def test_chunks_are_the_whole(monkeypatch: pytest.MonkeyPatch, n: int, vocab: int, z_weight: float, masked: str) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_ELEMENTS, "cpu", 7 * vocab)  # 7 rows at a time: odd chunks and a short last one
    for ours, expected in zip(
        run("chunked", n, vocab, z_weight, masked), run("reference", n, vocab, z_weight, masked), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_the_reference_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(20, 8, generator=generator), torch.randn(30, 8, generator=generator)
    labels = torch.randint(0, 30, (20,), generator=generator)
    _, ce, z = linear_cross_entropy(x, w, labels, 0.0, "reference")
    torch.testing.assert_close(ce, F.cross_entropy(x @ w.T, labels, reduction="sum"))
    torch.testing.assert_close(z, (x @ w.T).logsumexp(-1).square().sum())


def test_large_logits_do_not_overflow() -> None:
    x = torch.full((4, 2), 200.0, requires_grad=True)
    w = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.5, 0.5]], requires_grad=True)
    loss, _, _ = linear_cross_entropy(x, w, torch.tensor([0, 0, 1, 2]), 0.0, "chunked")
    dx, dw = torch.autograd.grad(loss, (x, w))
    assert torch.isfinite(torch.cat([loss[None], dx.flatten(), dw.flatten()])).all()
    torch.testing.assert_close(loss.detach(), torch.tensor(800.0 + 200.0))


def test_bfloat16_accumulates_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_ELEMENTS, "cpu", 5 * 97)
    low, high = run("chunked", 200, 97, 0.0, "none", torch.bfloat16), run("reference", 200, 97, 0.0, "none")
    for ours, expected in zip(low, high, strict=True):
        assert (ours.float() - expected).norm() / (expected.norm() + 1e-9) < 0.02


def test_without_gradients_nothing_is_kept() -> None:
    with torch.no_grad():
        loss, ce, _ = linear_cross_entropy(torch.randn(6, 4), torch.randn(9, 4), torch.zeros(6, dtype=torch.long), 0.0, "chunked")
    assert not loss.requires_grad
    torch.testing.assert_close(loss, ce)
