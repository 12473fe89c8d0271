"""Triton kernels against plain torch; without a GPU in Triton's interpreter, where they are the same programs run by NumPy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from olmo_train.kernels import cross_entropy, expert_pieces, experts, moe_mlp, routing, top_k
from olmo_train.kernels.triton_cross_entropy import loss_and_gradient
from olmo_train.kernels.triton_moe import gather_sum, swiglu, swiglu_backward
from olmo_train.kernels.triton_routing import counting_sort
from olmo_train.kernels.triton_top_k import top_k_rows
from tests.olmo_train.kernels.test_moe_mlp import inputs, run

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def close(ours: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours.float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", ["random", "one expert", "some empty"])
@pytest.mark.parametrize(("n", "k", "n_experts"), [(1, 1, 3), (100, 2, 8), (77, 8, 64), (300, 3, 100), (40, 4, 200)])
def test_the_counting_sort_is_a_stable_sort(n: int, k: int, n_experts: int, case: str) -> None:
    ids = torch.randint(0, n_experts, (n, k), generator=torch.Generator().manual_seed(n))
    if case == "one expert":
        ids[:] = n_experts - 1
    if case == "some empty":
        ids = ids // 3 * 3
    expected = routing.route_by_sorting(ids, n_experts)
    for ours, theirs in zip(counting_sort(ids.reshape(-1).to(DEVICE), n_experts), expected, strict=True):
        assert ours.dtype == torch.int32
        assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k", "d"), [(5, 2, 16), (33, 8, 100), (4, 3, 2500)])
@pytest.mark.parametrize("weighted", [True, False])
def test_gather_sum_adds_each_tokens_slots(n: int, k: int, d: int, weighted: bool, dtype: torch.dtype) -> None:
    y = normal(n * k, d, dtype=dtype)
    slots = torch.randperm(n * k, generator=torch.Generator().manual_seed(1)).view(n, k).int().to(DEVICE)
    weights = normal(n, k, seed=2) if weighted else None
    expected = (y[slots.long()].float() * (1 if weights is None else weights[..., None])).sum(1)
    close(gather_sum(y, slots, weights), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("s", "f"), [(3, 8), (17, 100), (2, 2300)])
def test_swiglu_and_its_gradient_are_torchs(s: int, f: int, dtype: torch.dtype) -> None:
    h, da, gates = normal(s, 2 * f, dtype=dtype), normal(s, f, dtype=dtype, seed=1), normal(s, seed=2)
    close(swiglu(h), expert_pieces.swiglu(h.cpu().float()).to(DEVICE), dtype)
    leaf, weight = h.float().requires_grad_(), gates.clone().requires_grad_()
    gate, up = leaf.chunk(2, -1)
    activation = torch.nn.functional.silu(gate) * up
    dh, dgates = torch.autograd.grad(activation * weight[:, None], (leaf, weight), da.float())
    ours = swiglu_backward(da, h, gates)
    for mine, expected in zip(ours, (dh, (activation * weight[:, None]).detach(), dgates), strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(mine.float(), expected, rtol=tolerance, atol=tolerance * max(1, f**0.5 / 10))


@pytest.mark.parametrize(("n", "n_experts", "k"), [(1, 4, 4), (50, 64, 8), (33, 100, 3), (7, 3, 1)])
def test_top_k_is_torchs(n: int, n_experts: int, k: int) -> None:
    scores = normal(n, n_experts, seed=n)
    assert torch.equal(top_k_rows(scores, k), scores.topk(k, -1).indices)


def test_top_k_takes_the_first_of_equals_and_a_number_before_nan() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, 0.0], [float("nan"), -1.0, float("-inf"), -2.0], [0.0] * 4], device=DEVICE)
    assert top_k_rows(scores, 3).tolist() == [[1, 2, 0], [1, 3, 0], [0, 1, 2]]


def test_top_k_keeps_its_promises_to_the_compiler() -> None:
    torch.library.opcheck(torch.ops.olmo_train.top_k.default, (normal(6, 8), 3))
    assert top_k.top_k(normal(6, 8), 3).shape == (6, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", ["none", "some", "all"])
@pytest.mark.parametrize(("n", "vocab", "z_weight"), [(3, 50, 0.0), (5, 5000, 1e-2), (2, 8192, 0.0)])
def test_loss_and_gradient_in_place_are_the_definition(
    n: int, vocab: int, z_weight: float, masked: str, dtype: torch.dtype
) -> None:
    logits = (normal(n, vocab, seed=vocab) * 3).to(dtype)
    labels = torch.randint(0, vocab, (n,), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    if masked != "none":
        labels[slice(None) if masked == "all" else slice(None, None, 2)] = cross_entropy.IGNORE
    leaf = logits.float().requires_grad_()
    ce = torch.nn.functional.cross_entropy(leaf, labels, ignore_index=cross_entropy.IGNORE, reduction="none")
    z = leaf.logsumexp(-1).square() * (labels != cross_entropy.IGNORE)
    (expected,) = torch.autograd.grad((ce + z_weight * z).sum(), leaf)
    untouched = logits.clone()
    for needs_grad in (False, True):
        ours = loss_and_gradient(logits, labels, z_weight, cross_entropy.IGNORE, needs_grad)
        torch.testing.assert_close(ours[0], ce.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours[1], z.detach(), rtol=1e-5, atol=1e-5)
        close(logits, expected if needs_grad else untouched, dtype)


def test_loss_of_logits_that_overflow_an_exponential() -> None:
    logits = torch.tensor([[400.0, -400.0, 100.0], [float("-inf"), 0.0, 0.0]], device=DEVICE)
    ce, _ = loss_and_gradient(logits, torch.tensor([2, 1], device=DEVICE), 0.0, cross_entropy.IGNORE, True)
    torch.testing.assert_close(ce.cpu(), torch.tensor([300.0, 2.0]).where(torch.tensor([True, False]), torch.tensor(2.0).log()))
    assert logits.isfinite().all()


@pytest.mark.parametrize("routed", ["random", "one hot expert", "empty expert"])
def test_the_whole_expert_layer_on_triton_pieces(monkeypatch: pytest.MonkeyPatch, routed: str) -> None:
    """The path that a GPU takes around its grouped GEMMs, here with torch's own on the CPU."""
    on_a_gpu(monkeypatch)
    values = [v.to(DEVICE) for v in inputs(37, 32, 16, 8, 3, routed)]
    for ours, expected in zip(run(values, "grouped_mm"), run(values, "reference"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send CPU tensors through the branches of CUDA tensors that are Triton's."""

    def by_counting(ids: Tensor, n: int) -> routing.Routing:
        return routing.Routing(*counting_sort(ids.reshape(-1), n))

    monkeypatch.setattr(expert_pieces, "uses_triton", lambda _: True)
    monkeypatch.setattr(moe_mlp, "route", by_counting)


@pytest.mark.parametrize("z_weight", [0.0, 1e-2])
def test_the_whole_output_projection_on_triton(monkeypatch: pytest.MonkeyPatch, z_weight: float) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_ELEMENTS, "cpu", 7 * 97)
    x, w = normal(30, 12), normal(97, 12, seed=1)
    labels = torch.randint(0, 97, (30,), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    labels[::4] = cross_entropy.IGNORE
    results: list[Any] = []
    for backend in ("triton", "reference"):
        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        loss, ce, z = cross_entropy.linear_cross_entropy(*leaves, labels, z_weight, backend)
        results.append([loss.detach(), ce, z, *torch.autograd.grad(loss * 0.3, leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


# ---- quack's calls: which tensor in which layout -------------------------------------------------------------------------------


def interleaved(t: Tensor, dim: int) -> Tensor:
    """[g0, g1, ..., u0, u1, ...] -> [g0, u0, g1, u1, ...] along dim."""
    return t.unflatten(dim, (2, -1)).transpose(dim - 1, dim).flatten(dim - 1, dim)


def quack_gemm(a: Tensor, b: Tensor, out: Tensor | None = None, cu_seqlens_m: Any = None, cu_seqlens_k: Any = None,
               A_idx: Any = None, tuned: bool = True, concat_layout: Any = None) -> Tensor:  # fmt: skip
    """What quack.gemm_interface.gemm documents (0.6.5): rows of `a` (varlen_m) or its columns (varlen_k) by group, gathered by A_idx."""
    ends = (cu_seqlens_m if cu_seqlens_m is not None else cu_seqlens_k).tolist()
    assert ends[0] == 0
    if concat_layout == ("B",):
        b = interleaved(b, -1 if b.stride(-1) != 1 else -2)
    if cu_seqlens_m is not None:
        a = a[A_idx.long()] if A_idx is not None else a
        return torch.cat([a[ends[e] : ends[e + 1]] @ b[e] for e in range(len(ends) - 1)])
    assert out is not None
    a = a[:, A_idx.long()]
    result = torch.stack([a[:, ends[e] : ends[e + 1]] @ b[ends[e] : ends[e + 1]] for e in range(len(ends) - 1)])
    if concat_layout == ("out",):  # the dim that is not contiguous in memory comes apart into halves
        dim = -1 if out.stride(-1) != 1 else -2
        even, odd = result.unflatten(dim, (-1, 2)).unbind(dim)
        result = torch.cat([even, odd], dim)
    return out.copy_(result)


def quack_gemm_gated(x: Tensor, w: Tensor, activation: str, cu_seqlens_m: Tensor, A_idx: Tensor, tuned: bool,
                     concat_layout: Any) -> tuple[Tensor, Tensor]:  # fmt: skip
    assert activation == "swiglu"
    h = quack_gemm(x, w, cu_seqlens_m=cu_seqlens_m, A_idx=A_idx, concat_layout=concat_layout)
    return h, torch.nn.functional.silu(h[:, ::2]) * h[:, 1::2]


def quack_gemm_dgated(dy: Tensor, w: Tensor, h: Tensor, activation: str, colvec_scale: Tensor, colvec_reduce: bool,
                      cu_seqlens_m: Tensor, A_idx: Tensor, dynamic_scheduler: bool, tuned: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The reduction takes the gradient before it is scaled (quack/gemm_interface.py; SonicMoE's use of it)."""
    assert colvec_reduce
    assert colvec_scale.dtype == torch.float32
    da = quack_gemm(dy, w, cu_seqlens_m=cu_seqlens_m, A_idx=A_idx)
    gate, up, scale = h[:, ::2], h[:, 1::2], colvec_scale[:, None]
    silu = gate * gate.sigmoid()
    dgate = da * scale * up * (gate.sigmoid() + silu * (1 - gate.sigmoid()))
    dh = torch.stack([dgate, da * scale * silu], -1).flatten(1)
    return dh, silu * up * scale, (da * silu * up).sum(-1)


def stand_in_for_quack(monkeypatch: pytest.MonkeyPatch) -> None:
    """quack needs a Hopper GPU; this is its documented interface in ten lines of torch each, so that our calls are checked here."""
    import sys
    import types

    module = types.ModuleType("quack.gemm_interface")
    names: dict[str, Callable[..., Any]] = {"gemm": quack_gemm, "gemm_gated": quack_gemm_gated, "gemm_dgated": quack_gemm_dgated}
    for name, function in names.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "quack", types.ModuleType("quack"))
    monkeypatch.setitem(sys.modules, "quack.gemm_interface", module)


@pytest.mark.parametrize("routed", ["random", "one hot expert", "empty expert", "only k experts"])
@pytest.mark.parametrize("shape", [(64, 16, 8, 4, 2), (37, 32, 16, 8, 8), (128, 24, 12, 5, 1)])
def test_our_calls_of_quack_are_the_expert_layer(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int, int, int], routed: str
) -> None:
    stand_in_for_quack(monkeypatch)
    values = inputs(*shape, routed)
    for ours, expected in zip(run(values, "quack"), run(values, "reference"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def stand_in_for_grouped_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    """MegaBlocks' grouped GEMM (grouped_gemm/backend.py), which is built by a CUDA compiler, in torch."""
    import sys
    import types

    def gmm(a: Tensor, b: Tensor, batch_sizes: Tensor, trans_a: bool, trans_b: bool) -> Tensor:
        assert a.is_contiguous()
        assert b.is_contiguous()
        assert batch_sizes.device.type == "cpu"
        assert batch_sizes.dtype == torch.int64
        parts = a.split(batch_sizes.tolist())
        if trans_a:
            return torch.stack([x.T @ y for x, y in zip(parts, b.split(batch_sizes.tolist()), strict=True)])
        return torch.cat([x @ (w.T if trans_b else w) for x, w in zip(parts, b, strict=True)])

    package, backend = types.ModuleType("grouped_gemm"), types.ModuleType("grouped_gemm.backend")
    backend.gmm = gmm  # type: ignore[attr-defined]
    package.backend = backend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "grouped_gemm", package)
    monkeypatch.setitem(sys.modules, "grouped_gemm.backend", backend)


@pytest.mark.parametrize("routed", ["random", "one hot expert", "empty expert"])
def test_our_calls_of_megablocks_are_the_expert_layer(monkeypatch: pytest.MonkeyPatch, routed: str) -> None:
    stand_in_for_grouped_gemm(monkeypatch)
    values = inputs(37, 32, 16, 8, 3, routed)
    for ours, expected in zip(run(values, "megablocks"), run(values, "reference"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_every_backend_of_the_experts_is_tested_here_or_beside() -> None:
    assert set(moe_mlp.BACKENDS) == {"quack", "grouped_mm", "megablocks", "loop", "reference"}
    assert experts.why_not is moe_mlp.why_not
