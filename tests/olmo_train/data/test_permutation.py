"""The keyed permutation: a bijection, its own inverse's inverse, and as even as a shuffle."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from olmo_train.data.permutation import Permutation


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 16, 17, 100, 257, 1000, 65536, 100_003])
@pytest.mark.parametrize("key", [0, ["epoch", "web", 3]])
def test_every_value_is_taken_once_and_leads_back(n: int, key: object) -> None:
    permutation = Permutation(n, key)
    x = np.arange(n)
    y = permutation.forward(x)
    assert np.array_equal(np.sort(y), x)
    assert np.array_equal(permutation.inverse(y), x)


@pytest.mark.parametrize("n", [3, 4])
def test_all_orders_of_a_small_set_are_equally_likely(n: int) -> None:
    draws = 4800
    counts = Counter(tuple(Permutation(n, key).forward(np.arange(n)).tolist()) for key in range(draws))
    assert set(counts) == set(permutations(range(n)))
    expected = draws / len(counts)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    freedom = len(counts) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations of the chi-square distribution


@pytest.mark.parametrize("n", [7, 12, 50])
def test_every_place_is_equally_likely_for_every_value(n: int) -> None:
    draws = 3000
    counts = np.zeros((n, n))
    for key in range(draws):
        counts[np.arange(n), Permutation(n, key).forward(np.arange(n))] += 1
    chi_square = ((counts - draws / n) ** 2 / (draws / n)).sum()
    freedom = (n - 1) ** 2
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighbours_are_not_kept_together() -> None:
    n = 100_000
    y = Permutation(n, 3).forward(np.arange(n))
    # Of a random permutation, the mean distance of neighbours is n / 3 and the correlation 0, to about 1 / sqrt(n).
    assert abs(np.abs(np.diff(y)).mean() / n - 1 / 3) < 0.01
    assert abs(np.corrcoef(y[:-1], y[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(n), y)[0, 1]) < 0.02


def test_other_keys_give_other_orders() -> None:
    x = np.arange(1000)
    assert (Permutation(1000, 1).forward(x) == Permutation(1000, 2).forward(x)).mean() < 0.01


def test_a_point_of_a_huge_domain_needs_no_table() -> None:
    permutation = Permutation(10**12, "x")
    x = np.array([0, 1, 10**12 - 1, 123_456_789_012])
    assert np.array_equal(permutation.inverse(permutation.forward(x)), x)
