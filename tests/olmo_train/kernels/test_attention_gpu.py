"""Attention on a GPU: every backend that is installed against the definition in float32, compiled, deterministic."""

import pytest
import torch
from torch import Tensor

from olmo_train.data.loader import document_offsets
from olmo_train.kernels.attention import BACKENDS, Documents, attention, build_mask, why_not
from olmo_train.kernels.needs import Needs

pytestmark = pytest.mark.gpu

FAST = [backend for backend in BACKENDS if backend != "reference"]
# (B, T, heads, kv heads, head width): plain, grouped, one kv head, odd lengths, other widths.
SHAPES = [(2, 512, 4, 4, 128), (1, 777, 8, 2, 128), (3, 130, 4, 1, 64), (2, 1, 2, 2, 128), (1, 65, 2, 2, 80)]


@pytest.fixture(params=FAST)
def backend(request: pytest.FixtureRequest) -> str:
    """A backend that can run on this machine."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    needs = Needs(torch.device("cuda"), torch.bfloat16, 256, 2, 2, 128, 512)
    problem = why_not(request.param, needs)
    if problem is not None:
        pytest.skip(problem)
    return request.param


def documents_of(b: int, t: int, share: float) -> Documents:
    """A position begins a document with probability `share`."""
    starts = torch.rand(b, t, generator=torch.Generator().manual_seed(7)) < share
    numbers_BT = starts.int().cumsum(1, dtype=torch.int32)
    return Documents(numbers_BT.cuda(), torch.from_numpy(document_offsets(numbers_BT.numpy())).cuda())


def fused(shape: tuple[int, int, int, int, int]) -> Tensor:
    """q, k, v as one projection would give them, in float32 that bfloat16 can hold."""
    b, t, h, g, c = shape
    qkv = torch.randn(b, t, (h + 2 * g) * c, generator=torch.Generator().manual_seed(t))
    return qkv.bfloat16().float().cuda()


def split(qkv: Tensor, shape: tuple[int, int, int, int, int]) -> tuple[Tensor, ...]:
    b, t, h, g, c = shape
    return tuple(x.view(b, t, -1, c) for x in qkv.split([h * c, g * c, g * c], -1))


def run(
    qkv: Tensor, shape: tuple[int, int, int, int, int], window: int | None, documents: Documents | None, backend: str
) -> tuple[Tensor, Tensor]:
    """The output and the gradient of qkv; v is a view with strides."""
    leaf = qkv.detach().requires_grad_()
    q, k, v = split(leaf, shape)
    mask = build_mask((shape[0], shape[1]), window, documents, qkv.device, backend)
    out = attention(q.contiguous(), k.contiguous(), v, mask, backend)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out.detach(), torch.autograd.grad(out, leaf, weights)[0]


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours.float() - expected).norm() / expected.norm().clamp_min(1e-9))


@pytest.mark.parametrize("share", [None, 0.01, 0.5], ids=["crossing", "long documents", "short documents"])
@pytest.mark.parametrize("window", [None, 1, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_backend_is_the_reference(
    backend: str, shape: tuple[int, int, int, int, int], window: int | None, share: float | None
) -> None:
    if backend == "cudnn" and shape[1] == 1:
        pytest.skip("cuDNN takes no single key")
    documents = None if share is None else documents_of(shape[0], shape[1], share)
    qkv = fused(shape)
    out, grad = run(qkv.bfloat16(), shape, window, documents, backend)
    expected_out, expected_grad = run(qkv, shape, window, documents, "reference")
    assert out.dtype == grad.dtype == torch.bfloat16
    assert error(out, expected_out) < 0.01
    parts = zip(split(grad, shape), split(expected_grad, shape), ("q", "k", "v"), strict=True)
    for ours, expected, name in parts:
        if name != "v" and (window == 1 or shape[1] == 1):
            # One key: its probability is 1 whatever the score, so the gradient is rounding around zero.
            assert ours.abs().max() < 0.05
        else:
            assert error(ours, expected) < 0.02, name


def test_every_backend_compiles_whole_and_once(backend: str) -> None:
    shape = (2, 256, 4, 2, 128)
    qkv = fused(shape).bfloat16()
    torch._dynamo.reset()
    compiled = torch.compile(attention, fullgraph=True)
    for n, share in enumerate((0.01, 0.1, 0.9)):
        mask = build_mask((2, 256), 100, documents_of(2, 256, share), qkv.device, backend)
        with torch.compiler.set_stance("fail_on_recompile" if n else "default"):
            results = []
            for function in (attention, compiled):
                leaf = qkv.detach().requires_grad_()
                out = function(*split(leaf, shape), mask, backend)
                results.append((out.detach(), torch.autograd.grad(out, leaf, torch.ones_like(out))[0]))
        for ours, expected in zip(*results, strict=True):
            assert error(ours, expected.float()) < 0.01


def test_deterministic_algorithms_give_the_same_bits(backend: str) -> None:
    # Grouped queries under a mask leave torch's sdpa only matrix products, which want an environment variable to be deterministic.
    shape = (2, 2048, 4, 4 if backend == "sdpa" else 2, 128)
    qkv, documents = fused(shape).bfloat16(), documents_of(2, 2048, 0.002)
    torch.use_deterministic_algorithms(True)
    try:
        if why_not(backend, Needs(qkv.device, torch.bfloat16, 256, 4, 2, 128, 2048)) is not None:
            pytest.skip("this backend has no deterministic backward pass, and says so")
        results = [run(qkv, shape, None, documents, backend) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for out, grad in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(grad, results[0][1])
