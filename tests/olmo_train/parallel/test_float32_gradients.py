"""Gradients of bfloat16 weights, added up in float32: equal to the sum of what each micro-step reduced, and no more memory than it."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from olmo_train.config.dtypes import FloatType
from olmo_train.config.train import Device, ParallelConfig
from olmo_train.parallel.fsdp import Float32Gradients, local, materialize, shard
from olmo_train.parallel.mesh import init_distributed
from tests.distributed import spawn


class Net(nn.Module):
    """Parameters of odd sizes, in a block of its own and outside it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3, bias=False))
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x.bfloat16())).float().sum()


def gradients(shard_size: int, apart: bool) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[bool]]:
    """(sums by Float32Gradients or FSDP2; float32 sums of single micro-steps; what is left in .grad) of 64 micro-steps."""
    config = ParallelConfig(device=Device.CPU, compute_dtype=FloatType.BFLOAT16, shard_size=shard_size)
    layout = init_distributed(config)
    with torch.device("meta"):
        net = Net()
    shard(net, [net.block], layout, config, FloatType.BFLOAT16)
    materialize(net, layout.device)
    with torch.no_grad():
        for i, param in enumerate(net.parameters()):
            local(param).fill_(0.3 + i / 8)
    sums = Float32Gradients(net, layout) if apart else None
    single: dict[str, Tensor] = {}
    for step in range(64):
        x = torch.randn(2, 6, generator=torch.Generator().manual_seed(step * layout.n_ranks + layout.rank)) + 1
        net(x).backward()
        if sums is None:
            continue
        for name, rows in sums.take().items():  # a sum of one
            single[name] = single.get(name, 0) + rows.double()
    if sums is None:
        left = {name: local(param.grad).float().numpy() for name, param in net.named_parameters()}
        dist.destroy_process_group()
        return left, {}, []
    for step in range(64):
        x = torch.randn(2, 6, generator=torch.Generator().manual_seed(step * layout.n_ranks + layout.rank)) + 1
        net(x).backward()
    is_empty = [param.grad is None for param in net.parameters()]
    total = {name: rows.numpy() for name, rows in sums.take().items()}
    dist.destroy_process_group()
    return total, {name: rows.numpy() for name, rows in single.items()}, is_empty


@pytest.mark.parametrize(("n_ranks", "shard_size"), [(1, 1), (2, 2), (4, 2)])
def test_sums_are_those_of_the_micro_steps_in_float32(n_ranks: int, shard_size: int) -> None:
    for total, single, is_empty in spawn(gradients, n_ranks, shard_size, True):
        assert all(is_empty)
        assert total.keys() == single.keys()
        for name, rows in total.items():
            assert rows.dtype == np.float32
            np.testing.assert_allclose(rows, single[name], rtol=1e-5, atol=1e-4)
            assert rows.size == 0 or np.abs(rows).max() > 1


def test_fsdp2_alone_loses_what_this_keeps() -> None:
    ((exact, _, _),) = spawn(gradients, 1, 1, True)
    ((rough, _, _),) = spawn(gradients, 1, 1, False)
    error = [np.abs(rough[name] - rows).max() / np.abs(rows).max() for name, rows in exact.items()]
    assert 1e-3 < max(error) < 0.1
