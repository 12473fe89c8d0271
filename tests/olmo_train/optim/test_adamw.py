"""AdamW against the formula, with clipping and skipping inside the fused pass."""

import pytest
import torch
from torch import Tensor

from olmo_train.config.optim import OptimConfig, ParamKind, ScheduleConfig, ScheduleKind
from olmo_train.optim.adamw import AdamW

CONFIG = OptimConfig(lr=0.1, weight_decay=0.2, no_decay=[ParamKind.NORM], schedule=ScheduleConfig(kind=ScheduleKind.CONSTANT))
KINDS = {"w": ParamKind.MATRIX, "n": ParamKind.NORM}
ONE, ZERO = torch.ones(()), torch.zeros(())


def fresh() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"w": torch.randn(5, 3, generator=generator), "n": torch.randn(4, generator=generator)}


def grads(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {"w": torch.randn(5, 3, generator=generator), "n": torch.randn(4, generator=generator)}


def reference(params: dict[str, Tensor], steps: list[dict[str, Tensor]], lr: float) -> dict[str, Tensor]:
    """Loshchilov and Hutter, algorithm 2, in float64."""
    values = {name: p.double().clone() for name, p in params.items()}
    m = {name: torch.zeros_like(v) for name, v in values.items()}
    v2 = {name: torch.zeros_like(v) for name, v in values.items()}
    for t, g in enumerate(steps, 1):
        for name, value in values.items():
            m[name] = 0.9 * m[name] + 0.1 * g[name].double()
            v2[name] = 0.95 * v2[name] + 0.05 * g[name].double() ** 2
            decay = 0.0 if name == "n" else 0.2
            update = (m[name] / (1 - 0.9**t)) / ((v2[name] / (1 - 0.95**t)).sqrt() + 1e-8)
            values[name] = value - lr * decay * value - lr * update
    return {name: v.float() for name, v in values.items()}


def test_it_is_the_formula_with_decay_only_where_it_belongs() -> None:
    params = fresh()
    expected = reference(params, [grads(i) for i in range(5)], lr=0.03)
    optimizer = AdamW(params, KINDS, CONFIG)
    for i in range(5):
        optimizer.step(grads(i), 0.03, ONE, ZERO)
    for name in params:  # updated in place
        torch.testing.assert_close(params[name], expected[name], rtol=1e-5, atol=1e-6)
    assert optimizer.steps_taken == 5


def test_the_scale_divides_the_gradients() -> None:
    a, b = fresh(), fresh()
    one, two = AdamW(a, KINDS, CONFIG), AdamW(b, KINDS, CONFIG)
    one.step({n: g * 4 for n, g in grads(0).items()}, 0.1, torch.tensor(4.0), ZERO)
    two.step(grads(0), 0.1, ONE, ZERO)
    for name in a:
        torch.testing.assert_close(a[name], b[name])


@pytest.mark.parametrize("bad", [1e30, float("nan"), float("inf")])
def test_a_skipped_step_touches_nothing(bad: float) -> None:
    params = fresh()
    optimizer = AdamW(params, KINDS, CONFIG)
    optimizer.step(grads(0), 0.1, ONE, ZERO)
    before = {n: p.clone() for n, p in params.items()} | {n: m.clone() for n, m in optimizer.moments().items()}
    optimizer.step({n: g * bad for n, g in grads(1).items()}, 0.1, torch.tensor(bad), ONE)
    assert all(torch.equal(before[n], t) for n, t in {**params, **optimizer.moments()}.items())
    assert optimizer.steps_taken == 1
    optimizer.step(grads(2), 0.1, ONE, ZERO)
    expected = reference(fresh(), [grads(0), grads(2)], lr=0.1)
    for name in params:
        torch.testing.assert_close(params[name], expected[name], rtol=1e-5, atol=1e-6)


def test_saved_moments_continue_bit_for_bit() -> None:
    params = fresh()
    optimizer = AdamW(params, KINDS, CONFIG)
    for i in range(3):
        optimizer.step(grads(i), 0.1, ONE, ZERO)
    copied = {n: p.clone() for n, p in params.items()}
    other = AdamW(copied, KINDS, CONFIG)
    other.load({n: m.clone() for n, m in optimizer.moments().items()}, optimizer.steps_taken)
    for i in range(3, 6):
        optimizer.step(grads(i), 0.1, ONE, ZERO)
        other.step(grads(i), 0.1, ONE, ZERO)
    assert all(torch.equal(params[n], copied[n]) for n in params)


def test_empty_parts_are_fine() -> None:
    """A rank may hold no row of a small parameter."""
    optimizer = AdamW({"w": torch.empty(0, 3), "n": torch.ones(2)}, KINDS, CONFIG)
    optimizer.step({"w": torch.empty(0, 3), "n": torch.ones(2)}, 0.1, ONE, ZERO)
    assert optimizer.moments()["exp_avg/w"].shape == (0, 3)
