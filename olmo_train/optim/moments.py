"""Moments by name as they are saved, in any number format; and reading one format into another.

`<moment>/<parameter>` is float32, bfloat16, or uint8 codes; with codes there is `<moment>.scale/<parameter>`
(kernels/int8_states.py). The codes of `exp_avg_sq` are of its square root.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from olmo_train.config.dtypes import MomentType
from olmo_train.errors import CheckpointError
from olmo_train.kernels.int8_states import dequantize, n_blocks, quantize
from olmo_train.kernels.update import Moments

FIRST, SECOND, MOMENTUM = "exp_avg", "exp_avg_sq", "momentum"


def allocate(param: Tensor, kind: MomentType) -> Moments:
    """Moments of zero for one parameter. Vectors keep float32 beside int8: they are tiny, and have no rows to cut into blocks."""
    if kind == MomentType.INT8 and param.ndim > 1:
        scales = [torch.zeros(param.shape[0], n_blocks(tuple(param.shape)), device=param.device) for _ in range(2)]
        zero = torch.full_like(param, 127, dtype=torch.uint8)  # the code of 0 in the signed map
        return Moments(zero, torch.zeros_like(zero), *scales)
    dtype = torch.bfloat16 if kind == MomentType.BFLOAT16 else torch.float32
    return Moments(torch.zeros_like(param, dtype=dtype), torch.zeros_like(param, dtype=dtype))


def named(moments: Moments, name: str) -> dict[str, Tensor]:
    """The live tensors under the names they are saved by."""
    tensors = {f"{FIRST}/{name}": moments.first, f"{SECOND}/{name}": moments.second}
    if moments.first_scale is not None and moments.second_scale is not None:
        tensors |= {f"{FIRST}.scale/{name}": moments.first_scale, f"{SECOND}.scale/{name}": moments.second_scale}
    return tensors


def all_named(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    """`named` of several parameters."""
    return {key: tensor for name, each in moments.items() for key, tensor in named(each, name).items()}


def load(moments: Moments, name: str, saved: Mapping[str, Tensor]) -> None:
    """Fill in place from saved tensors: bit for bit from the same format, converted from another."""
    mine = named(moments, name)
    if all(key in saved and saved[key].dtype == tensor.dtype for key, tensor in mine.items()):
        for key, tensor in mine.items():
            tensor.copy_(saved[key])
        return
    first, second = as_float32(saved, FIRST, name), as_float32(saved, SECOND, name)
    if moments.first_scale is None or moments.second_scale is None:
        moments.first.copy_(first)
        moments.second.copy_(second)
    elif moments.first.numel():
        rows = moments.first.shape[0]
        for values, codes, scale, signed in (
            (first, moments.first, moments.first_scale, True),
            (second.sqrt(), moments.second, moments.second_scale, False),
        ):
            new_codes, new_scale = quantize(values.reshape(rows, -1), signed)
            codes.copy_(new_codes.view_as(codes))
            scale.copy_(new_scale)


def as_float32(saved: Mapping[str, Tensor], moment: str, name: str) -> Tensor:
    """One saved moment.

    Raises:
        CheckpointError: it was not saved; another optimizer wrote the checkpoint.
    """
    tensor = saved.get(f"{moment}/{name}")
    if tensor is None:
        raise CheckpointError(
            f"the checkpoint holds no {moment} of {name}: it was written by another optimizer; load its weights alone with "
            "load.optimizer_state=false"
        )
    scale = saved.get(f"{moment}.scale/{name}")
    if scale is None or not tensor.numel():
        return tensor.float()
    is_first = moment == FIRST
    values = dequantize(tensor.reshape(tensor.shape[0], -1), scale, signed=is_first)
    return (values if is_first else values.square()).view(tensor.shape)
