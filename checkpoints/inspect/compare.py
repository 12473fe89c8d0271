"""Two checkpoints of any kind, tensor by tensor. Memory holds a few MiB of each, whatever the models."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

from checkpoints.inspect.matrices import Matrix, matrices_of
from checkpoints.inspect.moments import MomentWeights
from checkpoints.inspect.row_sums import Readable, of_each, row_differences
from checkpoints.inspect.totals import Total, matrix_total, sum_totals
from checkpoints.opening import Checkpoint
from olmo_train.checkpoint import DTYPE_NAMES
from olmo_train.config.model import ModelConfig
from olmo_train.model.shapes import d_head, n_kv_heads, vocab_rows
from olmo_train.schema import to_plain


@dataclass(frozen=True)
class Side:
    """One of the two checkpoints."""

    where: str
    step: int | None
    tokens: int | None
    dtypes: list[str]
    """Number formats of its tensors, by safetensors' names."""


@dataclass(frozen=True)
class Compared:
    """Some weights of A against the same of B."""

    n: int
    """Elements."""
    norm_a: float
    norm_b: float
    norm_difference: float
    """Of B - A."""
    relative: float | None
    """norm_difference / norm_a; None if that is 0."""
    cosine: float | None
    """None if a norm is 0."""
    max_abs: float
    """Largest absolute difference."""
    n_different: int
    """Elements whose bits differ; all, if the number formats differ."""
    n_rounded: int
    """Elements that differ even after the wider number format is rounded to the narrower one."""


@dataclass(frozen=True)
class ComparedMatrix:
    """One matrix or vector."""

    name: str
    kind: str
    layer: int | None
    shape: tuple[int, ...]
    values: Compared


@dataclass(frozen=True)
class Mismatch:
    """A tensor that both have in different shapes."""

    name: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]


@dataclass(frozen=True)
class FieldDifference:
    """A field of the config; absent is None."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Part:
    """All weights, or all moments of the optimizer."""

    is_equal: bool
    """Every tensor of either is in the other, bit for bit."""
    is_rounded: bool
    """The same after the wider number format is rounded to the narrower one, tensor by tensor."""
    all: Compared
    by_kind: dict[str, Compared]
    by_layer: dict[int, Compared]
    matrices: list[ComparedMatrix]
    """In the order of the model."""
    only_in_a: list[str]
    only_in_b: list[str]
    shapes: list[Mismatch]

    def movers(self, n: int) -> list[ComparedMatrix]:
        """The matrices with the largest relative difference, largest first; equal ones are left out."""
        moved = [matrix for matrix in self.matrices if matrix.values.n_rounded]
        return sorted(moved, key=lambda matrix: -_order(matrix.values))[:n]


@dataclass(frozen=True)
class Difference:
    """Everything that was compared."""

    a: Side
    b: Side
    weights: Part
    optimizer: Part | None
    """None: not asked for."""
    config: list[FieldDifference]


def _order(values: Compared) -> float:
    if values.relative is None:
        return math.inf if values.norm_difference else 0.0
    return math.inf if math.isnan(values.relative) else values.relative


def compare(a: Checkpoint, b: Checkpoint, with_optimizer: bool = False) -> Difference:
    """Compare all weights (and moments) of two checkpoints of any kind.

    Raises:
        CheckpointError: a tensor cannot be read. ConfigError: moments are asked for and one has none.
    """
    moments = (MomentWeights.of(a), MomentWeights.of(b)) if with_optimizer else None
    weights = _part(a.weights, b.weights, a.model, b.model)
    optimizer = None if moments is None else _part(*moments, a.model, b.model)
    return Difference(_side(a), _side(b), weights, optimizer, config_differences(a, b))


def _part(a: Readable, b: Readable, model_a: ModelConfig, model_b: ModelConfig) -> Part:
    def compare_one(name: str) -> list[tuple[Matrix, Total]]:
        sums = row_differences(a, b, name)
        return [(matrix, matrix_total(sums, matrix)) for matrix in _matrices(name, a.shapes[name], model_a, model_b)]

    both = [name for name in a.shapes if name in b.shapes]
    shapes = [Mismatch(name, a.shapes[name], b.shapes[name]) for name in both if a.shapes[name] != b.shapes[name]]
    alike = [name for name in both if a.shapes[name] == b.shapes[name]]
    totals = [entry for entries in of_each(compare_one, alike) for entry in entries]
    only_a, only_b = [name for name in a.shapes if name not in b.shapes], [name for name in b.shapes if name not in a.shapes]
    whole, is_complete = sum_totals(total for _, total in totals), not (only_a or only_b or shapes)
    return Part(
        is_complete and whole.n_bits == 0, is_complete and whole.n_rounded == 0, _compared(whole),
        _grouped(totals, lambda matrix: matrix.kind), _grouped(totals, lambda matrix: matrix.layer),
        [ComparedMatrix(m.name, m.kind, m.layer, m.shape, _compared(total)) for m, total in totals], only_a, only_b, shapes,
    )  # fmt: skip


def _matrices(name: str, shape: tuple[int, ...], a: ModelConfig, b: ModelConfig) -> list[Matrix]:
    """Cut as both models cut it, or not at all."""
    cut = matrices_of(name, shape, a)
    return cut if cut == matrices_of(name, shape, b) else matrices_of(name, shape, None)


def _side(checkpoint: Checkpoint) -> Side:
    weights = checkpoint.weights
    dtypes = sorted({DTYPE_NAMES[weights.dtype(name)] for name in weights.shapes})
    return Side(checkpoint.where, checkpoint.step, checkpoint.state.get("tokens"), dtypes)


def _compared(total: Total) -> Compared:
    return Compared(
        total.n, total.norm_a, total.norm_b, total.norm_difference, total.relative, total.cosine, total.max_abs, total.n_bits,
        total.n_rounded,
    )  # fmt: skip


def _grouped(totals: list[tuple[Matrix, Total]], key: Callable[[Matrix], Any]) -> dict[Any, Compared]:
    groups: dict[Hashable, list[Total]] = defaultdict(list)
    for matrix, total in totals:
        if key(matrix) is not None:
            groups[key(matrix)].append(total)
    return {name: _compared(sum_totals(parts)) for name, parts in groups.items()}


def config_differences(a: Checkpoint, b: Checkpoint) -> list[FieldDifference]:
    """Fields of the runs' configs that differ; of the models' alone where one is no run of ours.

    Widths of the model that a config leaves to follow from others (None) are compared as what they are.
    """
    models = _plain_model(a.model), _plain_model(b.model)
    if a.run is not None and b.run is not None:
        left, right = (_flat(to_plain(run) | {"model": model}) for run, model in zip((a.run, b.run), models, strict=True))
    else:
        left, right = (_flat({"model": m, "seq_len": c.seq_len}) for m, c in zip(models, (a, b), strict=True))
    names = [*left, *(name for name in right if name not in left)]
    return [FieldDifference(name, left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)]


def _plain_model(model: ModelConfig) -> Any:
    kv_heads, rows = n_kv_heads(model), vocab_rows(model)
    return to_plain(replace(model, n_kv_heads=kv_heads, d_head=d_head(model), padded_vocab_size=rows))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out
