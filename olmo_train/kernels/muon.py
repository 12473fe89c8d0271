"""The elementwise halves of Muon, one pass each: momentum before the orthogonalisation, the weights after it."""

import torch
from torch import Tensor

from olmo_train.kernels.rounding import random_bits, round_stochastically
from olmo_train.kernels.update import Control, Draw


def momentum_update(out: Tensor, grad: Tensor, momentum: Tensor, control: Control, settings: tuple[float, bool]) -> None:
    """Move `momentum` (float32 or bfloat16, in place) towards the gradient and write what to orthogonalise into `out`.

    `settings`: (mu, nesterov). momentum = mu * momentum + (1 - mu) * grad; out = that, or with Nesterov one step ahead of it.
    All contiguous and of one size. On a skipped step `momentum` stays and `out` holds anything.
    Source: Jordan 2024, kellerjordan.github.io/posts/muon, whose sum of gradients is this mean up to a factor that
    orthogonalising takes away.
    """
    if not grad.numel():
        return
    if grad.is_cuda:
        from olmo_train.kernels import triton_optim

        triton_optim.momentum_update(out, grad, momentum, control, settings)
    else:
        momentum_update_torch(out, grad, momentum, control, settings)


def momentum_update_torch(out: Tensor, grad: Tensor, momentum: Tensor, control: Control, settings: tuple[float, bool]) -> None:
    """The torch backend."""
    mu, nesterov = settings
    g = grad.float() / control.grad_scale
    m = momentum.float()
    m = m + (1 - mu) * (g - m)
    momentum.copy_(torch.where(control.skip != 0, momentum.float(), m))
    out.copy_(g + mu * (m - g) if nesterov else m)


def apply_update(weight: Tensor, update: Tensor, control: Control, rates: tuple[float, float], draw: Draw) -> None:
    """weight = (1 - lr * decay) * weight - lr * update, in place; bfloat16 weights are rounded stochastically.

    `rates`: (lr, decay). `update`: float32 or bfloat16, contiguous, of the weight's size.
    """
    if not weight.numel():
        return
    if weight.is_cuda:
        from olmo_train.kernels import triton_optim

        triton_optim.apply_update(weight, update, control, rates, draw)
    else:
        apply_update_torch(weight, update, control, rates, draw)


def apply_update_torch(weight: Tensor, update: Tensor, control: Control, rates: tuple[float, float], draw: Draw) -> None:
    """The torch backend; on a GPU it would wait for `skip` and `step`."""
    if control.skip.item() != 0:
        return
    lr, decay = rates
    w = weight.float()
    w = w - lr * (decay * w + update.float())
    if weight.dtype == torch.bfloat16:
        elements = range(draw.first, draw.first + weight.numel())
        w = round_stochastically(w, random_bits(draw.key, int(control.step), elements, weight.device).view_as(w))
    weight.copy_(w)
