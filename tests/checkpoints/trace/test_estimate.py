"""Differences in differences against numbers worked out by hand, and against draws whose effect is known."""

import math

import numpy as np
import pytest

from checkpoints.trace.estimate import estimate_effect, estimate_intervals, first_sight, holm, student_quantile

STEPS = [0, 10, 20, 40]
SPAN = np.array([-10.0, -9.0, -4.0, -5.0])
CONTROLS = np.array([[-9.0, -8.0, -7.0, -7.0], [-11.0, -10.5, -8.5, -8.0], [-10.0, -8.5, -6.5, -6.0]])


def test_an_effect_worked_out_by_hand() -> None:
    """Changes of the controls from step 10 to 20: 1, 2, 2; of the span: 5."""
    found = estimate_effect(STEPS, SPAN, CONTROLS, 1, 2, [12, 15, 30])
    assert (found.step_before, found.step_after, found.steps, found.n_controls) == (10, 20, [12, 15], 3)
    assert found.span_change == 5
    assert found.control_change == pytest.approx(5 / 3)
    assert found.effect == pytest.approx(5 - 5 / 3)
    # Deviations -2/3, 1/3, 1/3: variance 6/9 over 2 degrees of freedom, prediction of one more unit: times 1 + 1/3.
    assert found.standard_error == pytest.approx(math.sqrt(1 / 3 * 4 / 3))
    # t(2) at 0.975: 4.302653 (tables)
    assert found.high - found.effect == pytest.approx(4.302653 * 2 / 3, abs=1e-5)
    assert found.effect - found.low == pytest.approx(4.302653 * 2 / 3, abs=1e-5)
    assert found.p_value == pytest.approx(1 / 4)
    assert found.p_holm is None


def test_the_p_value_counts_controls_that_changed_as_much() -> None:
    span = np.array([0.0, 2.0])
    controls = np.array([[0.0, 3.0], [0.0, 2.0], [0.0, 1.0], [0.0, -5.0]])
    assert estimate_effect([0, 1], span, controls, 0, 1).p_value == pytest.approx(3 / 5)


def test_intervals_are_those_that_saw_the_span() -> None:
    found = estimate_intervals(STEPS, SPAN, CONTROLS, [10, 11, 40, 41])
    assert [(e.step_before, e.step_after, e.steps) for e in found] == [(0, 10, [10]), (10, 20, [11]), (20, 40, [40])]
    assert [e.p_holm for e in found] == holm([e.p_value for e in found])
    assert estimate_intervals(STEPS, SPAN, CONTROLS, []) == []
    assert estimate_intervals(STEPS, SPAN, CONTROLS, [41]) == []


def test_the_first_sight_is_measured_from_the_checkpoint_before_it() -> None:
    assert first_sight(STEPS, [12, 30]) == 1
    assert first_sight(STEPS, [10]) == 0
    assert first_sight(STEPS, [40]) == 2
    assert first_sight(STEPS, [41]) is None
    assert first_sight(STEPS, []) is None
    assert first_sight([5, 10], [3, 7]) is None


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.04, 0.2 times 4, 3, 2, 1, never falling."""
    assert holm([0.04, 0.01, 0.2, 0.02]) == pytest.approx([0.08, 0.04, 0.2, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (30, 2.0423), (63, 1.9983)]
)
def test_quantiles_are_those_of_the_tables(degrees: int, value: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(value, abs=1e-4)


def test_intervals_hold_as_often_as_they_say() -> None:
    """Draws with a common drift, an effect of 1.5 on the span and none on the controls."""
    rng = np.random.default_rng(0)
    covered, false, found = 0, 0, []
    for _ in range(2000):
        levels = rng.normal(-20, 5, 31)
        changes = 3 + rng.normal(0, 1, 31)
        after = levels + changes
        both = np.stack([levels, after], 1)
        without = estimate_effect([0, 1], both[0], both[1:], 0, 1)
        false += not without.low <= 0 <= without.high
        treated = estimate_effect([0, 1], both[0] + np.array([0, 1.5]), both[1:], 0, 1)
        covered += treated.low <= 1.5 <= treated.high
        found.append(treated.effect)
    assert 0.935 < covered / 2000 < 0.965
    assert 0.035 < false / 2000 < 0.065
    assert np.mean(found) == pytest.approx(1.5, abs=0.1)


def test_p_values_are_uniform_where_there_is_no_effect() -> None:
    rng = np.random.default_rng(1)
    values = []
    for _ in range(1000):
        both = np.stack([np.zeros(20), rng.standard_t(2, 20)], 1)  # heavy tails, which the interval would not like
        values.append(estimate_effect([0, 1], both[0], both[1:], 0, 1).p_value)
    for level in (0.05, 0.25, 0.5):
        assert np.mean([p <= level + 1e-9 for p in values]) == pytest.approx(level, abs=0.05)
