"""Norms of a checkpoint's weights by kind and layer, and of what changed since the one before; streams the weights."""

import math
from collections import defaultdict

from checkpoints.inspect.matrices import Matrix, matrices_of
from checkpoints.inspect.measures import Norm, Norms
from checkpoints.inspect.row_sums import of_each, row_differences, row_stats
from checkpoints.inspect.totals import Total, matrix_total, sum_totals
from checkpoints.weights import Weights
from olmo_train.config.model import ModelConfig


def weight_norms(weights: Weights, model: ModelConfig, previous: Weights | None = None) -> Norms:
    """Frobenius norms over parameters (and selection biases) taken together; `previous`: of the same model.

    Memory holds a few MiB of a tensor, whatever the model. Sums are float64.
    """

    def sum_one(name: str) -> list[tuple[Matrix, Total]]:
        shape = weights.shapes[name]
        matrices = matrices_of(name, shape, model)
        if previous is not None and previous.shapes.get(name) == shape:
            sums = row_differences(previous, weights, name)
            return [(matrix, matrix_total(sums, matrix)) for matrix in matrices]
        square = row_stats(weights, name).square
        return [(m, Total(math.prod(m.shape), square_b=float(square[m.slices()].sum()))) for m in matrices]

    totals = [entry for entries in of_each(sum_one, list(weights.shapes)) for entry in entries]
    return _summed(totals, has_previous=previous is not None)


def _summed(totals: list[tuple[Matrix, Total]], has_previous: bool) -> Norms:
    kinds: dict[str, list[Total]] = defaultdict(list)
    layers: dict[int, list[Total]] = defaultdict(list)
    both: dict[str, dict[int, list[Total]]] = defaultdict(lambda: defaultdict(list))
    for matrix, total in totals:
        kinds[matrix.kind].append(total)
        if matrix.layer is not None:
            layers[matrix.layer].append(total)
            both[matrix.kind][matrix.layer].append(total)

    def norm(parts: list[Total]) -> Norm:
        return _norm(sum_totals(parts), has_previous)

    return Norms(
        norm([total for _, total in totals]),
        {kind: norm(parts) for kind, parts in kinds.items()},
        {layer: norm(parts) for layer, parts in sorted(layers.items())},
        {kind: {layer: norm(parts) for layer, parts in sorted(found.items())} for kind, found in both.items()},
    )


def _norm(total: Total, has_previous: bool) -> Norm:
    rms = math.sqrt(total.square_b / total.n) if total.n else 0.0
    if not has_previous:
        return Norm(total.n, total.norm_b, rms, None, None, None)
    return Norm(total.n, total.norm_b, rms, total.norm_difference, total.relative, total.cosine)
