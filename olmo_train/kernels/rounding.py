"""Stochastic rounding to bfloat16, with random bits that are a function of (key, step, element): the same on every layout."""

import torch
from torch import Tensor

Key = tuple[int, int]
"""Two non-negative 31-bit numbers that name a run and a parameter."""
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B


def key_of(seed: int) -> Key:
    """The key of a 63-bit seed (`rng.seed_of`)."""
    return seed & 0x7FFFFFFF, (seed >> 31) & 0x7FFFFFFF


def random_bits(key: Key, step: int, elements: range, device: torch.device) -> Tensor:
    """32 random bits for each element index, as int32.

    Two rounds of an integer mix over the index, keyed by parameter and step: four multiplications, where Philox needs forty.
    Source of the mix: Chris Wellons, "Prospecting for hash functions" (lowbias32). Twin: triton_optim._random_bits.
    """
    first = _mix_int(key[0] ^ (step & 0xFFFFFFFF))
    second = _mix_int(key[1] ^ first)
    index = torch.arange(elements.start, elements.stop, device=device)
    bits = _mix_(index.to(torch.int32).bitwise_xor_(_signed(first)))  # the conversion keeps the low 32 bits
    if elements.stop > 2**32:
        bits ^= (index >> 32).to(torch.int32)
    return _mix_(bits.bitwise_xor_(_signed(second)))


def round_stochastically(values: Tensor, bits: Tensor) -> Tensor:
    """float32 -> bfloat16, up or down with the probability that makes the mean exact. Uses the low 16 of the int32 `bits`.

    Source: arXiv 2502.20566, section 3; adding 16 random bits below the mantissa and cutting there.
    """
    moved = (values.view(torch.int32) + (bits & 0xFFFF)).bitwise_and_(-0x10000).view(torch.float32)
    return torch.where(values.isnan(), values, moved).to(torch.bfloat16)  # the bits of a NaN could overflow into a number


def _mix_(x: Tensor) -> Tensor:
    x ^= (x >> 16) & 0xFFFF  # masked, because shifting a negative int32 drags its sign along
    x *= _FIRST
    x ^= (x >> 15) & 0x1FFFF
    x *= _signed(_SECOND)
    x ^= (x >> 16) & 0xFFFF
    return x


def _mix_int(x: int) -> int:
    x ^= x >> 16
    x = x * _FIRST & 0xFFFFFFFF
    x ^= x >> 15
    x = x * _SECOND & 0xFFFFFFFF
    return x ^ (x >> 16)


def _signed(x: int) -> int:
    """The int32 with the bits of a uint32."""
    return x - 2**32 if x >= 2**31 else x
