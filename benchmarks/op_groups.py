"""What a piece of work in a profiler's trace is for, by rules: names of kernels, names of the operators around them, shapes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

EXPERTS, EXPERT_REST = "expert GEMMs", "experts: gather, SwiGLU, combine"
ATTENTION, PROJECTIONS = "attention", "projections"
LOSS_MATMUL, LOSS_REST = "output projection", "loss: softmax, gradient"
ROUTER, ELEMENTWISE = "router and routing", "norms, rotary, residuals, elementwise"
EMBEDDING, OPTIMIZER, FSDP, COPIES = "embedding", "optimizer, norm and guard", "FSDP copies, communication", "memcpy, memset"
IDLE = "idle: nothing runs"
MATMULS = (EXPERTS, ATTENTION, PROJECTIONS, LOSS_MATMUL)
"""Groups whose FLOPs are known from the config."""
ORDER = (
    EXPERTS, EXPERT_REST, ATTENTION, PROJECTIONS, LOSS_MATMUL, LOSS_REST, ROUTER, ELEMENTWISE, EMBEDDING, OPTIMIZER, FSDP,
    COPIES, IDLE,
)  # fmt: skip

# cuBLAS (nvjet_*, cublas*, sm90_xmma_gemm*), CUTLASS and CuTe (quack: kernel_cutlass_*), torch's grouped GEMM, Triton templates.
_GEMM = re.compile(r"gemm|nvjet|cutlass|grouped_mm|triton_tem_|addmm|\bmm\b|::mm$|::bmm$|matmul|mkl|linear$", re.I)
# FlashAttention 2 (flash_fwd_kernel), 3 and 4 (FlashAttentionForwardSm90 ...), cuDNN (cudnn_generated_fort_native_sdpa_*).
_ATTENTION = re.compile(r"flash|fmha|sdpa|scaled_dot_product|varlen_attn|attention(?!_norm)", re.I)
_LOSS = re.compile(r"cross_entropy|log_softmax|nll_loss|_Chunked|logsumexp_rows", re.I)
_ROUTER = re.compile(r"top_?k|counting_sort|_count\b|_place\b|radix|sort|searchsorted|scatter_add|histogram|softmax", re.I)
_EXPERT_REST = re.compile(r"_gather_sum|_swiglu|swiglu", re.I)
_FSDP = re.compile(
    r"nccl|gloo|c10d|fsdp::|FSDP|all_gather|reduce_scatter|all_reduce|chunk_cat|split_with_sizes_copy|RegisterPostBackward"
)
_OPTIMIZER = re.compile(r"adam|muon|_update_kernel|newton|orthogonal|multi_tensor|foreach|FusedOptimizer|lpnorm", re.I)
_EMBEDDING = re.compile(r"embedding|indexSelect", re.I)
_LOSS_KERNELS = {"_rows"}
"""Of kernels/triton_cross_entropy.py."""


@dataclass(frozen=True)
class Work:
    """A kernel on a GPU, or an operator's own time on a CPU."""

    name: str
    start_us: float
    duration_us: float
    around: tuple[str, ...]
    """Names of the operators and labels that it ran under, the outermost first."""
    dims: tuple[int, ...]
    """All sizes in the shapes of the innermost operator's inputs."""
    category: str
    """Of the trace: kernel, gpu_memcpy, gpu_memset, cpu_op."""


@dataclass(frozen=True)
class Sizes:
    """Of the model, to tell matmuls apart."""

    vocab: int
    n_experts: int


def group_of(work: Work, sizes: Sizes) -> str:
    """The group of a piece of work."""
    around = " ".join(work.around)
    everything = f"{around} {work.name}"
    if _FSDP.search(everything):
        return FSDP
    if "phase:optimizer" in around:
        return OPTIMIZER
    if "olmo_train::moe_mlp" in everything or "grouped_mm" in everything:
        is_operator = work.category == "cpu_op" and "olmo_train::moe_mlp" in work.name  # waits for the experts' threads
        if is_operator or _GEMM.search(work.name):
            return EXPERTS
        return ROUTER if _ROUTER.search(work.name) else EXPERT_REST  # it sorts pairs by expert
    if _EXPERT_REST.search(work.name):
        return EXPERT_REST
    if _ATTENTION.search(everything):
        return ATTENTION
    if work.name in _LOSS_KERNELS or _LOSS.search(everything) or (_GEMM.search(everything) and sizes.vocab in work.dims):
        return LOSS_MATMUL if _GEMM.search(work.name) else LOSS_REST
    if _EMBEDDING.search(everything):
        return EMBEDDING
    if "olmo_train::top_k" in everything or _ROUTER.search(work.name):
        return ROUTER
    if _GEMM.search(work.name):
        return ROUTER if sizes.n_experts in work.dims else PROJECTIONS
    if work.category in ("gpu_memcpy", "gpu_memset"):
        return COPIES
    return OPTIMIZER if _OPTIMIZER.search(work.name) else ELEMENTWISE


# ---- reading a trace -------------------------------------------------------------------------------------------------------


@dataclass
class _Span:
    name: str
    start: float
    end: float
    dims: tuple[int, ...]
    category: str
    parents: tuple[str, ...] = ()
    own: float = 0.0


def read_trace(events: list[dict[str, Any]]) -> list[Work]:
    """The work of a chrome trace of torch.profiler: its kernels if there are any, else operators with their own time.

    A kernel belongs to the operators whose spans hold, on the launching thread, the runtime call of the same correlation.
    """
    threads = _nest(events)
    kernels = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and "dur" in e]
    if not kernels:
        return [
            Work(span.name, span.start, span.own, span.parents, span.dims, "cpu_op")
            for spans in threads.values() for span in spans if span.category == "cpu_op"
        ]  # fmt: skip
    launches = {
        e["args"]["correlation"]: e
        for e in events if e.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in e.get("args", {})
    }  # fmt: skip
    found = _innermost(threads, [launches[c] for e in kernels if (c := e["args"].get("correlation")) in launches])
    work = []
    for event in kernels:
        span = found.get(event["args"].get("correlation"))
        around = () if span is None else (*span.parents, span.name)
        dims = () if span is None else span.dims
        work.append(Work(event["name"], float(event["ts"]), float(event["dur"]), around, dims, event["cat"]))
    return work


def _nest(events: list[dict[str, Any]]) -> dict[Any, list[_Span]]:
    """Operators and labels by thread in order of their start, with their parents' names and their own time."""
    threads: dict[Any, list[_Span]] = {}
    for e in events:
        if e.get("cat") in ("cpu_op", "user_annotation") and "dur" in e:
            start = float(e["ts"])
            span = _Span(e["name"], start, start + float(e["dur"]), tuple(_sizes_in(e.get("args", {}))), e["cat"])
            threads.setdefault((e["pid"], e["tid"]), []).append(span)
    for spans in threads.values():
        spans.sort(key=lambda span: (span.start, -span.end))
        open_spans: list[_Span] = []
        for span in spans:
            while open_spans and open_spans[-1].end <= span.start:
                open_spans.pop()
            span.own = span.end - span.start
            if open_spans:
                open_spans[-1].own -= span.own
                span.parents = (*open_spans[-1].parents, open_spans[-1].name)
            open_spans.append(span)
    return threads


def _sizes_in(args: dict[str, Any]) -> Iterator[int]:
    for dims in args.get("Input Dims", []):
        yield from (size for size in dims if isinstance(size, int))


def _innermost(threads: dict[Any, list[_Span]], launches: list[dict[str, Any]]) -> dict[Any, _Span]:
    """By correlation: the innermost span that was open on the launching thread."""
    by_thread: dict[Any, list[dict[str, Any]]] = {}
    for launch in launches:
        by_thread.setdefault((launch["pid"], launch["tid"]), []).append(launch)
    found = {}
    for thread, mine in by_thread.items():
        spans, at, open_spans = threads.get(thread, []), 0, []
        for launch in sorted(mine, key=lambda e: float(e["ts"])):
            moment = float(launch["ts"])
            while at < len(spans) and spans[at].start <= moment:
                open_spans.append(spans[at])
                at += 1
                while len(open_spans) > 1 and open_spans[-2].end <= open_spans[-1].start:
                    del open_spans[-2]
            while open_spans and open_spans[-1].end < moment:
                open_spans.pop()
            if open_spans:
                found[launch["args"]["correlation"]] = open_spans[-1]
    return found


def busy_us(work: list[Work]) -> float:
    """Time in which at least one piece of work runs."""
    total, end = 0.0, float("-inf")
    for piece in sorted(work, key=lambda w: w.start_us):
        total += max(0.0, piece.start_us + piece.duration_us - max(end, piece.start_us))
        end = max(end, piece.start_us + piece.duration_us)
    return total
