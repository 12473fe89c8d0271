"""The one-pass AdamW in every number format: against float64, and Triton (interpreted, or on a GPU) against torch."""

import os
import subprocess
import sys

import pytest
import torch

from olmo_train.config.dtypes import MomentType
from olmo_train.kernels.adamw import adamw_update
from tests.olmo_train.kernels import recipes
from tests.olmo_train.kernels.recipes import DRAW, RATES, RECIPES, as_float32, control, gradient, new_case


@pytest.mark.parametrize(("dtype", "kind"), RECIPES)
def test_one_update_is_the_formula_to_the_precision_of_its_formats(dtype: torch.dtype, kind: MomentType) -> None:
    shape = (5, 300)
    case = new_case(shape, dtype, kind)
    w = case.weight.double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for step in range(1, 5):
        g = gradient(shape, step, dtype).double() / 2
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        update = (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + RATES.eps)
        w = w - RATES.lr * (RATES.weight_decay * w + update)
        adamw_update(case.weight, gradient(shape, step, dtype), case.moments, control(step), (RATES, DRAW))
    root_is_kept = case.moments.second_scale is not None
    got = as_float32(case.moments)
    if kind == MomentType.INT8:  # half a bin is at most 0.7 % of the largest entry of a block, and of the smaller ones 7 %
        for values, expected in ((got[0], m), (got[1], v.sqrt())):
            torch.testing.assert_close(values.double().reshape(shape), expected, rtol=0.4, atol=2e-3)
        assert ((case.weight.double() - w).abs().mean() / RATES.lr) < (0.2 if dtype == torch.bfloat16 else 0.05)
        assert root_is_kept
        return
    unit = 2**-7 if kind == MomentType.BFLOAT16 else 1e-5
    for values, expected in zip(got, (m, v), strict=True):
        torch.testing.assert_close(values.double(), expected, rtol=4 * unit, atol=unit * 0.05)
    if dtype == torch.float32 and kind == MomentType.FLOAT32:
        torch.testing.assert_close(case.weight.double(), w, rtol=1e-5, atol=1e-6)
    else:
        torch.testing.assert_close(case.weight.double(), w, rtol=2**-5, atol=2 * RATES.lr * unit + 1e-3)


@pytest.mark.parametrize(("dtype", "kind"), RECIPES)
def test_cutting_by_rows_changes_no_bit(dtype: torch.dtype, kind: MomentType) -> None:
    shape = (5, 300)
    whole = new_case(shape, dtype, kind)
    parts = [whole.to("cpu") for _ in range(2)]
    rows = (slice(0, 2), slice(2, 5))
    for part, cut in zip(parts, rows, strict=True):
        part.weight = part.weight[cut].clone()
        part.moments = type(part.moments)(**{n: None if t is None else t[cut].clone() for n, t in vars(part.moments).items()})
    for step in range(1, 4):
        adamw_update(whole.weight, gradient(shape, step), whole.moments, control(step), (RATES, DRAW))
        for part, cut in zip(parts, rows, strict=True):
            draw = type(DRAW)(DRAW.key, DRAW.first + cut.start * 300)
            adamw_update(part.weight, gradient(shape, step)[cut].contiguous(), part.moments, control(step), (RATES, draw))
    assert torch.equal(torch.cat([part.weight for part in parts]), whole.weight)
    for name, tensor in vars(whole.moments).items():
        assert tensor is None or torch.equal(torch.cat([getattr(part.moments, name) for part in parts]), tensor)


@pytest.mark.parametrize("kind", [MomentType.BFLOAT16, MomentType.FLOAT32])
def test_a_second_moment_in_bf16_decays_even_with_a_slow_beta2(kind: MomentType) -> None:
    """0.999 of a bfloat16 number rounds to the number itself: to nearest it would never decay."""
    rates = type(RATES)(RATES.lr, RATES.beta1, 0.999, RATES.eps, 0.0)
    case = new_case((1, 4096), torch.float32, kind)
    case.moments.second.fill_(1.0)
    assert (torch.tensor(1.0, dtype=torch.bfloat16) * 0.999).to(torch.bfloat16) == 1
    for step in range(1, 201):
        adamw_update(case.weight, torch.zeros(1, 4096), case.moments, control(step), (rates, DRAW))
    assert case.moments.second.float().mean().item() == pytest.approx(0.999**200, rel=0.005)


def test_triton_equals_torch() -> None:
    """Interpreted where there is no GPU (tests/conftest.py)."""
    pytest.importorskip("triton")
    recipes.main("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.gpu
def test_an_update_on_a_gpu_allocates_nothing_and_waits_for_nothing() -> None:
    case = new_case((64, 4096), torch.bfloat16, MomentType.INT8).to("cuda")
    grad, steer = gradient((64, 4096), 1, torch.bfloat16).cuda(), control(1, device="cuda")
    adamw_update(case.weight, grad, case.moments, steer, (RATES, DRAW))  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        adamw_update(case.weight, grad, case.moments, steer, (RATES, DRAW))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() == before


def test_the_kernels_compile_for_hopper_without_a_gpu() -> None:
    """In a process of its own: in this one Triton may interpret."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.olmo_train.kernels.compile_triton"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
