"""Scales of charts: where a value lies between 0 and 1 on an axis, and which values get a tick."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from checkpoints.inspect.readable import amount

ZERO_SPACE = 0.07
"""Part of a logarithmic axis that leads from 0, which has no logarithm, to the first value."""


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`."""

    low: float
    high: float
    is_log: bool = False
    has_zero: bool = False
    """Logarithmic, and values of 0 lie at its very start."""

    def place(self, value: float) -> float:
        """0 at the start of the axis, 1 at its end."""
        if not self.is_log:
            return (value - self.low) / (self.high - self.low)
        start = ZERO_SPACE if self.has_zero else 0.0
        if value <= 0:
            return 0.0
        return start + (1 - start) * math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self, n: int = 5) -> list[float]:
        """About `n` round values on the axis, smallest first."""
        return _log_ticks(self, n) if self.is_log else _linear_ticks(self.low, self.high, n)

    def labels(self, ticks: Sequence[float]) -> list[str]:
        """Of the ticks, all as exact as their distance asks for."""
        if self.is_log or max(map(abs, ticks), default=0) >= 1e4:
            return [amount(tick) if tick == 0 or abs(tick) >= 1 else _short(tick) for tick in ticks]
        step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0] if ticks else 1) or 1
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        if decimals > 4:
            return [_short(tick) for tick in ticks]
        return [f"{tick:,.{decimals}f}" for tick in ticks]


def step_scale(steps: Iterable[float]) -> Scale:
    """Of steps: logarithmic if they are spaced so (0, 1, 2, 4, ...), that is if half of them lie in the first quarter."""
    values = sorted(set(steps))
    positive = [value for value in values if value > 0]
    is_log = len(positive) >= 4 and median(positive) < positive[-1] / 4
    if is_log:
        return Scale(positive[0], positive[-1], is_log=True, has_zero=values[0] == 0)
    return linear_scale(values, pad=0.0)


def linear_scale(values: Iterable[float | None], pad: float = 0.06, include: Sequence[float] = ()) -> Scale:
    """From a little below the smallest to a little above the largest value."""
    known = [value for value in values if value is not None] + list(include)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high == low:
        margin = abs(high) * 0.1 or 1.0
        return Scale(low - margin, high + margin)
    margin = (high - low) * pad
    return Scale(low - margin if low not in include else low, high + margin)


def value_scale(values: Iterable[float | None], include: Sequence[float] = ()) -> Scale:
    """Logarithmic where positive values span more than a factor of 50; linear otherwise."""
    known = [value for value in [*values, *include] if value is not None]
    if known and min(known) > 0 and max(known) / min(known) > 50:
        return Scale(min(known) / 1.15, max(known) * 1.15, is_log=True)
    return linear_scale(known, include=include)


def _short(tick: float) -> str:
    return f"{tick:g}".replace("e-0", "e-")


def _linear_ticks(low: float, high: float, n: int) -> list[float]:
    raw = (high - low) / n
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(scale: Scale, n: int) -> list[float]:
    low, high = math.log10(scale.low), math.log10(scale.high)
    factors = (1, 2, 5) if high - low < 1.5 else (1, 3) if high - low < 2.2 else (1,)
    powers = range(math.floor(low), math.floor(high) + 1)
    found = [factor * 10.0**power for power in powers for factor in factors]
    found = [tick for tick in found if scale.low * 0.999 <= tick <= scale.high * 1.001]
    every = math.ceil(len(found) / n)
    return ([0.0] if scale.has_zero else []) + found[::every]
