"""The weights that are updated and saved: this rank's rows of every parameter."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from olmo_train.parallel.fsdp import local, local_rows
from olmo_train.parallel.mesh import Layout


class Weight(NamedTuple):
    """This rank's rows of one parameter."""

    tensor: Tensor
    """In the dtype it is updated and saved in."""
    copy: Tensor | None
    """What the model computes with, where that is of another dtype (only on one rank: FSDP2 makes its own); to be kept equal."""
    rows: tuple[int, int]
    """[start, stop) of dim 0 of the whole."""
    shape: tuple[int, ...]
    """Of the whole."""

    @torch.no_grad()
    def fill(self, values: Tensor) -> None:
        """Take over values of these rows, of any dtype and device."""
        self.tensor.copy_(values)
        if self.copy is not None:
            self.copy.copy_(values)


def weights_of(model: nn.Module, layout: Layout, dtype: torch.dtype) -> dict[str, Weight]:
    """The model's own parameters by name, or weights of `dtype` (uninitialised) beside them."""
    weights = {}
    for name, param in model.named_parameters():
        mine = local(param).detach()
        own = mine.dtype == dtype
        tensor = mine if own else torch.empty_like(mine, dtype=dtype)
        weights[name] = Weight(tensor, None if own else mine, local_rows(param, layout), tuple(param.shape))
    return weights
