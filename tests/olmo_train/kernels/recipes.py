"""Tensors in every number format that the optimizer kernels take, shared by their tests; run as a program, compares the backends.

TRITON_INTERPRET=1 python -m tests.olmo_train.kernels.recipes
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from olmo_train.config.dtypes import MomentType
from olmo_train.kernels.adamw import adamw_update_torch, corrections
from olmo_train.kernels.int8_states import BLOCK, dequantize
from olmo_train.kernels.muon import apply_update_torch, momentum_update_torch
from olmo_train.kernels.update import Control, Draw, Moments, Rates
from olmo_train.optim.moments import allocate

DTYPES = [torch.float32, torch.bfloat16]
RECIPES = [(weight, moment) for weight in DTYPES for moment in MomentType]
SHAPES = [(5, 300), (3, 2, 257), (7,), (2, 9)]
RATES = Rates(lr=0.02, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
DRAW = Draw((12345, 678910), 2**32 - 700)
"""The third part of the first shape lies beyond 2^32: a large embedding's last rows."""


@dataclass
class Case:
    """A parameter and its moments."""

    weight: Tensor
    moments: Moments

    def to(self, device: str) -> "Case":
        tensors = {name: None if t is None else t.to(device, copy=True) for name, t in vars(self.moments).items()}
        return Case(self.weight.to(device, copy=True), Moments(**tensors))


def new_case(shape: tuple[int, ...], dtype: torch.dtype, kind: MomentType) -> Case:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return Case(weight, allocate(weight, kind))


def gradient(shape: tuple[int, ...], step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Entries over many orders of magnitude, some zero."""
    generator = torch.Generator().manual_seed(100 + step)
    values = torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator) ** 6
    return torch.where(torch.rand(shape, generator=generator) < 0.1, 0, values).to(dtype)


def control(step: int, skip: float = 0.0, grad_scale: float = 2.0, device: str = "cpu") -> Control:
    count = torch.tensor(step, device=device)
    scalars = torch.tensor(grad_scale, device=device), torch.tensor(skip, device=device)
    return Control(*scalars, count, corrections(count, RATES.beta1, RATES.beta2))


def as_float32(moments: Moments) -> tuple[Tensor, Tensor]:
    """Both moments; the second as its root where it is kept so."""
    if moments.first_scale is None or moments.second_scale is None:
        return moments.first.float(), moments.second.float()
    rows = moments.first.shape[0]
    return (
        dequantize(moments.first.view(rows, -1), moments.first_scale, signed=True),
        dequantize(moments.second.view(rows, -1), moments.second_scale, signed=False),
    )


# ---- Triton against torch --------------------------------------------------------------------------------------------------


def compare_adamw(shape: tuple[int, ...], recipe: tuple[torch.dtype, MomentType], device: str) -> None:
    """Each step begins with the same numbers for both backends. The random bits are equal, so only what floating-point contraction
    moves across a rounding boundary may differ: few entries, by one unit."""
    from olmo_train.kernels import triton_optim

    dtype, kind = recipe
    ours = new_case(shape, dtype, kind)
    for step in range(1, 4):
        theirs = ours.to(device)
        for case, update, where in ((ours, adamw_update_torch, "cpu"), (theirs, triton_optim.adamw_update, device)):
            update(case.weight, gradient(shape, step, dtype).to(where), case.moments, control(step, device=where), (RATES, DRAW))
        theirs = theirs.to("cpu")
        compare(theirs.weight.float(), ours.weight.float(), 2**-7 if dtype == torch.bfloat16 else 0.0)
        is_int8 = ours.moments.first_scale is not None
        unit = 0.2 if is_int8 else 2**-7 if ours.moments.first.dtype == torch.bfloat16 else 0.0
        for got, expected in zip(as_float32(theirs.moments), as_float32(ours.moments), strict=True):
            compare(got, expected, unit)
    skipped = ours.to(device)
    bad = torch.full(shape, float("nan"), dtype=dtype, device=device)
    triton_optim.adamw_update(skipped.weight, bad, skipped.moments, control(4, skip=1.0, device=device), (RATES, DRAW))
    skipped = skipped.to("cpu")
    for got, expected in zip(
        (skipped.weight, *vars(skipped.moments).values()), (ours.weight, *vars(ours.moments).values()), strict=True
    ):
        assert (got is None and expected is None) or torch.equal(got, expected)


def compare_muon(dtype: torch.dtype, device: str) -> None:
    from olmo_train.kernels import triton_optim

    shape = (9, 523)
    momentum, grad, out = (gradient(shape, i, dtype) for i in range(3))
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for skip in (0.0, 1.0):
        copies = [[t.to(where, copy=True) for t in (out, grad, momentum, weight)] for where in ("cpu", device)]
        for (o, g, m, w), where in zip(copies, ("cpu", device), strict=True):
            steer = control(3, skip, device=where)
            on_cpu = where == "cpu" and o is copies[0][0]
            (momentum_update_torch if on_cpu else triton_optim.momentum_update)(o, g, m, steer, (0.95, True))
            (apply_update_torch if on_cpu else triton_optim.apply_update)(w, g, steer, (0.03, 0.1), DRAW)
        unit = 2**-7 if dtype == torch.bfloat16 else 0.0
        for expected, got in zip(*copies, strict=True):
            compare(got.cpu().float(), expected.float(), unit)
        if skip:
            assert torch.equal(copies[1][2].cpu(), momentum)
            assert torch.equal(copies[1][3].cpu(), weight)


def compare(got: Tensor, expected: Tensor, unit: float) -> None:
    """Equal to float32 rounding, except for 2 % of the entries (at least one), which may be off by `unit`."""
    close = torch.isclose(got.reshape(-1), expected.reshape(-1), rtol=1e-5, atol=1e-7)
    assert (~close).sum() <= max(1, 0.02 * close.numel()) * (unit > 0), f"{(~close).sum()} of {close.numel()} entries differ"
    torch.testing.assert_close(got.reshape(-1), expected.reshape(-1), rtol=max(unit, 1e-5), atol=1e-6)


def main(device: str) -> None:
    for recipe in RECIPES:
        for shape in SHAPES:
            compare_adamw(shape, recipe, device)
    for dtype in DTYPES:
        compare_muon(dtype, device)
    compare_adamw((3 * BLOCK, 1), (torch.bfloat16, MomentType.BFLOAT16), device)
