"""Attention of every backend that runs without a GPU against the definition, under every mask; the operator's promises."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from olmo_train.data.loader import document_offsets
from olmo_train.kernels.attention import BACKENDS, Documents, Mask, attention, auto_order, build_mask, why_not
from olmo_train.kernels.flash_attention import LIBRARIES, flash_attention
from olmo_train.kernels.needs import Needs

CPU = torch.device("cpu")
B, T, C = 2, 24, 8
NUMBERS = torch.tensor([[0] * 5 + [1] * 1 + [2] * 18, [0] * 24], dtype=torch.int32)


def documents_of(numbers_BT: Tensor) -> Documents:
    return Documents(numbers_BT, torch.from_numpy(document_offsets(numbers_BT.numpy())))


def inputs(heads: int, kv_heads: int, dtype: torch.dtype = torch.float32, t: int = T) -> list[Tensor]:
    generator = torch.Generator().manual_seed(heads * 10 + kv_heads)
    # Views of one fused projection, as in the model.
    qkv = torch.randn(B, t, (heads + 2 * kv_heads) * C, generator=generator).to(dtype)
    return [
        x.view(B, t, n, C)
        for x, n in zip(qkv.split([heads * C, kv_heads * C, kv_heads * C], -1), (heads, kv_heads, kv_heads), strict=True)
    ]


def run(backend: str, values: list[Tensor], window: int | None, documents: Documents | None) -> list[Tensor]:
    """The output and the gradients of q, k, v."""
    leaves = [x.detach().requires_grad_() for x in values]
    b, t = leaves[0].shape[:2]
    out = attention(*leaves, build_mask((b, t), window, documents, CPU, backend), backend)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights)]


@pytest.mark.parametrize("numbers", [None, NUMBERS], ids=["crossing", "masked"])
@pytest.mark.parametrize("window", [None, 1, 7, 24, 100])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("backend", ["sdpa", "flash4"])
def test_every_backend_is_the_reference(
    backend: str, heads: int, kv_heads: int, window: int | None, numbers: Tensor | None
) -> None:
    """On a CPU the flash backends are a loop over the documents that the offsets name: that pins what offsets and window mean."""
    documents = None if numbers is None else documents_of(numbers)
    values = inputs(heads, kv_heads)
    for ours, expected in zip(run(backend, values, window, documents), run("reference", values, window, documents), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("t", [1, 2, 63, 130])
def test_any_length_and_any_documents(t: int, window: int | None) -> None:
    generator = torch.Generator().manual_seed(t)
    numbers = (torch.rand(B, t, generator=generator) < 0.3).int().cumsum(1, dtype=torch.int32)  # from one token to many
    values = inputs(4, 2, t=t)
    expected = run("reference", values, window, documents_of(numbers))
    for backend in ("sdpa", *LIBRARIES):
        for ours, value in zip(run(backend, values, window, documents_of(numbers)), expected, strict=True):
            torch.testing.assert_close(ours, value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "flash4"])
def test_bfloat16_agrees_with_float32(backend: str) -> None:
    values = inputs(4, 2, torch.bfloat16)
    expected = run("reference", [x.float() for x in values], 7, documents_of(NUMBERS))
    for ours, value in zip(run(backend, values, 7, documents_of(NUMBERS)), expected, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - value).norm() / value.norm() < 0.02


# ---- masks -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 3])
def test_the_mask_is_its_definition(window: int | None) -> None:
    allowed = build_mask((B, T), window, documents_of(NUMBERS), CPU, "sdpa").allowed
    assert allowed is not None
    for b in range(B):
        for i in range(T):
            for j in range(T):
                expected = j <= i and (window is None or i - j < window) and NUMBERS[b, i] == NUMBERS[b, j]
                assert bool(allowed[b, 0, i, j]) == bool(expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_plain_causal_attention_has_no_mask_at_all(backend: str) -> None:
    for window in (None, T, T + 1):
        mask = build_mask((B, T), window, None, CPU, backend)
        if backend == "varlen":  # knows rows only by offsets
            assert mask.allowed is None
            assert mask.window is None
            assert mask.offsets is not None
            assert mask.offsets.tolist() == [0, T, 2 * T]
        else:
            assert mask == Mask(None, None, None)


@pytest.mark.parametrize("backend", [*LIBRARIES, "varlen"])
def test_kernels_that_skip_what_is_masked_get_no_mask_to_read(backend: str) -> None:
    documents = documents_of(NUMBERS)
    assert build_mask((B, T), 3, documents, CPU, backend) == Mask(None, 3, documents.offsets)


def test_a_mask_made_for_another_backend_is_a_bug_that_shows() -> None:
    values = inputs(2, 2)
    for ours, other in (("sdpa", "flash4"), ("flash4", "sdpa")):
        with pytest.raises(AssertionError):
            attention(*values, build_mask((B, T), 3, None, CPU, other), ours)


# ---- the operator ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offsets", [None, documents_of(NUMBERS).offsets], ids=["rows", "documents"])
def test_the_operator_keeps_its_promises_to_the_compiler(offsets: Tensor | None) -> None:
    """Schema, fake tensors and autograd registration, by torch's own checker."""
    leaves = [x.requires_grad_() for x in inputs(4, 2)]
    torch.library.opcheck(flash_attention, (*leaves, offsets, 5, "flash4"))


@pytest.mark.parametrize("with_documents", [False, True])
def test_the_logsumexp_is_that_of_the_scores(with_documents: bool) -> None:
    q, k, v = inputs(4, 2)
    documents = documents_of(NUMBERS) if with_documents else None
    _, lse = flash_attention(q, k, v, None if documents is None else documents.offsets, 5, "flash4")
    allowed = build_mask((B, T), 5, documents, CPU, "reference").allowed
    assert allowed is not None
    scores_BHTT = q.transpose(1, 2) @ k.repeat_interleave(2, 2).transpose(1, 2).mT / C**0.5
    expected_BHT = scores_BHTT.masked_fill(~allowed, float("-inf")).logsumexp(-1)
    torch.testing.assert_close(lse, expected_BHT.transpose(0, 1).flatten(1) if with_documents else expected_BHT)


def fused_views(device: str, requires_grad: bool) -> tuple[Tensor, ...]:
    qkv = torch.empty(B, T, 8 * C, device=device, dtype=torch.bfloat16, requires_grad=requires_grad)
    return tuple(x.view(B, T, -1, C) for x in qkv.split([4 * C, 2 * C, 2 * C], -1))


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("backend", [*LIBRARIES, "varlen"])
def test_shapes_on_a_gpu_are_known_without_one_and_without_the_library(backend: str, with_documents: bool) -> None:
    with FakeTensorMode():
        q, k, v = fused_views("cuda", requires_grad=False)  # torch's autograd would look for the GPU
        offsets = torch.empty(64, device="cuda", dtype=torch.int32) if with_documents or backend == "varlen" else None
        out = attention(q, k, v, Mask(None, 5, offsets), backend)
        assert (out.shape, out.dtype, out.device.type, out.is_contiguous()) == (q.shape, torch.bfloat16, "cuda", True)
        if backend == "varlen":
            return
        lse = flash_attention(q, k, v, offsets, 5, backend)[1]
        assert (lse.shape, lse.dtype) == ((4, B * T) if with_documents else (B, 4, T), torch.float32)
        backward = torch.ops.olmo_train.flash_attention_backward
        for x, grad in zip((q, k, v), backward(out, q, k, v, out, lse, offsets, 5, backend), strict=True):
            assert (grad.shape, grad.dtype, grad.device.type, grad.is_contiguous()) == (x.shape, x.dtype, "cuda", True)


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("backend", [*LIBRARIES, "varlen"])
def test_gradients_are_traced_without_the_library(backend: str, with_documents: bool) -> None:
    q, k, v = fused_views("meta", requires_grad=True)
    offsets = torch.empty(64, device="meta", dtype=torch.int32) if with_documents or backend == "varlen" else None
    out = attention(q, k, v, Mask(None, 5, offsets), backend)
    for x, grad in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
        assert (grad.shape, grad.dtype) == (x.shape, torch.bfloat16)


def test_the_compiler_finds_no_graph_break_and_compiles_once_for_all_batches() -> None:
    n_compiled = 0

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal n_compiled
        n_compiled += 1
        return graph

    values = inputs(4, 2, t=200)
    for dynamic in (None, False):
        torch._dynamo.reset()
        n_compiled = 0
        compiled = torch.compile(attention, backend=count, fullgraph=True, dynamic=dynamic)
        lengths = set()
        for seed in range(4):
            share = torch.rand(B, 200, generator=torch.Generator().manual_seed(seed)) < 0.1 * 3**seed
            mask = build_mask((B, 200), 7, documents_of(share.int().cumsum(1, dtype=torch.int32)), CPU, "flash4")
            assert mask.offsets is not None
            lengths.add(len(mask.offsets))
            torch.testing.assert_close(compiled(*values, mask, "flash4"), attention(*values, mask, "flash4"))
        assert len(lengths) > 2
        assert n_compiled == 1


def test_a_document_is_a_slice_of_the_flattened_tokens() -> None:
    """The convention in one line each: output of a document alone, and of the packed call."""
    q, k, v = inputs(4, 2)
    offsets = documents_of(NUMBERS).offsets
    packed = flash_attention(q, k, v, offsets, None, "flash4")[0].flatten(0, 1)
    for start, end in pairwise(offsets.tolist()):
        if start < end:
            alone = attention(*(x.flatten(0, 1)[None, start:end] for x in (q, k, v)), Mask(None, None, None), "reference")
            torch.testing.assert_close(packed[start:end], alone[0], rtol=1e-5, atol=1e-5)


# ---- which backends can run --------------------------------------------------------------------------------------------------


class Card(Needs):
    """A run on a GPU of a stated generation, which need not be here."""

    version = (9, 0)

    @property
    def capability(self) -> tuple[int, int]:
        return self.version


def card(version: tuple[int, int] = (9, 0), **values: object) -> Needs:
    base = {"device": torch.device("cuda"), "dtype": torch.bfloat16, "d_model": 64, "n_heads": 4, "n_kv_heads": 4}
    kind = type("Card", (Card,), {"version": version})
    return kind(**{**base, "d_head": 128, "seq_len": 32, **values})


def install(folder: Path, package: str, version: str) -> None:
    metadata = folder / f"{package.replace('-', '_')}-{version}.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)


@pytest.mark.parametrize(
    ("backend", "needs", "message"),
    [
        ("flash4", card(device=CPU), "flash4 needs an NVIDIA GPU, the device is cpu; use sdpa"),
        ("cudnn", card(device=CPU), "cudnn needs an NVIDIA GPU, the device is cpu; use sdpa"),
        ("flash4", card((8, 0)), "flash4 needs a GPU of compute capability 9.0 to 12.x, this one has 8.0; use auto"),
        ("flash3", card((10, 0)), "flash3 needs a GPU of compute capability 9.x, this one has 10.0; use auto"),
        ("flash2", card((7, 5)), "flash2 needs a GPU of compute capability 8.0 to 12.x, this one has 7.5; use auto"),
        ("varlen", card((7, 5)), "varlen needs a GPU of compute capability 8.0 to 12.x, this one has 7.5; use auto"),
        ("flash4", card(dtype=torch.float32), "computes in bfloat16, parallel.compute_dtype=float32; set bfloat16 or use sdpa"),
        ("varlen", card(d_head=12), "a multiple of 8 and at most 256 on this GPU, model.d_head=12; change it or use sdpa"),
        ("flash4", card((10, 0), d_head=192), "a multiple of 8 and at most 128 on this GPU, model.d_head=192; change it or"),
        ("cudnn", card((10, 0), d_head=192), "a multiple of 8 and at most 128 on this GPU, model.d_head=192; change it or"),
        ("flash4", card(), "needs the package flash-attn-4, which is not installed; pip install 'olmo-train[gpu]', or use auto"),
        ("flash3", card(), "flash3 needs the module flash_attn_interface, which is not installed; build the folder hopper/ of"),
        ("flash2", card(), "needs the package flash-attn, which is not installed; pip install 'flash-attn>=2.7' --no-build-iso"),
    ],
)
def test_a_backend_says_why_it_cannot_run(backend: str, needs: Needs, message: str, cudnn: None) -> None:
    problem = why_not(backend, needs)
    assert problem is not None
    assert problem.startswith(f"kernels.attention={backend} ")
    assert message in problem


def test_an_old_library_is_named_with_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "flash-attn", "2.6.3")
    monkeypatch.syspath_prepend(tmp_path)
    assert "needs flash-attn 2.7 or newer, this is 2.6.3; pip install" in (why_not("flash2", card()) or "")


def test_a_torch_without_cudnn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, text in ((None, "none"), (8907, "8907")):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda version=version: version)
        assert f"has {text}; use sdpa" in (why_not("cudnn", card()) or "")


def test_what_is_installed_and_fits_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cudnn: None) -> None:
    install(tmp_path, "flash-attn-4", "4.0.0b36")
    install(tmp_path, "flash-attn", "2.8.3")
    (tmp_path / "flash_attn_interface.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for backend in BACKENDS:
        assert why_not(backend, card(d_head=256)) is None
    assert why_not("flash3", card((10, 0), device=CPU)) is not None


def test_without_a_deterministic_backward_pass_a_backend_is_refused(cudnn: None) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        for backend, needs in (("cudnn", card()), ("flash4", card((12, 0)))):
            assert "has no deterministic backward pass on this GPU" in (why_not(backend, needs) or "")
        assert why_not("varlen", card()) is None
    finally:
        torch.use_deterministic_algorithms(False)


def test_auto_prefers_kernels_that_skip_what_is_masked() -> None:
    assert auto_order(card(device=CPU)) == ("sdpa",)
    assert auto_order(card()) == ("flash4", "flash3", "cudnn", "flash2", "sdpa")
    for values in ({"has_documents": True}, {"has_windows": True}):
        assert auto_order(card(**values)) == ("flash4", "flash3", "flash2", "varlen", "sdpa")
    for needs in (card(device=CPU), card(), card(has_windows=True)):
        assert why_not(auto_order(needs)[-1], needs) is None  # the last one always works
