"""Choose the optimizer of a run: which algorithm, and in which number formats."""

from collections.abc import Mapping
from typing import Protocol

import torch.distributed as dist
from torch import Tensor

from olmo_train.config.dtypes import FloatType, MomentType
from olmo_train.config.optim import OptimConfig, ParamKind
from olmo_train.optim.adamw import AdamW, CompactAdamW
from olmo_train.optim.muon import Muon
from olmo_train.optim.parts import Part


class Optimizer(Protocol):
    """What the trainer asks of an optimizer; it works on this rank's rows, in place."""

    def step(self, grads: Mapping[str, Tensor], lr: float, grad_scale: Tensor, skip: Tensor) -> None:
        """Update with gradients divided by `grad_scale`, unless `skip` is 1 (both float32 scalars on the device)."""

    @property
    def steps_taken(self) -> int:
        """Updates applied, skipped ones not counted. Synchronises."""

    def moments(self) -> dict[str, Tensor]:
        """The live local tensors as `<moment>/<parameter>`, each with as many rows as the part of its parameter."""

    def load(self, saved: Mapping[str, Tensor], steps_taken: int) -> None:
        """Take over what `moments` of any recipe returned, for this rank's rows, and the step count."""


def build_optimizer(parts: Mapping[str, Part], config: OptimConfig, seed: int, shard_group: dist.ProcessGroup) -> Optimizer:
    """The optimizer of all parameters. `shard_group`: the ranks among which rows are cut; `seed`: of stochastic rounding."""
    if config.muon is None:
        return _build_adamw(parts, config, seed)
    matrices = {name: part for name, part in parts.items() if part.kind == ParamKind.MATRIX}
    rest = {name: part for name, part in parts.items() if part.kind != ParamKind.MATRIX}
    return Muon(matrices, _build_adamw(rest, config, seed), config, seed, shard_group)


def _build_adamw(parts: Mapping[str, Part], config: OptimConfig, seed: int) -> AdamW | CompactAdamW:
    match config.weight_dtype, config.moment_dtype:
        case FloatType.FLOAT32, MomentType.FLOAT32 if all(part.copy is None for part in parts.values()):  # float32 gradients too
            tensors = {name: part.tensor for name, part in parts.items()}
            return AdamW(tensors, {name: part.kind for name, part in parts.items()}, config)
        case _:
            return CompactAdamW(parts, config, seed)
