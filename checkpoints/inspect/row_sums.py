"""Sums over each row of a tensor, or of two tensors, read in pieces: memory holds a few MiB, whatever the tensor.

A row is the last dim. Rows add up to any matrix, layer or kind, so that each weight is read once for all summaries.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from olmo_train.kernels.cpu_threads import run_each

T = TypeVar("T")
PIECE_ELEMENTS = 2**22
"""Of a tensor, read at once."""
BLOCK_ELEMENTS = 2**18
"""Summed at once: 2 MiB in float64, so that what is computed on the way stays in a CPU's caches."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def of_each(work: Callable[[str], T], names: Sequence[str]) -> list[T]:
    """`work(name)` of every tensor, in the order of `names`: each on one thread, as many at a time as torch has threads."""
    found: dict[str, T] = {}

    def keep(name: str) -> None:
        found[name] = work(name)

    run_each(keep, names)
    return [found[name] for name in names]


class Readable(Protocol):
    """What `checkpoints.weights.Weights` has; moments have it too."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every tensor."""

    def dtype(self, name: str) -> torch.dtype:
        """As stored."""

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Rows [start, stop) along dim 0."""


@dataclass
class RowStats:
    """Of each row of one tensor: float64, shape[:-1]."""

    square: Tensor
    total: Tensor
    low: Tensor
    high: Tensor


@dataclass
class RowDifferences:
    """Of each row of two tensors a and b: float64, shape[:-1]."""

    square_a: Tensor
    square_b: Tensor
    square_difference: Tensor
    dot: Tensor
    max_abs: Tensor
    """Largest absolute difference."""
    n_bits: Tensor
    """Elements whose bits differ; where the number formats differ, all of them."""
    n_rounded: Tensor
    """Elements that differ even after the wider format is rounded to the narrower one."""


Sums = TypeVar("Sums", RowStats, RowDifferences)


def row_stats(weights: Readable, name: str) -> RowStats:
    """Of one tensor."""

    def stats(start: int, stop: int) -> RowStats:
        return _in_blocks(_stats, weights.read(name, (start, stop)))

    return _joined(stats, weights.shapes[name])


def row_differences(a: Readable, b: Readable, name: str) -> RowDifferences:
    """Of a tensor that both have, in one shape."""

    def differences(start: int, stop: int) -> RowDifferences:
        return _in_blocks(_differences, a.read(name, (start, stop)), b.read(name, (start, stop)))

    return _joined(differences, a.shapes[name])


def _stats(x_RC: Tensor) -> RowStats:
    x = x_RC.double()
    low, high = x.aminmax(dim=-1)
    return RowStats(torch.linalg.vecdot(x, x), x.sum(-1), low, high)


def _differences(a_RC: Tensor, b_RC: Tensor) -> RowDifferences:
    x, y = a_RC.double(), b_RC.double()
    difference = y - x
    low, high = difference.aminmax(dim=-1)
    if a_RC.dtype == b_RC.dtype:
        bits = _BITS[a_RC.element_size()]
        n_bits = n_rounded = (a_RC.view(bits) != b_RC.view(bits)).count_nonzero(-1).double()
    else:
        narrow = min(a_RC.dtype, b_RC.dtype, key=lambda dtype: dtype.itemsize)
        n_bits = torch.full(a_RC.shape[:1], a_RC.shape[1], dtype=torch.float64)
        n_rounded = (a_RC.to(narrow) != b_RC.to(narrow)).count_nonzero(-1).double()
    dot = torch.linalg.vecdot
    return RowDifferences(
        dot(x, x), dot(y, y), dot(difference, difference), dot(x, y), torch.maximum(high, -low), n_bits, n_rounded
    )


def _in_blocks(sums: Callable[..., Sums], *tensors: Tensor) -> Sums:
    """Sums over the rows of tensors of one shape, a block of rows at a time."""
    shape = tensors[0].shape
    flat = [tensor.reshape(-1, shape[-1]) for tensor in tensors]
    each = max(1, BLOCK_ELEMENTS // shape[-1])
    parts = [sums(*blocks) for blocks in zip(*(tensor.split(each) for tensor in flat), strict=True)]
    return _concatenated(parts, shape[:-1])


def _joined(sums: Callable[[int, int], Sums], shape: tuple[int, ...]) -> Sums:
    """Sums over pieces of dim 0, put together; a vector is one row."""
    if len(shape) == 1:
        return sums(0, shape[0])
    return _concatenated([sums(start, stop) for start, stop in _pieces(shape)], shape[:-1])


def _concatenated(parts: list[Sums], shape: tuple[int, ...]) -> Sums:
    columns = {field.name: torch.cat([getattr(part, field.name) for part in parts]).reshape(shape) for field in fields(parts[0])}
    return type(parts[0])(**columns)


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Ranges along dim 0 of about PIECE_ELEMENTS."""
    each = max(1, PIECE_ELEMENTS // max(1, torch.Size(shape[1:]).numel()))
    for start in range(0, shape[0], each):
        yield start, min(start + each, shape[0])
