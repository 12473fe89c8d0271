"""What an optimizer is given of each parameter: this rank's rows, and where they stand in the whole."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from olmo_train.config.optim import ParamKind


@dataclass(frozen=True)
class Part:
    """This rank's rows of one parameter."""

    tensor: Tensor
    """The live rows; optimizers write to it."""
    kind: ParamKind
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """Row of the whole at which `tensor` begins."""
    stacked: tuple[int, ...] = ()
    """Rows (of the last dim but one) of each matrix stacked in it (model/shapes.py)."""
    copy: Tensor | None = None
    """What the model computes with, where that is of another dtype; optimizers write to it too."""

    @property
    def first(self) -> int:
        """Index, in the whole parameter, of the first element here."""
        return self.start * math.prod(self.shape[1:])


@torch.no_grad()
def publish(parts: Iterable[Part]) -> None:
    """Bring the copies that the model computes with up to date."""
    pairs = [(part.copy, part.tensor) for part in parts if part.copy is not None]
    if pairs:
        torch._foreach_copy_([copy for copy, _ in pairs], [tensor for _, tensor in pairs])
