"""Rotary position embedding, with YaRN for extended contexts."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from olmo_train.config.model import ModelConfig, YarnConfig
from olmo_train.model.shapes import d_head


class Rotation(NamedTuple):
    """Angles of every position: float32 (T, C / 2)."""

    cos: Tensor
    sin: Tensor


def build_rotation(model: ModelConfig, positions_T: Tensor, is_windowed: bool) -> Rotation:
    """Rotation of the given positions for one kind of layer. YaRN applies to full-attention layers only (OLMo-3).

    Source: Su et al., arXiv 2104.09864, section 3.2; halves of a head are rotated against each other, as in GPT-NeoX.
    """
    c = d_head(model)
    exponents = torch.arange(0, c, 2, dtype=torch.float32, device=positions_T.device) / c
    frequencies = 1.0 / model.rope_theta**exponents
    factor = 1.0
    if model.rope_yarn is not None and not is_windowed:
        frequencies, factor = _yarn(frequencies, model.rope_yarn, model.rope_theta)
    angles = positions_T.float()[:, None] * frequencies
    return Rotation(angles.cos() * factor, angles.sin() * factor)


def _yarn(frequencies: Tensor, yarn: YarnConfig, theta: float) -> tuple[Tensor, float]:
    """(frequencies, factor on cos and sin). Low frequencies are divided by the factor, high ones kept, a ramp between.

    Source: Peng et al., arXiv 2309.00071, section 3.2 to 3.4, with the bounds rounded outwards as its reference code does.
    """
    n = len(frequencies)

    def dim_of(rotations: float) -> float:
        return n * math.log(yarn.original_seq_len / (rotations * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(dim_of(yarn.beta_fast)), 0)
    high = min(math.ceil(dim_of(yarn.beta_slow)), 2 * n - 1)
    ramp = ((torch.arange(n, dtype=torch.float32, device=frequencies.device) - low) / max(high - low, 0.001)).clamp(0, 1)
    mixed = frequencies / yarn.factor * ramp + frequencies * (1 - ramp)
    return mixed, yarn.attention_factor or 0.1 * math.log(yarn.factor) + 1.0


def rotate(x_BTHC: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (x[i], x[i + C/2]) by the angle of its position, in float32."""
    cos, sin = rotation.cos[:, None, :], rotation.sin[:, None, :]
    first, second = x_BTHC.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x_BTHC.dtype)


class WideRotation(NamedTuple):
    """The same for `rotate_wide`: float32 (..., 1, C), both halves of a head side by side; sines of the first half negative."""

    cos: Tensor
    sin: Tensor


def widen(rotation: Rotation) -> WideRotation:
    """Both halves side by side: (T, 1, C)."""
    cos, sin = rotation
    return WideRotation(torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None])


def rotate_wide(x_BTHC: Tensor, rotation: WideRotation) -> Tensor:
    """`rotate` in three operations instead of nine: what counts where there are few positions."""
    x = x_BTHC.float()
    return torch.addcmul(x * rotation.cos, x.roll(x.shape[-1] // 2, -1), rotation.sin).to(x_BTHC.dtype)
