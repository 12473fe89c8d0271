"""Exact gradients of one example with respect to chosen parameters, and their inner products by matrix and expert."""

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from checkpoints.inspect.matrices import matrices_of
from checkpoints.inspect.moments import MomentWeights
from checkpoints.opening import Checkpoint
from olmo_train.config.model import ModelConfig
from olmo_train.config.optim import ParamKind
from olmo_train.data.loader import Rows
from olmo_train.errors import ConfigError
from olmo_train.evaluate import to_device
from olmo_train.kernels.cross_entropy import linear_cross_entropy
from olmo_train.model.shapes import ParamShape, param_shapes
from olmo_train.model.transformer import Transformer
from olmo_train.optim.moments import SECOND

BLOCK_ELEMENTS = 2**20
"""Multiplied at once: 16 MiB in float64."""


class Chosen(StrEnum):
    """Which parameters."""

    ALL = "all"
    BLOCKS = "blocks"
    """Everything in the layers: no embedding, no last norm, no lm_head."""
    ATTENTION = "attention"
    """w_qkv, w_out and the norms of q and k."""
    FEED_FORWARD = "feed_forward"
    """Of dense layers, and shared experts."""
    EXPERTS = "experts"
    """The routed ones."""
    ROUTER = "router"
    EMBEDDING = "embedding"
    """And lm_head."""


class Cell(NamedTuple):
    """What inner products are told apart by."""

    layer: int | None
    kind: str
    """As in checkpoints/inspect/matrices.py: attention.q, experts.gate, norm, ..."""
    expert: int | None


Gradient = dict[str, Tensor]
"""float32, by name of the parameter."""


def choose_parameters(model: ModelConfig, kinds: Iterable[str], layers: Sequence[int] | None = None) -> list[str]:
    """Names of the parameters of any of `kinds`; with `layers`, those of these layers only.

    Raises:
        ConfigError: a kind or a layer does not exist, or nothing is left; lists every problem.
    """
    kinds = list(kinds)
    known = [kind.value for kind in Chosen]
    problems = [f"--parameters={kind} is not one of {', '.join(known)}" for kind in kinds if kind not in known]
    problems += [
        f"--layers={layer}: the model has layers 0 to {model.n_layers - 1}"
        for layer in layers or ()
        if not 0 <= layer < model.n_layers
    ]
    if problems:
        raise ConfigError(problems)
    shapes = [shape for shape in param_shapes(model) if any(_is_a(shape, Chosen(kind)) for kind in kinds)]
    if not shapes:
        raise ConfigError(f"--parameters={','.join(kinds)}: this model has none; choose among {', '.join(known)}")
    names = [shape.name for shape in shapes if layers is None or shape.layer in layers]
    if not names:
        at = ",".join(map(str, layers or ()))
        raise ConfigError(f"--layers={at}: no parameter of --parameters={','.join(kinds)} is in these layers; leave --layers out")
    return names


def _is_a(shape: ParamShape, kind: Chosen) -> bool:
    match kind:
        case Chosen.ALL:
            return True
        case Chosen.BLOCKS:
            return shape.layer is not None
        case Chosen.ATTENTION:
            return ".attention." in shape.name
        case Chosen.FEED_FORWARD:
            return ".feed_forward." in shape.name or ".moe.shared." in shape.name
        case Chosen.EXPERTS:
            return shape.name.endswith((".moe.w_in", ".moe.w_out"))
        case Chosen.ROUTER:
            return shape.kind == ParamKind.ROUTER
        case Chosen.EMBEDDING:
            return shape.kind in (ParamKind.EMBEDDING, ParamKind.LM_HEAD)


def example_gradient(model: Transformer, names: Sequence[str], rows: Rows, z_weight: float = 0.0) -> Gradient:
    """Gradient of the summed cross entropy (plus `z_weight` times z) of one row, nats per unit of the parameter.

    Routing is that of this very forward pass; the gates have a gradient, the choice of experts has none, as in training. Only
    the chosen parameters get a gradient, so that the backward pass ends at the lowest of them.
    """
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
    chosen = [parameters[name] for name in names]
    ids_BT, labels_BT, documents = to_device(rows, model.embedding.weight.device)
    with torch.enable_grad():
        x_BTD, _ = model.hidden(ids_BT, documents)
        weight_VD = model.embedding.weight if model.config.tie_embeddings else model.lm_head.weight
        x_ND, labels_N = x_BTD.reshape(-1, x_BTD.shape[-1]), labels_BT.reshape(-1)
        loss, _, _ = linear_cross_entropy(x_ND, weight_VD, labels_N, z_weight, model.kernels.cross_entropy)
        grads = torch.autograd.grad(loss, chosen, allow_unused=True)
    pairs = zip(names, chosen, grads, strict=True)
    return {name: torch.zeros_like(parameter) if grad is None else grad for name, parameter, grad in pairs}


# ---- AdamW's own scale -----------------------------------------------------------------------------------------------------


def why_no_scale(checkpoint: Checkpoint, names: Sequence[str]) -> str | None:
    """What stands against AdamW's scale of these parameters; None: nothing."""
    if checkpoint.run is None or not checkpoint.state:
        return f"{checkpoint.where} does not say which run it comes from"
    if not checkpoint.state.get("optimizer_steps"):
        return f"{checkpoint.where} has taken no step, its moments are zero"
    try:
        moments = MomentWeights.of(checkpoint)
    except ConfigError:
        return f"{checkpoint.where} has no optimizer state"
    missing = [name for name in names if f"{SECOND}/{name}" not in moments.shapes]
    if missing:
        others = f" and {len(missing) - 1} more" if missing[1:] else ""
        return f"{checkpoint.where} has no second moments of {missing[0]}{others}: another optimizer moves them (optim.muon)"
    return None


def adam_scale(checkpoint: Checkpoint, names: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """The square root of AdamW's preconditioner 1 / (sqrt(v / (1 - beta2^t)) + eps), by name, in float32.

    Two gradients times this have the inner product that the update direction of one has with the other. Where v is 0 no
    gradient was ever seen, the direction is undefined, and the entry is 0. Source: Kingma and Ba, arXiv 1412.6980, algorithm 1.

    Raises:
        ConfigError: the checkpoint has no second moments of these parameters.
    """
    problem = why_no_scale(checkpoint, names)
    if problem is not None:
        raise ConfigError(f"--precondition=adam: {problem}; give --precondition none, or other --steps or --parameters")
    assert checkpoint.run is not None
    moments, optim, t = MomentWeights.of(checkpoint), checkpoint.run.optim, int(checkpoint.state["optimizer_steps"])
    scales = {}
    for name in names:
        second = moments.read(f"{SECOND}/{name}").to(device)
        root = (second / (1 - optim.beta2**t)).sqrt_().add_(optim.eps)
        scales[name] = torch.where(second > 0, root.rsqrt(), 0.0)
    return scales


def rescale(gradient: Gradient, scales: Mapping[str, Tensor] | None) -> Gradient:
    """Multiply in place by `scales`; None: by 1."""
    for name, scale in (scales or {}).items():
        gradient[name].mul_(scale)
    return gradient


# ---- inner products --------------------------------------------------------------------------------------------------------


def inner(a: Gradient, b: Gradient, model: ModelConfig) -> dict[Cell, float]:
    """Inner products of two gradients by layer, kind of matrix and expert, in float64; they sum to the whole one."""
    cells: dict[Cell, float] = {}
    for name, tensor in a.items():
        rows = _row_products(tensor, b[name])
        for matrix in matrices_of(name, tuple(tensor.shape), model):
            cell = Cell(matrix.layer, matrix.kind, matrix.expert)
            cells[cell] = cells.get(cell, 0.0) + float(rows[matrix.slices()].sum())
    return cells


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the last dim of a * b: float64, shape[:-1], a block of rows at a time."""
    width = a.shape[-1]
    flat = [tensor.reshape(-1, width).split(max(1, BLOCK_ELEMENTS // width)) for tensor in (a, b)]
    parts = [torch.linalg.vecdot(x.double(), y.double()) for x, y in zip(*flat, strict=True)]
    return torch.cat(parts).reshape(a.shape[:-1]).cpu()


def total(cells: Mapping[Cell, float]) -> float:
    """Of all cells."""
    return math.fsum(cells.values())


def by_group(cells: Mapping[Cell, float]) -> dict[tuple[int | None, str], float]:
    """Summed over experts: by (layer, kind)."""
    out: dict[tuple[int | None, str], float] = {}
    for cell, number in cells.items():
        out[cell.layer, cell.kind] = out.get((cell.layer, cell.kind), 0.0) + number
    return out


def by_expert(cells: Mapping[Cell, float]) -> dict[tuple[int, int], float]:
    """Summed over the matrices of an expert: by (layer, expert)."""
    out: dict[tuple[int, int], float] = {}
    for cell, number in cells.items():
        if cell.layer is not None and cell.expert is not None:
            out[cell.layer, cell.expert] = out.get((cell.layer, cell.expert), 0.0) + number
    return out


def cosine(dot: float, square_a: float, square_b: float) -> float | None:
    """dot / (|a| |b|); None where one of them is zero."""
    norms = math.sqrt(max(square_a, 0.0)) * math.sqrt(max(square_b, 0.0))
    return dot / norms if norms > 0 else None
