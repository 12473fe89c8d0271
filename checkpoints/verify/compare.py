"""How far a replayed checkpoint is from the published one: bits, distances, what it was fed, what the machines had different."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.weights import Weights
from olmo_train.checkpoint import load_rows

MAX_ELEMENTS = 2**24
"""Of a tensor, compared at a time."""


@dataclass
class Difference:
    """Between two sets of tensors, seen from where both came from."""

    is_equal: bool = True
    """Bit for bit."""
    n: int = 0
    max_abs: float = 0.0
    where: str = ""
    """The tensor with the largest difference."""
    squares: float = 0.0
    update_squares: float = 0.0
    """Of the published movement."""

    @property
    def rms(self) -> float:
        """Root of the mean squared difference."""
        return math.sqrt(self.squares / max(self.n, 1))

    @property
    def of_update(self) -> float:
        """Norm of the difference over the norm of the published movement; infinite if nothing moved."""
        if self.squares == 0:
            return 0.0
        return math.sqrt(self.squares / self.update_squares) if self.update_squares > 0 else math.inf

    def add(self, name: str, before: Tensor, published: Tensor, replayed: Tensor) -> None:
        """Compare rows of one tensor; `replayed` is rounded to what was published."""
        replayed = replayed.to(published.dtype)
        self.is_equal &= torch.equal(_bits(published), _bits(replayed))
        difference = (published.double() - replayed.double()).abs()
        largest = float(difference.max()) if difference.numel() else 0.0
        if not math.isfinite(largest) or largest > self.max_abs:
            self.max_abs, self.where = largest, name
        self.n += difference.numel()
        self.squares += float(difference.square().sum())
        self.update_squares += float((published.double() - before.double()).square().sum())


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def compare_weights(before: Weights, published: Weights, replayed: Weights) -> Difference:
    """Weights at the start of a replay, and the two at its end; memory holds a piece of one tensor of each."""
    found = Difference()
    for name, shape in published.shapes.items():
        for rows in _pieces(shape):
            found.add(name, before.read(name, rows), published.read(name, rows), replayed.read(name, rows))
    return found


@dataclass(frozen=True)
class Moments:
    """The optimizer's tensors in a folder, and the manifest of the step folder that says where."""

    folder: Path
    manifest: Mapping[str, Any]

    def read(self, name: str, rows: tuple[int, int]) -> Tensor:
        """Rows of one."""
        return load_rows(self.folder, self.manifest, "optim", {name: rows})[name]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all of them."""
        return {name: tuple(entry["shape"]) for name, entry in self.manifest["tensors"].get("optim", {}).items()}


def compare_moments(before: Moments, published: Moments, replayed: Moments) -> Difference:
    """The same of the optimizer's state."""
    found = Difference(is_equal=before.shapes == published.shapes == replayed.shapes)
    for name, shape in published.shapes.items():
        if before.shapes.get(name) == replayed.shapes.get(name) == shape:
            for rows in _pieces(shape):
                found.add(name, before.read(name, rows), published.read(name, rows), replayed.read(name, rows))
    return found


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    step = max(1, MAX_ELEMENTS // max(math.prod(shape[1:]), 1))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


@dataclass(frozen=True)
class Losses:
    """Of the replayed steps against the published ones."""

    n: int
    n_equal: int
    max_relative: float
    """Largest |difference| / published loss."""


def compare_losses(published: Mapping[int, dict[str, Any]], replayed: Mapping[int, dict[str, Any]]) -> Losses:
    """Lines of metrics.jsonl by step; both have the same steps."""
    pairs = [(published[step].get("loss"), replayed[step].get("loss")) for step in sorted(published)]
    relative = [0.0 if a == b else abs(a - b) / abs(a) if a and b is not None else math.inf for a, b in pairs]
    return Losses(len(pairs), sum(a == b for a, b in pairs), max(relative, default=0.0))


def other_data(published: Mapping[int, dict[str, Any]], replayed: Mapping[int, dict[str, Any]]) -> list[str]:
    """Steps that were fed something else, by the lines of data.jsonl."""
    problems = []
    for step, line in sorted(published.items()):
        found = replayed[step]
        for name in ("position", "rows", "checksum", "masked_rows"):
            if line.get(name) != found.get(name):
                problems.append(f"step {step} was fed other data: {name} {found.get(name)}, published {line.get(name)}")
    return problems


def other_machine(published: Mapping[str, Any], replayed: Mapping[str, Any]) -> list[str]:
    """What two starts of a run (provenance.json) had different that can change the last bits."""
    differences = []
    for name in ("device", "cuda", "n_ranks", "threads_per_rank", "kernels", "versions", "git"):
        there, here = published.get(name), replayed.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            differences += [
                f"{name}.{key}: {there.get(key)} there, {here.get(key)} here"
                for key in sorted(there.keys() | here.keys())
                if there.get(key) != here.get(key) and key != "passed_over"
            ]
        elif there != here:
            differences.append(f"{name}: {there} there, {here} here")
    return differences
