"""Lay a model over the ranks with FSDP2: shards, compute and reduction each in its dtype, plain sums of gradients."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from olmo_train.config.dtypes import FloatType
from olmo_train.config.train import Float8, ParallelConfig, Recompute
from olmo_train.parallel.float8 import use_float8
from olmo_train.parallel.mesh import Layout
from olmo_train.parallel.recompute import recompute

DTYPES = {FloatType.FLOAT32: torch.float32, FloatType.BFLOAT16: torch.bfloat16}


def shard(model: nn.Module, units: list[nn.Module], layout: Layout, config: ParallelConfig, weight_dtype: FloatType) -> None:
    """Wrap `model` (on the meta device) in place: float8, recompute, compile, shard, each block by itself and then the rest.

    Afterwards parameters have no storage yet; see `materialize`. On several ranks they are DTensors of `weight_dtype` (all of
    them: FSDP2 wants one dtype in a group). One rank has nothing to gather or to reduce, and FSDP2 would copy every weight twice
    and every gradient three times for it: there they are plain tensors of the compute dtype (weights of another: weights.py).
    Buffers keep their dtypes.
    """
    is_sharded = layout.n_ranks > 1
    for param in model.parameters():
        param.data = param.data.to(DTYPES[weight_dtype if is_sharded else config.compute_dtype])
    if config.float8 != Float8.NONE:
        use_float8(units, config.float8, layout.device)
    for unit in units:
        if config.recompute != Recompute.NONE:
            recompute(unit, config.recompute)
        if config.compile:
            # Whole or not at all: a graph break would be slow without a word. Shapes never change between steps.
            unit.compile(backend=config.compile_backend, fullgraph=True)
    if is_sharded:
        _fully_shard(model, units, layout, config)


def _fully_shard(model: nn.Module, units: list[nn.Module], layout: Layout, config: ParallelConfig) -> None:
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
        _prefetch(model, units, config.prefetch)


def _prefetch(model: nn.Module, units: list[nn.Module], ahead: int) -> None:
    """Gather the weights of the next blocks while one computes, in both directions; the root comes first in both."""
    order = [model, *units]
    for i, unit in enumerate(order):
        assert isinstance(unit, FSDPModule)
        unit.set_modules_to_forward_prefetch(order[i + 1 : i + 1 + ahead])  # type: ignore[arg-type]
    order = [model, *reversed(units)]
    for i, unit in enumerate(order):
        assert isinstance(unit, FSDPModule)
        unit.set_modules_to_backward_prefetch(order[i + 1 : i + 1 + ahead])  # type: ignore[arg-type]


def begin_micro_step(model: nn.Module, is_last: bool, config: ParallelConfig) -> None:
    """Tell FSDP2 what to reduce behind the next backward pass; one rank has nothing to reduce."""
    if isinstance(model, FSDPModule):
        model.set_is_last_backward(is_last)
        model.set_requires_gradient_sync(is_last or config.reduce_every_micro_step)
        # Replicas are summed once a step; until then FSDP2 keeps a shard group's sums, in the dtype of the reduction.
        model.set_requires_all_reduce(is_last or config.reduce_dtype != FloatType.FLOAT32)


def materialize(model: nn.Module, device: torch.device) -> None:
    """Give every shard storage (uninitialised) and zero the buffers."""
    model.to_empty(device=device)
    for buffer in model.buffers():
        buffer.zero_()


class Float32Gradients:
    """Adds up in float32 the bfloat16 gradients of the micro-steps of a step, where autograd and FSDP2 would do it in bfloat16.

    On one rank a parameter's gradient is taken as soon as it is there, so that no more than one is held twice.

    FSDP2 rounds each reduced gradient to the parameter's dtype, and would add the micro-steps up in it. (`Tensor.grad_dtype` of
    the parameter changes nothing: FSDP2 casts to the dtype its group began with, in torch 2.11 as in 2.13.) Its all-reduce hook
    sees the sum before that, for a whole block; the parameters' hooks follow in the order in which their rows lie in it. The
    rounded gradient lives no longer than its block's reduction.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        """Install the hooks on a model that `shard` has laid out."""
        self._sums: dict[str, Tensor] = {}
        self._reduced = torch.empty(0)
        self._offset = 0
        if not isinstance(model, FSDPModule):
            for name, param in model.named_parameters():
                param.register_post_accumulate_grad_hook(functools.partial(self._take, name))
            return
        n_shards = dist.get_world_size(layout.shard_group)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_all_reduce_hook(self.see_block)
        for name, param in model.named_parameters():
            elements = param.shape[1:].numel()
            padded = -(-param.shape[0] // n_shards) * elements
            param.register_post_accumulate_grad_hook(functools.partial(self._take_rows, name, padded))

    def take(self) -> dict[str, Tensor]:
        """This rank's sums by parameter, and begin anew."""
        sums, self._sums = self._sums, {}
        return sums

    def see_block(self, reduced: Tensor) -> None:
        """Keep what FSDP2 has reduced for one block; its all-reduce hook."""
        if reduced.is_cuda:  # allocated on another stream, which must not hand it out again before we have read it
            reduced.record_stream(torch.cuda.current_stream())
        self._reduced, self._offset = reduced, 0

    def _take(self, name: str, param: Tensor) -> None:
        assert param.grad is not None
        self._add(name, param.grad)
        param.grad = None

    def _add(self, name: str, grad: Tensor) -> None:
        if name in self._sums:
            self._sums[name] += grad
        else:
            self._sums[name] = grad.float()  # of one that is float32 already: kept, not copied

    def _take_rows(self, name: str, padded: int, param: Tensor) -> None:
        assert param.grad is not None
        shape = local(param.grad).shape
        self._add(name, self._reduced[self._offset : self._offset + shape.numel()].view(shape))
        self._offset += padded
        param.grad = None
        if self._offset == len(self._reduced):
            self._reduced = torch.empty(0)  # of later micro-steps nothing is kept


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
