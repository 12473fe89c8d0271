"""The repeated n-gram mask against its definition."""

import numpy as np
import pytest

from olmo_train.data.repetition import repeats


def naive(row: np.ndarray, min_period: int, max_period: int, max_count: int) -> bool:
    """Some stretch is one n-gram, max_count times in a row."""
    for period in range(min_period, max_period + 1):
        for start in range(len(row) - period * max_count + 1):
            piece = row[start : start + period * max_count]
            if np.array_equal(piece, np.tile(piece[:period], max_count)):
                return True
    return False


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 3, (12, 60))
    for row in rows[:8]:  # plant repeats of several periods and lengths
        period, times, at = int(rng.integers(1, 5)), int(rng.integers(2, 8)), int(rng.integers(0, 30))
        gram = rng.integers(0, 50, period)
        planted = np.tile(gram, times)[: 60 - at]
        row[at : at + len(planted)] = planted
    for bounds in ((1, 4, 5), (2, 3, 4), (1, 13, 32)):
        assert repeats(rows, *bounds).tolist() == [naive(row, *bounds) for row in rows]


def test_exactly_the_bound_is_masked_and_one_less_is_not() -> None:
    row = np.arange(1000, 1000 + 600)
    row[100 : 100 + 13 * 32] = np.tile(np.arange(13), 32)
    assert repeats(row[None], 1, 13, 32).tolist() == [True]
    row[100 + 13 * 32 - 1] = 7777
    assert repeats(row[None], 1, 13, 32).tolist() == [False]


def test_an_instance_shorter_than_any_repeat_is_never_masked() -> None:
    assert repeats(np.zeros((2, 20), int), 1, 13, 32).tolist() == [False, False]
