"""What kernels.py checks and times: inputs, backends and peers of every hot operation, as functions of the sizes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from olmo_train.config.dtypes import FloatType, MomentType
from olmo_train.config.model import ModelConfig, MoEConfig
from olmo_train.config.optim import OptimConfig, ParamKind, ScheduleConfig, ScheduleKind
from olmo_train.data.loader import document_offsets
from olmo_train.kernels import attention, cross_entropy, moe_mlp
from olmo_train.kernels.needs import Needs
from olmo_train.kernels.routing import route, route_by_sorting
from olmo_train.model.moe import Router
from olmo_train.model.norm import RMSNorm
from olmo_train.model.rope import build_rotation, rotate
from olmo_train.optim.adamw import AdamW, CompactAdamW
from olmo_train.optim.parts import Part
from olmo_train.parallel.fsdp import DTYPES

PEER = "peer: "
FAMILIES = ("moe_mlp", "attention", "cross_entropy", "pieces", "optimizer")


@dataclass(frozen=True)
class Sizes:
    """OLMoE's, unless said."""

    rows: int = 4
    seq_len: int = 4096
    n_heads: int = 16
    d_head: int = 128
    documents: int = 32
    """Per row, where there are any."""
    moe_tokens: tuple[int, ...] = (32768, 16384)
    n_experts: int = 64
    top_k: int = 8
    d_model: int = 2048
    d_expert: int = 1024
    loss_tokens: int = 16384
    vocab: int = 50304


TINY = Sizes(2, 64, 2, 16, 4, (128,), 8, 2, 64, 32, 96, 512)


class Problem(NamedTuple):
    """One way to compute something, with its inputs."""

    forward: Callable[[], Tensor]
    leaves: dict[str, Tensor]
    """What gradients are taken for; empty: there is no backward pass."""
    flops: float = 0.0
    """Of a forward pass; forward and backward count three times that, recomputed scores nothing."""
    moved: float = 0.0
    """Bytes that a forward pass must read and write, for what is bound by memory; forward and backward: 2.5 times."""


@dataclass(frozen=True)
class Case:
    """One operation at one size."""

    title: str
    build: Callable[[str, torch.dtype], Problem]
    """(backend, dtype of the inputs) -> the problem; "reference" in float32 is what the others are measured against."""
    backends: tuple[str, ...]
    why_not: Callable[[str], str | None] = lambda _: None
    is_checked: bool = True


def cases(family: str, sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """The cases of a family, the most telling first."""
    match family:
        case "attention":
            yield from _attention_cases(sizes, device)
        case "moe_mlp":
            for tokens in sizes.moe_tokens:
                yield _moe_case(f"N {tokens}, skewed routing", sizes, tokens, device, hot=False)
            tokens = sizes.moe_tokens[-1]
            yield _moe_case(f"N {tokens}, one hot and one empty expert", sizes, tokens, device, hot=True)
        case "cross_entropy":
            yield from _loss_cases(sizes, device)
        case "pieces":
            yield from _piece_cases(sizes, device)
        case "optimizer":
            yield from _optimizer_cases(sizes, device)


def compute_dtype(device: torch.device) -> torch.dtype:
    """What candidates compute in."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> Tensor:
    """Normal values that bf16 can hold, so that every dtype gets the same."""
    generator = torch.Generator(device).manual_seed(seed)
    values = torch.randn(shape, device=device, generator=generator) * scale
    return values.bfloat16().to(dtype)


def _leaf(*arguments: Any) -> Tensor:
    return draw(*arguments).requires_grad_()


def _needs(sizes: Sizes, device: torch.device, **others: Any) -> Needs:
    return Needs(
        device, compute_dtype(device), sizes.d_model, sizes.n_heads, sizes.n_heads, sizes.d_head, sizes.seq_len,
        d_expert=sizes.d_expert, n_experts=sizes.n_experts, top_k=sizes.top_k, vocab_rows=sizes.vocab, **others,
    )  # fmt: skip


# ---- attention -------------------------------------------------------------------------------------------------------------


def _attention_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    b, t = sizes.rows, sizes.seq_len
    numbers_BT = document_numbers(b, t, sizes.documents, device)
    for title, documents in (("causal", None), (f"{sizes.documents} documents a row", documents_of(numbers_BT))):
        needs = _needs(sizes, device, has_documents=documents is not None)
        yield Case(
            f"B {b} T {t} H {sizes.n_heads} C {sizes.d_head}, {title}",
            _attention_builder(sizes, device, documents),
            (*attention.BACKENDS[:-1], PEER + "torch sdpa flash", PEER + "flex_attention compiled", "reference"),
            partial(_reason, attention, needs),
        )


def _attention_builder(
    sizes: Sizes, device: torch.device, documents: attention.Documents | None
) -> Callable[[str, torch.dtype], Problem]:
    b, t, shape = sizes.rows, sizes.seq_len, (sizes.rows, sizes.seq_len, sizes.n_heads, sizes.d_head)
    lengths = torch.full((b,), float(t)) if documents is None else documents.offsets.diff().double()
    flops = 4 * float((lengths * (lengths + 1)).sum() / 2) * sizes.n_heads * sizes.d_head

    def build(backend: str, dtype: torch.dtype) -> Problem:
        q, k, v = (_leaf(shape, seed, dtype, device) for seed in range(3))
        leaves = {"q": q, "k": k, "v": v}
        if backend.startswith(PEER):
            return Problem(_peer_attention(backend, (q, k, v), documents), leaves, flops)
        mask = attention.build_mask((b, t), None, documents, device, backend)
        return Problem(lambda: attention.attention(q, k, v, mask, backend), leaves, flops)

    return build


def _peer_attention(
    backend: str, qkv: tuple[Tensor, Tensor, Tensor], documents: attention.Documents | None
) -> Callable[[], Tensor]:
    q, k, v = (x.transpose(1, 2) for x in qkv)
    if "flex" in backend:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def allowed(b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (i >= j) if documents is None else (i >= j) & (documents.numbers_BT[b, i] == documents.numbers_BT[b, j])

        t, device = q.shape[2], q.device.type
        block_mask = create_block_mask(allowed, None if documents is None else q.shape[0], None, t, t, device)
        flex = torch.compile(flex_attention, dynamic=False)
        return lambda: flex(q, k, v, block_mask=block_mask).transpose(1, 2)
    if documents is not None:
        raise ValueError("knows no documents")

    def flash() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    return flash


def document_numbers(n_rows: int, seq_len: int, per_row: int, device: torch.device) -> Tensor:
    """int32 (B, T): `per_row` documents of uneven lengths in every row, numbered within the row."""
    rng = np.random.default_rng(0)
    starts = np.zeros((n_rows, seq_len), np.int32)
    for row in starts:
        row[rng.choice(np.arange(1, seq_len), size=per_row - 1, replace=False)] = 1
    return torch.from_numpy(starts.cumsum(1, dtype=np.int32)).to(device)


def documents_of(numbers_BT: Tensor) -> attention.Documents:
    """Both forms of where documents lie, as the loader gives them."""
    offsets = torch.from_numpy(document_offsets(numbers_BT.cpu().numpy()))
    return attention.Documents(numbers_BT, offsets.to(numbers_BT.device))


# ---- experts ---------------------------------------------------------------------------------------------------------------


def _moe_case(title: str, sizes: Sizes, tokens: int, device: torch.device, hot: bool) -> Case:
    gates_NK, ids_NK = skewed_experts(sizes, tokens, device, hot)
    e, d, f = sizes.n_experts, sizes.d_model, sizes.d_expert

    def build(backend: str, dtype: torch.dtype) -> Problem:
        x = _leaf((tokens, d), 0, dtype, device)
        w_in, w_out = _leaf((e, 2 * f, d), 1, dtype, device, 0.02), _leaf((e, d, f), 2, dtype, device, 0.02)
        leaves = {"x": x, "w_in": w_in, "w_out": w_out, "gates": gates_NK.clone().requires_grad_()}
        flops = 6.0 * tokens * sizes.top_k * d * f
        if backend.startswith(PEER):
            return Problem(_peer_experts(backend, leaves, ids_NK), leaves, flops)
        return Problem(lambda: moe_mlp.moe_mlp(x, w_in, w_out, leaves["gates"], ids_NK, backend)[0], leaves, flops)

    needs = _needs(sizes, device)
    names = (PEER + "transformers grouped_mm compiled", PEER + "transformers grouped_mm")
    backends = (*moe_mlp.BACKENDS[:-1], *names, "reference")
    return Case(f"{title}, E {e} K {sizes.top_k} D {d} F {f}", build, backends, partial(_reason, moe_mlp, needs))


def _peer_experts(backend: str, leaves: dict[str, Tensor], ids_NK: Tensor) -> Callable[[], Tensor]:
    """transformers' module around our tensors; its gates have the dtype of x."""
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

    e, two_f, d = leaves["w_in"].shape
    config = OlmoeConfig(hidden_size=d, intermediate_size=two_f // 2, num_experts=e, num_experts_per_tok=ids_NK.shape[1])
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        module = OlmoeExperts(config)
    module.gate_up_proj, module.down_proj = nn.Parameter(leaves["w_in"]), nn.Parameter(leaves["w_out"])
    leaves["w_in"], leaves["w_out"] = module.gate_up_proj, module.down_proj
    if backend.endswith("compiled"):
        module.compile(dynamic=False)
    return lambda: module(leaves["x"], ids_NK, leaves["gates"].to(leaves["x"].dtype))


def skewed_experts(sizes: Sizes, n_tokens: int, device: torch.device, hot: bool) -> tuple[Tensor, Tensor]:
    """(gates (N, K) float32, expert ids (N, K) int64) as a router in training gives them: some experts twice as busy as others.

    `hot`: every token goes to expert 0 and none to expert 1.
    """
    generator = torch.Generator(device).manual_seed(0)
    preference_E = torch.randn(sizes.n_experts, device=device, generator=generator) * 0.4
    logits_NE = preference_E + torch.randn(n_tokens, sizes.n_experts, device=device, generator=generator)
    if hot:
        logits_NE[:, 0], logits_NE[:, 1] = 20.0, -20.0
    gates_NK, ids_NK = logits_NE.softmax(-1).topk(sizes.top_k, -1)
    return gates_NK, ids_NK


# ---- output projection and loss --------------------------------------------------------------------------------------------


def _loss_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    n, d, vocab = sizes.loss_tokens, sizes.d_model, sizes.vocab
    labels = torch.randint(vocab, (n,), device=device, generator=torch.Generator(device).manual_seed(0))
    labels[::97] = cross_entropy.IGNORE
    peers = (PEER + "torch compiled", PEER + "liger", PEER + "torch")
    for z_weight in (0.0, 1e-4):

        def build(backend: str, dtype: torch.dtype, z_weight: float = z_weight) -> Problem:
            x, w = _leaf((n, d), 0, dtype, device), _leaf((vocab, d), 1, dtype, device, 0.02)
            if backend.startswith(PEER):
                forward = _peer_loss(backend, x, w, labels)
            else:
                forward = lambda: cross_entropy.linear_cross_entropy(x, w, labels, z_weight, backend)[0] / n  # noqa: E731
            return Problem(forward, {"x": x, "w": w}, 2.0 * n * d * vocab)

        needs = _needs(sizes, device, has_z_loss=z_weight > 0)
        backends = (*cross_entropy.BACKENDS[:-1], *(peers if z_weight == 0 else ()), "reference")
        title = f"N {n} V {vocab} D {d}" + (", z-loss" if z_weight else "")
        yield Case(title, build, backends, partial(_reason, cross_entropy, needs))


def _peer_loss(backend: str, x: Tensor, w: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    if backend.endswith("liger"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

        loss = LigerFusedLinearCrossEntropyLoss(ignore_index=cross_entropy.IGNORE, reduction="sum")
        return lambda: loss(w, x, labels) / len(labels)

    def plain(x: Tensor, w: Tensor) -> Tensor:
        return F.cross_entropy((x @ w.T).float(), labels, ignore_index=cross_entropy.IGNORE, reduction="sum") / len(labels)

    work = torch.compile(plain, dynamic=False) if backend.endswith("compiled") else plain
    return lambda: work(x, w)


# ---- router, norms, rotary -------------------------------------------------------------------------------------------------


def _piece_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    n, d = sizes.rows * sizes.seq_len, sizes.d_model
    moe = MoEConfig(sizes.n_experts, sizes.top_k, sizes.d_expert, load_balancing_loss_weight=0.01, router_z_loss_weight=1e-3)
    ways = ("compiled", "eager")

    def router(way: str, dtype: torch.dtype) -> Problem:
        module = Router(d, moe).to(device)
        module.weight = nn.Parameter(draw((sizes.n_experts, d), 1, dtype, device, 0.02))
        run = torch.compile(module, dynamic=False) if way == "compiled" else module
        x = _leaf((n, d), 0, dtype, device)
        # gates and the sum of logsumexp^2: what the losses pull on
        return Problem(lambda: _sum_of(run(x)), {"x": x, "weight": module.weight}, 2.0 * n * d * sizes.n_experts, x.nbytes)

    yield Case(f"router, N {n} E {sizes.n_experts}", router, ways)
    ids = skewed_experts(sizes, n, device, hot=False)[1]

    def sort(way: str, _: torch.dtype) -> Problem:
        grouping = route if way == "route" else route_by_sorting
        return Problem(lambda: grouping(ids, sizes.n_experts).slot_of_pair, {}, moved=ids.nbytes + 8.0 * ids.numel())

    yield Case(f"routing of {ids.numel()} pairs", sort, ("route", "torch sort"), is_checked=False)
    yield _norm_case(sizes, device, ways)
    yield _rotary_case(sizes, device, ways)


def _sum_of(outputs: Any) -> Tensor:
    floats = [x.float().square().sum() for x in outputs if isinstance(x, Tensor) and x.is_floating_point() and x.requires_grad]
    return torch.stack(floats).sum()


def _norm_case(sizes: Sizes, device: torch.device, ways: tuple[str, ...]) -> Case:
    shape = (sizes.rows, sizes.seq_len, sizes.d_model)

    def build(way: str, dtype: torch.dtype) -> Problem:
        norm = RMSNorm(sizes.d_model, 1e-5).to(device)
        norm.weight = nn.Parameter(draw((sizes.d_model,), 2, dtype, device))
        x, y = _leaf(shape, 0, dtype, device), _leaf(shape, 1, dtype, device)

        def work(x: Tensor, y: Tensor) -> Tensor:
            return norm(x + y)

        run = torch.compile(work, dynamic=False) if way == "compiled" else work
        return Problem(lambda: run(x, y), {"x": x, "y": y, "weight": norm.weight}, moved=3.0 * x.nbytes)

    return Case(f"residual and RMSNorm over {sizes.d_model}", build, ways)


def _rotary_case(sizes: Sizes, device: torch.device, ways: tuple[str, ...]) -> Case:
    h, c = sizes.n_heads, sizes.d_head
    model = ModelConfig(d_model=h * c, n_layers=1, n_heads=h, vocab_size=8)
    rotation = build_rotation(model, torch.arange(sizes.seq_len, device=device), is_windowed=False)

    def build(way: str, dtype: torch.dtype) -> Problem:
        norm = RMSNorm(h * c, 1e-5).to(device)
        norm.weight = nn.Parameter(draw((h * c,), 2, dtype, device))
        x = _leaf((sizes.rows, sizes.seq_len, h * c), 0, dtype, device)

        def work(x: Tensor) -> Tensor:
            return rotate(norm(x).view(*x.shape[:2], h, c), rotation)

        run = torch.compile(work, dynamic=False) if way == "compiled" else work
        return Problem(lambda: run(x), {"x": x, "weight": norm.weight}, moved=2.0 * x.nbytes)

    return Case(f"QK-norm and rotary embedding, H {h} C {c}", build, ways)


# ---- optimizer -------------------------------------------------------------------------------------------------------------

RECIPES = {
    "fp32 weights, fp32 moments": (FloatType.FLOAT32, MomentType.FLOAT32, torch.float32),
    "fp32 weights, bf16 moments": (FloatType.FLOAT32, MomentType.BFLOAT16, torch.float32),
    "bf16 weights, bf16 moments": (FloatType.BFLOAT16, MomentType.BFLOAT16, torch.bfloat16),
    "bf16 weights, int8 moments": (FloatType.BFLOAT16, MomentType.INT8, torch.bfloat16),
}
_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def _optimizer_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    shape = (sizes.n_experts, 2 * sizes.d_expert, sizes.d_model)

    def build(recipe: str, _: torch.dtype) -> Problem:
        weights, moments, grad_dtype = RECIPES[recipe]
        config = OptimConfig(lr=1e-3, schedule=ScheduleConfig(ScheduleKind.CONSTANT), weight_dtype=weights, moment_dtype=moments)
        config.grad_dtype = FloatType.FLOAT32 if grad_dtype == torch.float32 else FloatType.BFLOAT16
        param, gradient = draw(shape, 0, DTYPES[weights], device, 0.02), draw(shape, 1, grad_dtype, device)
        part = Part(param, ParamKind.MATRIX, shape, 0, (sizes.d_expert, sizes.d_expert))
        optimizer = build_adamw({"w": part}, config)
        one, zero = torch.ones((), device=device), torch.zeros((), device=device)

        def step() -> Tensor:
            optimizer.step({"w": gradient}, 1e-3, one, zero)
            return param

        return Problem(step, {}, moved=float(param.numel() * (2 * _BYTES[weights] + 4 * _BYTES[moments] + grad_dtype.itemsize)))

    yield Case(f"AdamW of {shape}", build, tuple(RECIPES), is_checked=False)


def build_adamw(parts: dict[str, Part], config: OptimConfig) -> AdamW | CompactAdamW:
    """As optim/build.py chooses, which wants a process group that AdamW does not use."""
    if (config.weight_dtype, config.moment_dtype) == (FloatType.FLOAT32, MomentType.FLOAT32):
        return AdamW({name: part.tensor for name, part in parts.items()}, {name: p.kind for name, p in parts.items()}, config)
    return CompactAdamW(parts, config, seed=0)


def _reason(module: Any, needs: Needs, backend: str) -> str | None:
    return None if backend.startswith(PEER) else module.why_not(backend, needs)
