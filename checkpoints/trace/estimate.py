"""Difference in differences between one span and its controls, with its uncertainty: log-probabilities in, numbers out."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from checkpoints.trace.results import Estimate

CONFIDENCE = 0.95
MIN_CONTROLS = 2
"""Fewer have no spread."""


def estimate_effect(
    steps: Sequence[int], span_S: np.ndarray, controls_CS: np.ndarray, before: int, after: int, seen: Sequence[int] = ()
) -> Estimate:
    """What the span gained between two checkpoints beyond what the controls gained.

        effect = (span[after] - span[before]) - mean over controls of (control[after] - control[before])

    The span is one unit, so its own noise is not averaged away: the standard error is that of a prediction,
    s * sqrt(1 + 1/C) with s the standard deviation of the C controls' changes, and the interval has the quantile of Student's t
    with C - 1 degrees of freedom. The p-value ranks the span among its controls and assumes no distribution.

    Args:
        steps: of the S checkpoints. span_S, controls_CS: float64 log-probabilities of whole spans, nats.
        before, after: indices into `steps`.
        seen: steps that learned from the span, for the record.

    Source: the difference-in-differences estimator of Lesci et al., "Causal Estimation of Memorisation Profiles" (arXiv
    2406.04327): cohorts by the step that saw them, never-seen (held-out) instances as the control group, parallel trends and no
    anticipation assumed. Here the cohort is one span. p-value: (1 + number at least as large) / (1 + C), Phipson and Smyth 2010.
    """
    changes_C = controls_CS[:, after] - controls_CS[:, before]
    n = len(changes_C)
    assert n >= MIN_CONTROLS, n
    change, mean = float(span_S[after] - span_S[before]), float(changes_C.mean())
    effect = change - mean
    error = float(changes_C.std(ddof=1)) * math.sqrt(1 + 1 / n)
    reach = student_quantile(0.5 + CONFIDENCE / 2, n - 1) * error
    p_value = (1 + int((changes_C >= change).sum())) / (1 + n)
    inside = [step for step in seen if steps[before] < step <= steps[after]]
    return Estimate(
        steps[before], steps[after], change, mean, effect, error, effect - reach, effect + reach, p_value, n, inside
    )  # fmt: skip


def estimate_intervals(steps: Sequence[int], span_S: np.ndarray, controls_CS: np.ndarray, seen: Sequence[int]) -> list[Estimate]:
    """One estimate for each interval between neighbouring checkpoints in which a step of `seen` falls; p-values also by Holm."""
    found = []
    for after in range(1, len(steps)):
        if any(steps[after - 1] < step <= steps[after] for step in seen):
            found.append(estimate_effect(steps, span_S, controls_CS, after - 1, after, seen))
    return [replace(entry, p_holm=p) for entry, p in zip(found, holm([entry.p_value for entry in found]), strict=True)]


def first_sight(steps: Sequence[int], seen: Sequence[int]) -> int | None:
    """Index of the last checkpoint before the first step of `seen`; None: no step, or none before or after it is measured."""
    if not seen:
        return None
    before = [i for i, step in enumerate(steps) if step < min(seen)]
    return before[-1] if before and len(before) < len(steps) else None


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold together: the chance that any of them is below a level by chance is at most that level.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    out, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = largest
    return out


@lru_cache(maxsize=256)
def student_quantile(probability: float, degrees: int) -> float:
    """The value that Student's t with so many degrees of freedom stays below with `probability` (0.5 < probability < 1)."""
    assert 0.5 < probability < 1, probability
    low, high = 0.0, 1.0
    while _student_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, degrees: int) -> float:
    """For t >= 0 and whole degrees. Source: Abramowitz and Stegun, equations 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    between = 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0)) if odd else sine * total
    return 0.5 + between / 2
