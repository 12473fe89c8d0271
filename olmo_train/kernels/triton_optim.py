"""Optimizer updates in Triton: AdamW over any mixture of number formats, and the elementwise halves of Muon."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from olmo_train.kernels.int8_states import BLOCK, TINY
from olmo_train.kernels.update import Control, Draw, Moments, Rates

N_BLOCKS = 4
"""Blocks of 256 entries that one program takes: 8 entries a thread, 48 to 64 registers on Hopper (ptxas), nothing spilled."""
_NEVER_SPECIALIZE = ["lr", "key0", "key1", "first"]


def adamw_update(weight: Tensor, grad: Tensor, moments: Moments, control: Control, settings: tuple[Rates, Draw]) -> None:
    """See kernels/adamw.py."""
    rates, draw = settings
    is_int8 = moments.first_scale is not None
    # Without blocks of scales there are no rows to respect: one long row leaves no lane idle.
    rows = weight.shape[0] if is_int8 else 1
    columns = weight.numel() // rows
    per_row = triton.cdiv(columns, BLOCK)
    assert all(t.is_contiguous() for t in (weight, grad, moments.first, moments.second))
    _adamw[(triton.cdiv(rows * per_row, N_BLOCKS),)](
        weight, grad, moments.first, moments.second,
        moments.first_scale if is_int8 else weight, moments.second_scale if is_int8 else weight,
        control.grad_scale, control.skip, control.step, control.corrections,
        rates.lr, 1 - rates.beta1, 1 - rates.beta2, rates.eps, rates.weight_decay, *draw.key, draw.first, rows, columns, per_row,
        WEIGHT_BF16=weight.dtype == torch.bfloat16, MOMENT_BF16=moments.second.dtype == torch.bfloat16, INT8=is_int8,
        TINY=TINY, BLOCK=BLOCK, N_BLOCKS=N_BLOCKS,
    )  # fmt: skip


def momentum_update(out: Tensor, grad: Tensor, momentum: Tensor, control: Control, settings: tuple[float, bool]) -> None:
    """See kernels/muon.py."""
    mu, nesterov = settings
    assert all(t.is_contiguous() for t in (out, grad, momentum))
    size = N_BLOCKS * BLOCK
    _momentum[(triton.cdiv(grad.numel(), size),)](
        out, grad, momentum, control.grad_scale, control.skip, mu, 1 - mu, grad.numel(), NESTEROV=nesterov,
        MOMENTUM_BF16=momentum.dtype == torch.bfloat16, OUT_BF16=out.dtype == torch.bfloat16, SIZE=size,
    )  # fmt: skip


def apply_update(weight: Tensor, update: Tensor, control: Control, rates: tuple[float, float], draw: Draw) -> None:
    """See kernels/muon.py."""
    assert all(t.is_contiguous() for t in (weight, update))
    size, n = N_BLOCKS * BLOCK, weight.numel()
    _apply[(triton.cdiv(n, size),)](
        weight, update, control.skip, control.step, *rates, *draw.key, draw.first, n,
        WEIGHT_BF16=weight.dtype == torch.bfloat16, SIZE=size,
    )  # fmt: skip


# ---- kernels -------------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_NEVER_SPECIALIZE)
def _adamw(
    weight, grad, moment1, moment2, scale1, scale2, grad_scale, skip, step, corrections,
    lr, gain1, gain2, eps, decay, key0, key1, first, n_rows, n_columns, n_per_row,
    WEIGHT_BF16: tl.constexpr, MOMENT_BF16: tl.constexpr, INT8: tl.constexpr,
    TINY: tl.constexpr, BLOCK: tl.constexpr, N_BLOCKS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0) * N_BLOCKS + tl.arange(0, N_BLOCKS)
    row = block // n_per_row
    column = (block % n_per_row)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    is_block = row < _unless(skip, n_rows)
    mask = is_block[:, None] & (column < n_columns)
    at = row.to(tl.int64)[:, None] * n_columns + column
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) / tl.load(grad_scale)
    if INT8:
        s1 = tl.load(scale1 + block, mask=is_block, other=0.0)
        s2 = tl.load(scale2 + block, mask=is_block, other=0.0)
        m = _decode_signed(tl.load(moment1 + at, mask=mask, other=127).to(tl.int32)) * s1[:, None]
        v = _decode_unsigned(tl.load(moment2 + at, mask=mask, other=0).to(tl.int32)) * s2[:, None]
        v = v * v
    else:
        m = tl.load(moment1 + at, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(moment2 + at, mask=mask, other=0.0).to(tl.float32)
    m = m + gain1 * (g - m)
    v = v + gain2 * (g * g - v)
    root = tl.sqrt(v)
    update = (m * tl.load(corrections)) / (root * tl.load(corrections + 1) + eps)
    w = tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
    w = w - lr * (decay * w + update)
    if WEIGHT_BF16 or MOMENT_BF16:
        bits = _random_bits(at + first, key0, key1, tl.load(step))
    if WEIGHT_BF16:
        w = _cut(w, bits)
    tl.store(weight + at, w, mask=mask)
    if INT8:
        new1 = tl.max(tl.abs(tl.where(mask, m, 0.0)), 1)
        new2 = tl.max(tl.where(mask, root, 0.0), 1)
        tl.store(scale1 + block, new1, mask=is_block)
        tl.store(scale2 + block, new2, mask=is_block)
        tl.store(moment1 + at, _encode_signed(m / tl.maximum(new1, TINY)[:, None]).to(tl.uint8), mask=mask)
        tl.store(moment2 + at, _encode_unsigned(root / tl.maximum(new2, TINY)[:, None]).to(tl.uint8), mask=mask)
    else:
        if MOMENT_BF16:
            m = _nearest(m)
            v = _cut(v, bits >> 16)
        tl.store(moment1 + at, m, mask=mask)
        tl.store(moment2 + at, v, mask=mask)


@triton.jit
def _momentum(
    out, grad, momentum, grad_scale, skip, mu, gain, n,
    NESTEROV: tl.constexpr, MOMENTUM_BF16: tl.constexpr, OUT_BF16: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = at < n
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) / tl.load(grad_scale)
    m = tl.load(momentum + at, mask=mask, other=0.0).to(tl.float32)
    m = m + gain * (g - m)
    tl.store(momentum + at, _nearest(m) if MOMENTUM_BF16 else m, mask=at < _unless(skip, n))
    if NESTEROV:
        m = g + mu * (m - g)
    tl.store(out + at, _nearest(m) if OUT_BF16 else m, mask=mask)


@triton.jit(do_not_specialize=_NEVER_SPECIALIZE)
def _apply(
    weight, update, skip, step, lr, decay, key0, key1, first, n, WEIGHT_BF16: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = at < _unless(skip, n)
    w = tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
    w = w - lr * (decay * w + tl.load(update + at, mask=mask, other=0.0).to(tl.float32))
    if WEIGHT_BF16:
        w = _cut(w, _random_bits(at + first, key0, key1, tl.load(step)))
    tl.store(weight + at, w, mask=mask)


@triton.jit
def _unless(skip, n):
    """How many rows or entries to touch: none on a skipped step."""
    return tl.where(tl.load(skip) == 0, n, 0)


# ---- random bits and stochastic rounding: the twins of kernels/rounding.py -------------------------------------------------


@triton.jit
def _random_bits(index, key0, key1, step):
    k0 = _mix(key0.to(tl.uint32) ^ step.to(tl.uint32))
    k1 = _mix(key1.to(tl.uint32) ^ k0)
    bits = _mix(index.to(tl.uint32) ^ k0)
    return _mix(bits ^ (index >> 32).to(tl.uint32) ^ k1)


@triton.jit
def _mix(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _cut(x, bits):
    """float32 whose low 16 bits are zero, so that storing it as bfloat16 is exact. Not of a NaN, whose bits could overflow."""
    moved = x.to(tl.uint32, bitcast=True) + (bits & 0xFFFF)
    return tl.where(x == x, (moved & 0xFFFF0000).to(tl.float32, bitcast=True), x)


@triton.jit
def _nearest(x):
    """To the nearest bfloat16, ties to even. In integers, because Triton's interpreter, where tests run, only cuts."""
    return _cut(x, 0x7FFF + ((x.to(tl.uint32, bitcast=True) >> 16) & 1))


# ---- 8-bit codes in closed form: the twins of kernels/int8_states.py -------------------------------------------------------
# A bin's number j, counted from 2^i in the decade's 2^i bins, is a floating-point number: its exponent is the decade, its
# mantissa the place in it. Arithmetic instead of a table, which would cost several memory transactions per entry.


@triton.jit
def _decode_signed(code):
    j = tl.abs(code - 127)
    value = tl.where(code == 255, 1.0, _bin_middle(j, 0))
    return tl.where(code < 127, -value, value)


@triton.jit
def _decode_unsigned(code):
    value = tl.where(code == 255, 1.0, _bin_middle(code + 1, 1))
    return tl.where(code == 0, 0.0, value)


@triton.jit
def _bin_middle(j, EXTRA: tl.constexpr):
    """10^(decade - 6) * (0.1 + 0.9 * (j - 2^i + 0.5) / 2^i), and 0 for j = 0."""
    i = (j.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    inverse = ((127 - i) << 23).to(tl.float32, bitcast=True)
    value = _power_of_ten(i - EXTRA) * 1e-6 * (0.9 * ((j.to(tl.float32) + 0.5) * inverse) - 0.8)
    return tl.where(j == 0, 0.0, value)


@triton.jit
def _power_of_ten(n):
    """10^n for n from 0 to 7, exact in float32."""
    ones = tl.where((n & 1) != 0, 10.0, 1.0)
    return ones * tl.where((n & 2) != 0, 100.0, 1.0) * tl.where((n & 4) != 0, 10000.0, 1.0)


@triton.jit
def _encode_signed(x):
    j = _nearest_bin(tl.abs(x), 0, 0.9)
    code = tl.where(x < 0, 127 - j, 127 + j)
    return tl.where(x >= 1 - 0.225 / 64, 255, code)


@triton.jit
def _encode_unsigned(x):
    code = tl.maximum(_nearest_bin(x, 1, 0.45) - 1, 0)
    return tl.where(x >= 1 - 0.225 / 128, 255, code)


@triton.jit
def _nearest_bin(x, EXTRA: tl.constexpr, STEP: tl.constexpr):
    """The j whose middle is nearest to x in [0, 1]; 0 below half the smallest. STEP: 0.9 / 2^EXTRA."""
    decade = (x >= 1e-6 * (1 + STEP)).to(tl.int32)  # half-way between the last middle of a decade and the first of the next
    decade += (x >= 1e-5 * (1 + STEP / 2)).to(tl.int32)
    decade += (x >= 1e-4 * (1 + STEP / 4)).to(tl.int32)
    decade += (x >= 1e-3 * (1 + STEP / 8)).to(tl.int32)
    decade += (x >= 1e-2 * (1 + STEP / 16)).to(tl.int32)
    decade += (x >= 1e-1 * (1 + STEP / 32)).to(tl.int32)
    n = 1 << (decade + EXTRA)
    place = tl.floor((x * _power_of_ten(6 - decade) - 0.1) * (n.to(tl.float32) / 0.9)).to(tl.int32)
    place = tl.minimum(tl.maximum(place, 0), n - 1)
    return tl.where(x < 0.5e-6 * (0.1 + STEP / 2), 0, n + place)
