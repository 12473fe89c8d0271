"""What two sets of weights say of each other, summed up: over a matrix, a kind, a layer, everything."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

from torch import Tensor

from checkpoints.inspect.matrices import Matrix
from checkpoints.inspect.row_sums import RowDifferences


@dataclass(frozen=True)
class Total:
    """Sums over some weights a and b, in float64."""

    n: int = 0
    """Elements."""
    square_a: float = 0.0
    square_b: float = 0.0
    square_difference: float = 0.0
    dot: float = 0.0
    max_abs: float = 0.0
    """Largest absolute difference."""
    n_bits: int = 0
    """Elements whose bits differ."""
    n_rounded: int = 0
    """Elements that differ even after the wider number format is rounded to the narrower one."""

    @property
    def norm_a(self) -> float:
        """Frobenius norm."""
        return math.sqrt(self.square_a)

    @property
    def norm_b(self) -> float:
        """Frobenius norm."""
        return math.sqrt(self.square_b)

    @property
    def norm_difference(self) -> float:
        """Of b - a."""
        return math.sqrt(self.square_difference)

    @property
    def relative(self) -> float | None:
        """norm_difference over norm_a; None if that is 0."""
        return self.norm_difference / self.norm_a if self.norm_a else None

    @property
    def cosine(self) -> float | None:
        """None if either norm is 0."""
        scale = self.norm_a * self.norm_b
        return self.dot / scale if scale else None


def sum_totals(totals: Iterable[Total]) -> Total:
    """Over weights that do not overlap."""
    out = {field.name: 0 for field in fields(Total)}
    for total in totals:
        for name in out:
            value = getattr(total, name)
            # not max(): it would drop a NaN
            out[name] = (value if not value <= out[name] else out[name]) if name == "max_abs" else out[name] + value
    return Total(**out)


def matrix_total(sums: RowDifferences, matrix: Matrix) -> Total:
    """Of one matrix, from the sums of its parameter's rows."""

    def part(rows: Tensor) -> Tensor:
        return rows[matrix.slices()]

    return Total(
        math.prod(matrix.shape),
        float(part(sums.square_a).sum()), float(part(sums.square_b).sum()), float(part(sums.square_difference).sum()),
        float(part(sums.dot).sum()), float(part(sums.max_abs).max()), int(part(sums.n_bits).sum()),
        int(part(sums.n_rounded).sum()),
    )  # fmt: skip
