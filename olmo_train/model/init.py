"""Initial weights as a function of (seed, parameter name, row): the same numbers on every device and under every sharding."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from olmo_train.config.model import Init, ModelConfig
from olmo_train.config.optim import ParamKind
from olmo_train.model.shapes import ParamShape
from olmo_train.rng import seed_of

BLOCK_ELEMENTS = 2**20
"""Elements drawn from one seed; a rank draws only the blocks that its rows touch."""


def initial_rows(shape: ParamShape, model: ModelConfig, seed: int, rows: tuple[int, int]) -> Tensor:
    """Rows [start, end) along dim 0 of the initial value of a parameter, float32 on the CPU.

    Sources: OLMoE appendix B (truncated normal, std 0.02, cut at 3 std, every weight); OLMo `olmo/model.py` (mitchell).
    """
    start, end = rows
    if shape.kind == ParamKind.NORM:
        return torch.ones(end - start, *shape.shape[1:])
    std, cut = _std(shape, model)
    row_elements = shape.size // shape.shape[0]
    block_rows = max(1, BLOCK_ELEMENTS // row_elements)
    parts = []
    for block in range(start // block_rows, -(-end // block_rows)):
        first = block * block_rows
        last = min(first + block_rows, shape.shape[0])
        generator = torch.Generator().manual_seed(seed_of("init", seed, shape.name, block))
        values = _truncated_normal((last - first, *shape.shape[1:]), cut, generator).mul_(std)
        parts.append(values[max(start - first, 0) : end - first])
    return torch.cat(parts) if parts else torch.empty(0, *shape.shape[1:])


def _truncated_normal(size: tuple[int, ...], cut: float, generator: torch.Generator) -> Tensor:
    """Standard normal values within +-cut, float32, by the inverse of the distribution.

    Our own, because `torch.nn.init.trunc_normal_` draws other numbers from one seed in torch 2.13 than in 2.11. In float64, so
    that what is left of differences between libraries is rounded away.
    """
    bound = math.erf(cut / math.sqrt(2))
    uniform = torch.empty(size, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
    return uniform.erfinv_().mul_(math.sqrt(2)).clamp_(-cut, cut).float()


def _std(shape: ParamShape, model: ModelConfig) -> tuple[float, float]:
    """(standard deviation, cut in standard deviations)."""
    if model.init == Init.TRUNCATED_NORMAL:
        return model.init_std, model.init_cutoff_factor
    if shape.is_output and shape.layer is not None:
        return 1 / math.sqrt(2 * shape.shape[-1] * (shape.layer + 1)), 3.0
    return 1 / math.sqrt(model.d_model), 3.0


@torch.no_grad()
def init_params(module: torch.nn.Module, shapes: Iterable[ParamShape], model: ModelConfig, seed: int) -> None:
    """Fill an unsharded model (sharded ones go through parallel/fsdp.py with the same `initial_rows`)."""
    params = dict(module.named_parameters())
    for shape in shapes:
        params[shape.name].copy_(initial_rows(shape, model, seed, (0, shape.shape[0])))
