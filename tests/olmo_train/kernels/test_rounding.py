"""Stochastic rounding: right on average, reproducible, and where rounding to nearest stands still it moves."""

import pytest
import torch

from olmo_train.kernels.rounding import key_of, random_bits, round_stochastically

KEY = key_of(123456789012345678)


def draw(step: int, n: int, first: int = 0) -> torch.Tensor:
    return random_bits(KEY, step, range(first, first + n), torch.device("cpu"))


@pytest.mark.parametrize("value", [1.0 + 2**-9, -3.3, 1e-20, 0.1, -1.0 + 2**-12])
def test_it_is_right_on_average_and_goes_only_to_neighbours(value: float) -> None:
    n = 1_000_000
    values = torch.full((n,), value)
    rounded = round_stochastically(values, draw(1, n)).double()
    exact = float(values[0].double())
    found = rounded.unique()
    assert len(found) == 2
    assert found[0] < exact < found[1]
    gap = (found[1] - found[0]).item()
    assert abs(rounded.mean().item() - exact) < 5 * gap / 2 / n**0.5


def test_what_bfloat16_can_hold_stays() -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, float("inf"), -float("inf"), float("nan"), 3e38]).to(torch.bfloat16)
    many = values.float().repeat(1000)
    rounded = round_stochastically(many, draw(1, len(many)))
    assert torch.equal(rounded.view(torch.int16), values.repeat(1000).view(torch.int16))


def test_tiny_updates_move_a_weight_on_average_where_rounding_to_nearest_stalls() -> None:
    n, steps, update = 4096, 400, 2**-12  # a sixteenth of the distance to the next bfloat16 number
    stochastic = nearest = torch.ones(n, dtype=torch.bfloat16)
    for step in range(steps):
        stochastic = round_stochastically(stochastic.float() + update, draw(step, n))
        nearest = (nearest.float() + update).to(torch.bfloat16)
    assert torch.equal(nearest, torch.ones(n, dtype=torch.bfloat16))
    assert stochastic.float().mean().item() == pytest.approx(1 + steps * update, abs=2e-3)


def test_bits_depend_on_the_element_alone_and_not_on_the_cut() -> None:
    whole = draw(5, 1000, first=2**32 - 500)
    assert torch.equal(torch.cat([draw(5, 300, 2**32 - 500), draw(5, 700, 2**32 - 200)]), whole)
    assert not torch.equal(draw(6, 1000, 2**32 - 500), whole)
    assert not torch.equal(draw(5, 500, 0), whole[500:])  # 2^32 + i is another element than i


def test_each_bit_is_a_fair_coin_and_none_follows_its_neighbours() -> None:
    n = 200_000
    steps = torch.stack([draw(step, n) for step in range(4)])
    bits = torch.stack([(steps >> i) & 1 for i in range(32)]).double()  # (32, steps, n)
    tolerance = 5 / (2 * n**0.5)
    assert (bits.mean(-1) - 0.5).abs().max() < tolerance
    signs = 2 * bits - 1
    assert (signs[..., 1:] * signs[..., :-1]).mean(-1).abs().max() < 2 * tolerance  # next element
    assert (signs[:, 1:] * signs[:, :-1]).mean(-1).abs().max() < 2 * tolerance  # next step
    assert (signs[1:] * signs[:-1]).mean(-1).abs().max() < 2 * tolerance  # next bit


def test_the_numbers_do_not_change_between_versions() -> None:
    """A run that resumes under another torch goes on with the same bits."""
    assert draw(1, 3).tolist() == [-628978785, 1892590197, -582763754]
