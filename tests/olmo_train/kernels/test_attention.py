"""Attention of every backend against the definition, under every mask."""

import pytest
import torch
from torch import Tensor

from olmo_train.kernels.attention import attention, build_mask
from olmo_train.kernels.choose import choose_kernels

B, T = 2, 24
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 1 + [2] * 18, [0] * 24], dtype=torch.int32)


def run(backend: str, heads: int, kv_heads: int, window: int | None, documents: Tensor | None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(heads * 10 + kv_heads)
    q, k, v = (torch.randn(B, h, T, 8, generator=generator).requires_grad_() for h in (heads, kv_heads, kv_heads))
    out = attention(q, k, v, build_mask(T, window, documents, torch.device("cpu")), backend)
    grads = torch.autograd.grad(out, (q, k, v), torch.randn(out.shape, generator=generator))
    return [out.detach(), *grads]


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["crossing", "masked"])
@pytest.mark.parametrize("window", [None, 1, 7, 24, 100])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_sdpa_is_the_reference(heads: int, kv_heads: int, window: int | None, documents: Tensor | None) -> None:
    ours, expected = run("sdpa", heads, kv_heads, window, documents), run("reference", heads, kv_heads, window, documents)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_the_mask_is_its_definition(window: int | None) -> None:
    allowed = build_mask(T, window, DOCUMENTS, torch.device("cpu")).allowed
    assert allowed is not None
    for b in range(B):
        for i in range(T):
            for j in range(T):
                expected = j <= i and (window is None or i - j < window) and DOCUMENTS[b, i] == DOCUMENTS[b, j]
                assert bool(allowed[b, 0, i, j]) == bool(expected)


def test_plain_causal_attention_has_no_mask_at_all() -> None:
    assert build_mask(T, None, None, torch.device("cpu")).allowed is None
    assert build_mask(T, T, None, torch.device("cpu")).allowed is None


def test_auto_picks_what_is_best_for_the_device() -> None:
    wanted = {"attention": "auto", "moe_mlp": "auto", "cross_entropy": "auto"}
    assert choose_kernels(wanted, torch.device("cpu")).describe() == "attention=sdpa, moe_mlp=loop, cross_entropy=chunked"
    assert choose_kernels(wanted, torch.device("cuda")).moe_mlp == "grouped_mm"
    assert choose_kernels({**wanted, "moe_mlp": "reference"}, torch.device("cpu")).moe_mlp == "reference"
