"""Small agreements between ranks."""

from typing import Any

import torch
import torch.distributed as dist

from olmo_train.parallel.mesh import Layout


def any_rank(layout: Layout, flag: bool) -> bool:
    """True on every rank if it is true on one."""
    value = torch.tensor(int(flag))
    dist.all_reduce(value, dist.ReduceOp.MAX, group=layout.control)
    return bool(value)


def from_main(layout: Layout, value: Any = None) -> Any:
    """Rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=layout.control)
    return box[0]


def gather_to_all(layout: Layout, value: Any) -> list[Any]:
    """Every rank's value, in rank order."""
    values: list[Any] = [None] * layout.n_ranks
    dist.all_gather_object(values, value, group=layout.control)
    return values
