"""What an optimizer is given of each parameter: this rank's rows, and where they stand in the whole."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from olmo_train.config.model import ModelConfig
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
    """Rows (of the last dim but one) of each matrix stacked in it; see `stacked_rows`."""
    copy: Tensor | None = None
    """What the model computes with, where that is of another dtype; optimizers write to it too."""

    @property
    def first(self) -> int:
        """Index, in the whole parameter, of the first element here."""
        row = 1
        for size in self.shape[1:]:
            row *= size
        return self.start * row


@torch.no_grad()
def publish(parts: Iterable[Part]) -> None:
    """Bring the copies that the model computes with up to date."""
    pairs = [(part.copy, part.tensor) for part in parts if part.copy is not None]
    if pairs:
        torch._foreach_copy_([copy for copy, _ in pairs], [tensor for _, tensor in pairs])


def stacked_rows(name: str, shape: tuple[int, ...], model: ModelConfig) -> tuple[int, ...]:
    """Rows of each matrix that one parameter stacks: q, k and v; gate and up; else all of them. () for a vector."""
    if len(shape) < 2:
        return ()
    rows = shape[-2]
    if name.endswith(".w_qkv.weight"):
        n_kv_heads = model.n_kv_heads if model.n_kv_heads is not None else model.n_heads
        head = rows // (model.n_heads + 2 * n_kv_heads)
        return model.n_heads * head, n_kv_heads * head, n_kv_heads * head
    if name.endswith((".w_in.weight", ".w_in")):
        return rows // 2, rows // 2
    return (rows,)
