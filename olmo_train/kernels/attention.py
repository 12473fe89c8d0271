"""Causal attention with sliding windows and document masking: one function, its backends, and the plain reference."""

import importlib.metadata
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from olmo_train.kernels.flash_attention import LIBRARIES, flash_attention
from olmo_train.kernels.needs import Needs

BACKENDS = (*LIBRARIES, "varlen", "cudnn", "sdpa", "reference")
"""FlashAttention 4, 3, 2; torch's varlen_attn; its scaled_dot_product_attention by cuDNN, or as it picks; the definition."""

_DENSE = ("cudnn", "sdpa", "reference")
"""Know documents and windows only as a (T, T) mask: exact, but masked scores are computed too."""

_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


class Documents(NamedTuple):
    """Where the documents of a micro-batch lie, in both forms that kernels ask for. A document lies in one row."""

    numbers_BT: Tensor
    """int32 (B, T): positions of a row with equal numbers are one document."""
    offsets: Tensor
    """int32 (n,): where documents begin in the flattened B * T tokens, then B * T, repeated (documents without tokens)."""


class Mask(NamedTuple):
    """Which keys a query may see: those before it, in its window, in its document. Made for one backend."""

    allowed: Tensor | None
    """bool (B or 1, 1, T, T), True where a query may look; None: plain causal, or as the other two say."""
    window: int | None
    """Keys a query sees, itself included; None: all before it, or as `allowed` says."""
    offsets: Tensor | None
    """As in Documents; None: rows are whole, or as `allowed` says."""


def build_mask(
    shape: tuple[int, int], window: int | None, documents: Documents | None, device: torch.device, backend: str
) -> Mask:
    """The mask of one kind of layer, shared by all layers of that kind; `backend` decides its form.

    `shape`: (B, T). `window`: tokens a position sees, itself included. With `documents`, attention stays within them.
    """
    b, t = shape
    window = None if window is None or window >= t else window
    if backend in _DENSE:
        return Mask(_dense_mask(t, window, documents, device), None, None)
    offsets = None if documents is None else documents.offsets
    if offsets is not None and not torch.compiler.is_compiling():
        torch._dynamo.maybe_mark_dynamic(offsets, 0)  # or a compiled block would be compiled again for each new length
    if offsets is None and backend == "varlen":
        offsets = torch.arange(0, b * t + 1, t, dtype=torch.int32, device=device)
    return Mask(None, window, offsets)


def _dense_mask(seq_len: int, window: int | None, documents: Documents | None, device: torch.device) -> Tensor | None:
    if documents is None and window is None:
        return None
    position = torch.arange(seq_len, device=device)
    distance = position[:, None] - position[None, :]
    allowed = distance >= 0
    if window is not None:
        allowed = allowed & (distance < window)
    allowed = allowed[None, None]
    if documents is not None:
        numbers_BT = documents.numbers_BT
        allowed = allowed & (numbers_BT[:, None, :, None] == numbers_BT[:, None, None, :])
    return allowed


def attention(q_BTHC: Tensor, k_BTGC: Tensor, v_BTGC: Tensor, mask: Mask, backend: str) -> Tensor:
    """Softmax(q k^T / sqrt(C)) v over the keys that `mask` allows; query head h reads kv head h * G // H.

    `mask` was built for `backend`. Returns (B, T, H, C).
    Under `torch.use_deterministic_algorithms` the backward pass of every backend has a fixed order of additions.
    Source: Vaswani et al., arXiv 1706.03762, equation 1; grouped queries: arXiv 2305.13245.
    """
    assert mask.allowed is None or backend in _DENSE, backend
    assert (mask.window is None and mask.offsets is None) or backend not in _DENSE, backend
    match backend:
        case "flash4" | "flash3" | "flash2":
            return flash_attention(q_BTHC, k_BTGC, v_BTGC, mask.offsets, mask.window, backend)[0]
        case "varlen":
            return _varlen(q_BTHC, k_BTGC, v_BTGC, mask)
        case "cudnn":
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return _sdpa(q_BTHC, k_BTGC, v_BTGC, mask)
        case "sdpa":
            return _sdpa(q_BTHC, k_BTGC, v_BTGC, mask)
        case "reference":
            return _reference(q_BTHC, k_BTGC, v_BTGC, mask)
    raise AssertionError(backend)


def _varlen(q_BTHC: Tensor, k_BTGC: Tensor, v_BTGC: Tensor, mask: Mask) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # brings the compiler with it: 2 s that a run on a CPU need not wait

    assert mask.offsets is not None
    t = q_BTHC.shape[1]
    q, k, v = (x.flatten(0, 1) for x in (q_BTHC, k_BTGC, v_BTGC))
    window = (-1 if mask.window is None else mask.window - 1, 0)
    # torch 2.11 takes grouped queries as they are; later versions want to be told.
    grouped: dict[str, Any] = {"enable_gqa": True} if q.shape[1] != k.shape[1] and _TORCH >= (2, 12) else {}
    out = varlen_attn(q, k, v, mask.offsets, mask.offsets, t, t, window_size=window, **grouped)
    assert isinstance(out, Tensor)
    return out.view(q_BTHC.shape)


def _sdpa(q_BTHC: Tensor, k_BTGC: Tensor, v_BTGC: Tensor, mask: Mask) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BTHC, k_BTGC, v_BTGC))
    grouped, causal = q.shape[1] != k.shape[1], mask.allowed is None
    return F.scaled_dot_product_attention(q, k, v, mask.allowed, is_causal=causal, enable_gqa=grouped).transpose(1, 2)


def _reference(q_BTHC: Tensor, k_BTGC: Tensor, v_BTGC: Tensor, mask: Mask) -> Tensor:
    """The definition, in float32 (or better), holding all scores."""
    work = torch.promote_types(q_BTHC.dtype, torch.float32)
    repeat = q_BTHC.shape[2] // k_BTGC.shape[2]
    q, k, v = (x.transpose(1, 2).to(work) for x in (q_BTHC, k_BTGC, v_BTGC))
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores_BHTT = q @ k.mT / q.shape[-1] ** 0.5
    allowed = mask.allowed
    if allowed is None:
        allowed = torch.ones(scores_BHTT.shape[-2:], dtype=torch.bool, device=q.device).tril()
    return (scores_BHTT.masked_fill(~allowed, float("-inf")).softmax(-1) @ v).to(q_BTHC.dtype).transpose(1, 2)


# ---- which backends can run --------------------------------------------------------------------------------------------------

# Compute capabilities, major version: from, to. flash4 has no backward pass below 9; flash3 is built for Hopper alone.
_GENERATIONS = {"flash4": (9, 12), "flash3": (9, 9), "flash2": (8, 12), "varlen": (8, 12), "cudnn": (8, 12)}
_INSTALL = {
    "flash4": "pip install 'olmo-train[gpu]'",
    "flash3": "build the folder hopper/ of github.com/Dao-AILab/flash-attention",
    "flash2": "pip install 'flash-attn>=2.7' --no-build-isolation",
}


def auto_order(needs: Needs) -> tuple[str, ...]:
    """Backends to try, best first.

    Measured on an H200 at B 4, T 4096, H 16, C 128, causal, forward and backward: flash4 586 TFLOP/s, cuDNN 459, FlashAttention
    2 (as torch has it in sdpa and varlen) 268. flash3 stands where its authors' numbers put it. Where documents or windows mask
    most of the scores, a kernel that skips them comes before one that computes them all.
    """
    if needs.device.type != "cuda":
        return ("sdpa",)
    if needs.has_documents or needs.has_windows:
        return (*LIBRARIES, "varlen", "sdpa")
    return ("flash4", "flash3", "cudnn", "flash2", "sdpa")


def why_not(backend: str, needs: Needs) -> str | None:
    """Why `backend` cannot run here, as a message with a remedy; None if it can. Imports none of the libraries."""
    if backend not in _GENERATIONS:
        return None
    name = f"kernels.attention={backend}"
    if needs.device.type != "cuda":
        return f"{name} needs an NVIDIA GPU, the device is {needs.device.type}; use sdpa"
    major, minor = needs.capability
    first, last = _GENERATIONS[backend]
    if not first <= major <= last:
        allowed = f"{first}.x" if first == last else f"{first}.0 to {last}.x"
        return f"{name} needs a GPU of compute capability {allowed}, this one has {major}.{minor}; use auto"
    if needs.dtype not in (torch.float16, torch.bfloat16):
        dtype = str(needs.dtype).removeprefix("torch.")
        return f"{name} computes in bfloat16, parallel.compute_dtype={dtype}; set bfloat16 or use sdpa"
    widest = _widest_head(backend, major)
    if needs.d_head % 8 or needs.d_head > widest:
        rule = f"heads whose width is a multiple of 8 and at most {widest} on this GPU"
        return f"{name} takes {rule}, model.d_head={needs.d_head}; change it or use sdpa"
    return _not_deterministic(backend, major) or _missing(backend)


def _widest_head(backend: str, major: int) -> int:
    """Sources: flash_attn.cute `_validate_head_dims` (exactly 256 too on 10.x); torch's `check_cudnn_tensor_shapes`."""
    if backend == "flash4" and major > 9:
        return 128
    if backend == "cudnn" and (major != 9 or _cudnn_version() < 91000):
        return 128
    return 256


def _not_deterministic(backend: str, major: int) -> str | None:
    """Sources: torch's `check_cudnn_deterministic`; flash_attn.cute `_flash_attn_bwd`."""
    if torch.are_deterministic_algorithms_enabled() and (backend == "cudnn" or (backend == "flash4" and major == 12)):
        return (
            f"kernels.attention={backend} has no deterministic backward pass on this GPU, and "
            "torch.use_deterministic_algorithms is on; use sdpa"
        )
    return None


def _missing(backend: str) -> str | None:
    """Whether the library behind `backend` is not installed, or too old."""
    name = f"kernels.attention={backend}"
    if backend == "cudnn" and _cudnn_version() < 90000:
        return f"{name} needs cuDNN 9 or newer in torch, torch {torch.__version__} has {_cudnn_version() or 'none'}; use sdpa"
    if backend == "flash3" and importlib.util.find_spec("flash_attn_interface") is None:
        return f"{name} needs the module flash_attn_interface, which is not installed; {_INSTALL[backend]}, or use auto"
    package = {"flash4": "flash-attn-4", "flash2": "flash-attn"}.get(backend)
    if package is None:
        return None
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} needs the package {package}, which is not installed; {_INSTALL[backend]}, or use auto"
    if backend == "flash2" and tuple(int(part) for part in version.split(".")[:2]) < (2, 7):
        return f"{name} needs flash-attn 2.7 or newer, this is {version}; {_INSTALL[backend]}, or use auto"
    return None


def _cudnn_version() -> int:
    """9.10.2 as 91002; 0 where torch has none."""
    return torch.backends.cudnn.version() or 0
