"""Quantiles of numbers in bounded memory: counts in buckets whose bounds grow by 2 %, so that a quantile is off by at most 1 %.

Sketches of parts add up to the sketch of the whole, whatever the order. Source: DDSketch (Masson et al., VLDB 2019), section 2.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

ERROR = 0.01
"""Relative, of a quantile; counts, mean, smallest and largest are exact (the mean as far as a float is)."""
MOST_EXACT = 4096
"""Different values."""
_GAMMA = (1 + ERROR) / (1 - ERROR)
_LOG = math.log(_GAMMA)
SMALLEST = 1e-12
"""Of a magnitude; what is nearer to zero counts as zero."""


@dataclass
class Sketch:
    """Numbers, by magnitude. At most about 7,000 buckets, because magnitudes are kept within 1e-12 and 1e+48."""

    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    exact: dict[float, int] | None = field(default_factory=dict)
    """Every value, while they are few: then quantiles are exact. None: there were more than MOST_EXACT."""
    buckets: dict[int, int] = field(default_factory=dict)
    """0: zero; n > 0 and n < 0: positive and negative numbers of bucket |n|."""

    def add(self, value: float, times: int = 1) -> None:
        """One number."""
        self.count += times
        self.total += value * times
        self.low, self.high = min(self.low, value), max(self.high, value)
        if self.exact is not None:
            self.exact[value] = self.exact.get(value, 0) + times
            if len(self.exact) > MOST_EXACT:
                self.exact = None
        key = _key(value)
        self.buckets[key] = self.buckets.get(key, 0) + times

    def add_array(self, values: np.ndarray) -> None:
        """Many whole numbers at once."""
        found, counts = np.unique(values, return_counts=True)
        for value, times in zip(found.tolist(), counts.tolist(), strict=True):
            self.add(float(value), times)

    def quantile(self, share: float) -> float:
        """The value below which this share lies; nan of nothing."""
        if not self.count:
            return math.nan
        rank, seen = share * (self.count - 1), 0
        for value in sorted(self.exact or ()):
            seen += (self.exact or {})[value]
            if seen > rank:
                return value
        for key in sorted(self.buckets):
            seen += self.buckets[key]
            if seen > rank:
                return min(max(_value(key), self.low), self.high)
        return self.high

    def histogram(self, bins: int = 10) -> list[tuple[float, float, int]]:
        """(from, to, number) of equally wide bins between the smallest and the largest; a bucket counts where its middle lies."""
        if not self.count:
            return []
        if self.low == self.high:
            return [(self.low, self.high, self.count)]
        width = (self.high - self.low) / bins
        numbers = [0] * bins
        for key, number in self.buckets.items():
            middle = min(max(_value(key), self.low), self.high)
            numbers[min(int((middle - self.low) / width), bins - 1)] += number
        return [(self.low + i * width, self.low + (i + 1) * width, n) for i, n in enumerate(numbers)]

    def describe(self) -> dict[str, object]:
        """For a table or JSON; of nothing, zeros."""
        if not self.count:
            return replace(self, count=1, total=0.0, low=0.0, high=0.0, exact={0.0: 1}, buckets={0: 1}).describe() | {"count": 0}
        quantiles = {f"{share:g}": self.quantile(share) for share in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)}
        return {
            "count": self.count, "mean": self.total / self.count, "min": self.low, "max": self.high, "quantiles": quantiles,
            "histogram": [list(row) for row in self.histogram()],
        }  # fmt: skip


def _key(value: float) -> int:
    size = abs(value)
    if size < SMALLEST:
        return 0
    place = 1 + max(0, math.ceil(math.log(min(size, 1e48) / SMALLEST) / _LOG))
    return place if value > 0 else -place


def _value(key: int) -> float:
    if key == 0:
        return 0.0
    size = SMALLEST * _GAMMA ** (abs(key) - 1) * 2 / (1 + _GAMMA)
    return size if key > 0 else -size
