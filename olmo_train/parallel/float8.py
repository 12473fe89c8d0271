"""float8 matrix products for the dense projections, by torchao; weights, gradients and everything else stay as they are."""

import importlib.util
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from olmo_train.config.dtypes import FloatType
from olmo_train.config.train import Float8, ParallelConfig

MULTIPLE = 16
"""Of both widths of a matrix, for torch._scaled_mm."""


def find_float8_problems(config: ParallelConfig, device: torch.device) -> Iterator[str]:
    """What stands against `parallel.float8` on this machine."""
    if config.float8 == Float8.NONE:
        return
    here = f"parallel.float8={config.float8}"
    if importlib.util.find_spec("torchao") is None:
        yield f"{here} needs torchao; pip install 'olmo-train[torchao]', or parallel.float8=none"
    if device.type == "cuda":
        if config.compute_dtype != FloatType.BFLOAT16:
            yield f"{here} needs parallel.compute_dtype=bfloat16, it is {config.compute_dtype}; set it, or parallel.float8=none"
        if torch.cuda.get_device_capability(device) < (8, 9):
            yield f"{here} needs a GPU with float8 products (compute capability 8.9 or newer); use parallel.float8=none"


def use_float8(units: Iterable[nn.Module], kind: Float8, device: torch.device) -> int:
    """Make the linear layers of the units multiply in float8; return how many. Parameters keep their names, shapes and dtypes.

    Attention's projections and dense (also shared-expert) feed-forwards: their widths must be multiples of 16, others are left.
    Not the router (its scores decide), the experts (they are grouped), the output projection. On a CPU the products are emulated:
    slow, and the same rounding, for comparing losses. Source: torchao `float8`, scales from each tensor as it is ("dynamic").
    """
    from torchao.float8 import convert_to_float8_training
    from torchao.float8.config import Float8LinearConfig

    config: Any = Float8LinearConfig.from_recipe_name(kind.value)
    if device.type == "cpu":
        object.__setattr__(config, "emulate", True)  # a frozen dataclass whose recipes cannot be asked for emulation
    converted = 0

    def takes(module: nn.Module, _name: str) -> bool:
        nonlocal converted
        fits = isinstance(module, nn.Linear) and module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0
        converted += fits
        return fits

    for unit in units:
        convert_to_float8_training(unit, module_filter_fn=takes, config=config)
    return converted
