"""Lay a model over the ranks with FSDP2: fp32 shards, compute in the configured dtype, plain sums of gradients."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from olmo_train.config.dtypes import FloatType
from olmo_train.config.train import ParallelConfig, Recompute
from olmo_train.parallel.mesh import Layout
from olmo_train.parallel.recompute import recompute

DTYPES = {FloatType.FLOAT32: torch.float32, FloatType.BFLOAT16: torch.bfloat16}


def shard(model: nn.Module, units: list[nn.Module], layout: Layout, config: ParallelConfig) -> None:
    """Wrap `model` (on the meta device) in place: recompute, then compile, then shard, each block by itself and then the rest.

    Afterwards parameters are DTensors without storage; see `materialize`.
    """
    for unit in units:
        if config.recompute != Recompute.NONE:
            recompute(unit, config.recompute)
        if config.compile:
            unit.compile(backend=config.compile_backend)
    # Inputs are not cast: rotary angles must stay fp32, and activations already have the compute dtype from the embedding.
    policy = MixedPrecisionPolicy(DTYPES[config.compute_dtype], DTYPES[config.reduce_dtype], cast_forward_inputs=False)
    for unit in units:
        fully_shard(unit, mesh=layout.mesh, mp_policy=policy, reshard_after_forward=config.reshard_after_forward)
    # The root's own weights (embedding, output) are needed first in the backward pass: freeing them would only fetch them again.
    fully_shard(model, mesh=layout.mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # FSDP averages over ranks; we divide by the global count of targets ourselves, so gradients must be summed.
            module.set_gradient_divide_factor(1.0)
            if layout.device.type == "cpu":
                module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    if layout.device.type == "cuda":
        _prefetch(units)


def _prefetch(units: list[nn.Module]) -> None:
    """Gather the next block's weights while this one computes, in both directions."""
    for i, unit in enumerate(units):
        assert isinstance(unit, FSDPModule)
        unit.set_modules_to_forward_prefetch(units[i + 1 : i + 2])  # type: ignore[arg-type]
        unit.set_modules_to_backward_prefetch(units[max(i - 1, 0) : i])  # type: ignore[arg-type]


def materialize(model: nn.Module, device: torch.device) -> None:
    """Give every shard storage (uninitialised) and zero the buffers."""
    model.to_empty(device=device)
    for buffer in model.buffers():
        buffer.zero_()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients. Afterwards weights are sharded again, which otherwise only a backward pass would do."""
    model.eval()
    with torch.no_grad():
        yield
    model.train()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local_rows(param: Tensor, layout: Layout) -> tuple[int, int]:
    """Rows [start, stop) of dim 0 that this rank holds. FSDP2 cuts like torch.chunk: equal parts, the last ones short."""
    size = param.shape[0]
    n_shards = dist.get_world_size(layout.shard_group)
    per_shard = -(-size // n_shards)
    start = min(dist.get_rank(layout.shard_group) * per_shard, size)
    stop = min(start + per_shard, size)
    assert local(param).shape[0] == stop - start, (param.shape, local(param).shape, start, stop)
    return start, stop


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, sharing its storage; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
