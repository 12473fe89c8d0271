"""AdamW in one pass over weight, gradient and moments, whatever their number formats: Triton on a GPU, plain torch elsewhere.

What is skipped is decided by a scalar on the device, and stochastic rounding draws its bits from the index of the element: the
result depends neither on the number of ranks nor on what else the process has drawn.
"""

import torch
from torch import Tensor

from olmo_train.kernels.int8_states import dequantize, quantize
from olmo_train.kernels.rounding import random_bits, round_stochastically
from olmo_train.kernels.update import Control, Draw, Moments, Rates

CHUNK_ELEMENTS = 2**18
"""Of the torch backend, so that its float32 copies stay in the cache."""


def corrections(step: Tensor, beta1: float, beta2: float) -> Tensor:
    """Bias corrections of a step, float32 (2,) on the step's device. Source: Kingma and Ba, arXiv 1412.6980, algorithm 1."""
    t = step.double()
    return torch.stack([1 / (1 - beta1**t), (1 - beta2**t).rsqrt()]).float()


def adamw_update(weight: Tensor, grad: Tensor, moments: Moments, control: Control, settings: tuple[Rates, Draw]) -> None:
    """Update `weight` (float32, or bfloat16 rounded stochastically) and `moments` in place. `grad`: float32 or bfloat16.

    All contiguous and of one shape. bfloat16 second moments are rounded stochastically too: to nearest, a decay of less than
    1/512 a step (beta2 over 0.998) would never move them.
    Source: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2; 8-bit states: arXiv 2110.02861.
    """
    if not weight.numel():
        return
    if weight.is_cuda:
        from olmo_train.kernels import triton_optim

        triton_optim.adamw_update(weight, grad, moments, control, settings)
    else:
        adamw_update_torch(weight, grad, moments, control, settings)


def adamw_update_torch(weight: Tensor, grad: Tensor, moments: Moments, control: Control, settings: tuple[Rates, Draw]) -> None:
    """The torch backend; on a GPU it would wait for `skip` and `step`."""
    if control.skip.item() != 0:
        return
    rates, draw = settings
    rows = weight.shape[0]
    tensors = (weight, grad, moments.first, moments.second, moments.first_scale, moments.second_scale)
    flat = [None if t is None else t.view(rows, -1) for t in tensors]
    columns = weight.numel() // rows
    per_chunk = max(1, CHUNK_ELEMENTS // columns)
    for start in range(0, rows, per_chunk):
        chunk = [None if t is None else t[start : start + per_chunk] for t in flat]
        _update_rows(chunk, control, rates, Draw(draw.key, draw.first + start * columns))


def _update_rows(chunk: list[Tensor | None], control: Control, rates: Rates, draw: Draw) -> None:
    weight, grad, first, second, first_scale, second_scale = chunk
    assert weight is not None
    assert grad is not None
    assert first is not None
    assert second is not None
    elements = range(draw.first, draw.first + weight.numel())
    needs_bits = torch.bfloat16 in (weight.dtype, second.dtype)
    bits = random_bits(draw.key, int(control.step), elements, weight.device).view_as(weight) if needs_bits else None
    g = grad.float() / control.grad_scale
    m = first.float() if first_scale is None else dequantize(first, first_scale, signed=True)
    v = second.float() if second_scale is None else dequantize(second, second_scale, signed=False).square_()
    m = m + (1 - rates.beta1) * (g - m)
    v = v + (1 - rates.beta2) * (g * g - v)
    root = v.sqrt()
    update = (m * control.corrections[0]) / (root * control.corrections[1] + rates.eps)
    w = weight.float()
    w = w - rates.lr * (rates.weight_decay * w + update)
    _store(weight, w, bits)
    if first_scale is None or second_scale is None:
        first.copy_(m)
        _store(second, v, None if bits is None else bits >> 16)
    else:
        for values, codes, scales, signed in ((m, first, first_scale, True), (root, second, second_scale, False)):
            new_codes, new_scales = quantize(values, signed)
            codes.copy_(new_codes)
            scales.copy_(new_scales)


def _store(out: Tensor, values: Tensor, bits: Tensor | None) -> None:
    out.copy_(round_stochastically(values, bits) if out.dtype == torch.bfloat16 and bits is not None else values)
