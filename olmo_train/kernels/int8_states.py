"""8-bit numbers for optimizer states: a code per entry and one float32 scale per 256 entries of a row of dim 0.

Source: Dettmers et al., arXiv 2110.02861, section 2 (block-wise quantisation, dynamic tree map). The map is that of bitsandbytes
and torchao (`create_dynamic_map`); blocks end where rows end, so that a tensor can be cut between any two rows.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256
TINY = 1e-30
"""Scales are divided by at least this: a block of zeros."""


@functools.cache
def dynamic_map(signed: bool) -> Tensor:
    """The 256 values of the codes in ascending order, float32, from -0.993 (or 0) to 1.

    Decades from 1e-6 to 1, each cut into twice as many equal bins as the one below; a code means the middle of its bin.
    """
    positive = []
    for decade in range(7):
        n_bins = 2 ** (decade if signed else decade + 1)
        middles = (torch.arange(n_bins, dtype=torch.float64) + 0.5) / n_bins
        positive.append(10.0 ** (decade - 6) * (0.1 + 0.9 * middles))
    values = torch.cat(positive)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return torch.cat([values, ends, -values] if signed else [values, ends]).sort().values.float()


@functools.cache
def _middles(signed: bool) -> Tensor:
    """Between which two codes a value lies."""
    values = dynamic_map(signed).double()
    return ((values[1:] + values[:-1]) / 2).float()


def n_blocks(shape: tuple[int, ...]) -> int:
    """Scales per row of dim 0 of a tensor."""
    return -(-math.prod(shape[1:]) // BLOCK)


def quantize(values_RC: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """float32 (R, C) -> codes uint8 (R, C) and scales float32 (R, ceil(C / 256))."""
    rows, columns = values_RC.shape
    blocks = F.pad(values_RC, (0, -columns % BLOCK)).view(rows, -1, BLOCK)
    scales_RB = blocks.abs().amax(-1)
    scaled = (blocks / scales_RB.clamp_min(TINY)[..., None]).view(rows, -1)[:, :columns]
    middles = _middles(signed).to(values_RC.device)
    return torch.bucketize(scaled.contiguous(), middles, right=True, out_int32=True).to(torch.uint8), scales_RB


def dequantize(codes_RC: Tensor, scales_RB: Tensor, signed: bool) -> Tensor:
    """float32 (R, C) from what `quantize` returned."""
    values = dynamic_map(signed).to(codes_RC.device)[codes_RC.int()]
    rows, columns = codes_RC.shape
    padded = F.pad(values, (0, -columns % BLOCK)).view(rows, -1, BLOCK)
    return (padded * scales_RB[..., None]).view(rows, -1)[:, :columns]
