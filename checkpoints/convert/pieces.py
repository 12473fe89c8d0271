"""A tensor of a checkpoint in pieces of bounded size, so that converting a model never holds more than a piece of it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from checkpoints.opening import Checkpoint
from checkpoints.weights import Weights
from olmo_train.errors import CheckpointError
from olmo_train.model.shapes import param_shapes

PIECE_BYTES = 64 * 2**20
"""Read and written at a time; a row (an expert, where experts are stacked) is never cut."""


def pieces(weights: Weights, name: str, rows: tuple[int, int]) -> Iterator[Tensor]:
    """Consecutive rows [start, stop) of a tensor, as stored."""
    shape = weights.shapes[name]
    row_bytes = torch.Size(shape[1:]).numel() * weights.dtype(name).itemsize
    step = max(1, PIECE_BYTES // max(row_bytes, 1))
    for start in range(rows[0], rows[1], step):
        yield weights.read(name, (start, min(start + step, rows[1])))


def check_shapes(checkpoint: Checkpoint) -> None:
    """That the weights are those of the config; reads none.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or would be left out; lists them.
    """
    shapes = param_shapes(checkpoint.model)
    problems = []
    for shape in shapes:
        found = checkpoint.weights.shapes.get(shape.name)
        if found is None:
            problems.append(f"{shape.name} is missing")
        elif tuple(found) != shape.shape:
            problems.append(f"{shape.name} has shape {tuple(found)}, its config says {shape.shape}")
    known = {shape.name for shape in shapes}
    problems += [f"{name} is not in its config" for name in checkpoint.weights.shapes if name not in known]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{checkpoint.where}: its weights are not those of its config: {'; '.join(problems[:3])}{more}")
