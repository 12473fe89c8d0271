"""What an update of a parameter is given beside its weight and gradient."""

from dataclasses import dataclass

from torch import Tensor

from olmo_train.kernels.rounding import Key


@dataclass(frozen=True)
class Moments:
    """Moments of one parameter, all float32, all bfloat16, or 8-bit codes with scales; updated in place."""

    first: Tensor
    """Mean of the gradient, in the parameter's shape."""
    second: Tensor
    """Mean of its square; with scales its square root, whose range 8 bits can hold (docs/optim.md)."""
    first_scale: Tensor | None = None
    """float32 (rows, blocks of 256)."""
    second_scale: Tensor | None = None


@dataclass(frozen=True)
class Rates:
    """Numbers of a step that the host knows."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


@dataclass(frozen=True)
class Control:
    """Numbers of a step that only the device knows: scalars on it."""

    grad_scale: Tensor
    """float32; gradients are divided by it."""
    skip: Tensor
    """float32; not 0: touch nothing."""
    step: Tensor
    """int64; updates applied, this one included."""
    corrections: Tensor
    """float32 (2,): 1 / (1 - beta1^step) and 1 / sqrt(1 - beta2^step)."""


@dataclass(frozen=True)
class Draw:
    """Where a tensor's random bits come from."""

    key: Key
    first: int
    """Index, in the whole parameter, of the tensor's first element."""
