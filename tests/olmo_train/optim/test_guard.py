"""The guard against a plain loop, and the failures of its peers."""

import json
import math
from statistics import mean, stdev

import pytest
import torch

from olmo_train.config.optim import SkipConfig
from olmo_train.optim.guard import GRAD_NORM, LOSS, NONFINITE, OK, Guard

CPU = torch.device("cpu")


def judge(guard: Guard, loss: float, grad_norm: float = 1.0) -> int:
    return int(guard.judge(torch.tensor(loss), torch.tensor(grad_norm)))


def test_it_is_mean_plus_sigma_deviations_over_the_window() -> None:
    config = SkipConfig(sigma=3.0, window=10, min_history=4)
    guard, window = Guard(config, CPU), []
    generator = torch.Generator().manual_seed(0)
    for i in range(200):
        loss = float(torch.randn((), generator=generator, dtype=torch.float64)) + (8.0 if i % 37 == 36 else 0.0)
        recent = window[-10:]
        expected = len(recent) >= 4 and loss > mean(recent) + 3 * stdev(recent)
        verdict = int(guard.judge(torch.tensor(loss, dtype=torch.float64), torch.tensor(1.0)))
        assert (verdict == LOSS) == expected, i
        window.append(loss)
    assert any(w > 5 for w in window)


def test_the_gradient_norm_is_watched_too() -> None:
    guard = Guard(SkipConfig(window=16, min_history=8), CPU)
    for i in range(20):
        assert judge(guard, 2.0, 1.0 + 0.01 * (i % 3)) == OK
    assert judge(guard, 2.0, 50.0) == GRAD_NORM


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", [0, 5, 100])
def test_one_bad_value_is_skipped_and_poisons_nothing(bad: float, when: int) -> None:
    """OLMo-core: one NaN at step 150 skips 129 steps, one at step 10 is applied."""
    guard = Guard(SkipConfig(), CPU)
    verdicts = [judge(guard, bad if i == when else 2.0 + 0.01 * (i % 5), 1.0 + 0.01 * (i % 7)) for i in range(300)]
    assert verdicts[when] == NONFINITE
    assert verdicts.count(NONFINITE) == 1
    assert all(v == OK for i, v in enumerate(verdicts) if i != when)


def test_a_bad_gradient_norm_is_enough() -> None:
    assert judge(Guard(None, CPU), 2.0, math.nan) == NONFINITE
    assert judge(Guard(None, CPU), 2.0, 1e30) == OK  # without a config only finiteness counts


def test_skips_in_a_row_are_counted_and_reset() -> None:
    guard = Guard(None, CPU)
    for i, loss in enumerate([2.0, math.nan, math.nan, 2.0, math.nan]):
        judge(guard, loss)
        assert int(guard.skips_in_a_row) == [0, 1, 2, 0, 1][i]


def test_its_state_survives_json_bit_for_bit() -> None:
    config = SkipConfig(window=8, min_history=4)
    guard, generator = Guard(config, CPU), torch.Generator().manual_seed(0)
    values = torch.randn(40, 2, generator=generator, dtype=torch.float64).exp()
    for loss, norm in values[:20]:
        guard.judge(loss, norm)
    other = Guard(config, CPU)
    other.load_state(json.loads(json.dumps(guard.state())))
    assert [int(guard.judge(a, b)) for a, b in values[20:]] == [int(other.judge(a, b)) for a, b in values[20:]]
    assert guard.state() == other.state()


def test_another_window_begins_empty() -> None:
    guard, other = Guard(SkipConfig(window=8, min_history=4), CPU), Guard(SkipConfig(window=16, min_history=4), CPU)
    for _ in range(8):
        judge(guard, 2.0)
    other.load_state(guard.state())
    assert other.state()["seen"] == 0
