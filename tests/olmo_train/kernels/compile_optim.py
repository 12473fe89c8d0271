"""Compile the optimizer's Triton kernels for Hopper; needs no GPU, but a process in which Triton does not interpret.

python -m tests.olmo_train.kernels.compile_optim
"""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from olmo_train.kernels import triton_optim
from olmo_train.kernels.int8_states import BLOCK

POINTERS = dict.fromkeys(("scale1", "scale2", "grad_scale", "skip", "corrections"), "*fp32") | {"step": "*i64"}
NUMBERS = dict.fromkeys(("lr", "gain1", "gain2", "eps", "decay", "mu", "gain"), "fp32") | {"first": "i64"}
NUMBERS |= dict.fromkeys(("key0", "key1", "n_rows", "n_columns", "n_per_row", "n"), "i32")


def compile_kernel(kernel: Any, formats: dict[str, str], constants: dict[str, Any]) -> None:
    types = POINTERS | NUMBERS | {name: f"*{kind}" for name, kind in formats.items()} | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def main() -> None:
    size = {"SIZE": triton_optim.N_BLOCKS * BLOCK}
    for weight, moment in (("fp32", "bf16"), ("bf16", "bf16"), ("bf16", "u8")):
        constants = {"WEIGHT_BF16": weight == "bf16", "MOMENT_BF16": moment == "bf16", "INT8": moment == "u8"}
        constants |= {"TINY": triton_optim.TINY, "BLOCK": BLOCK, "N_BLOCKS": triton_optim.N_BLOCKS}
        formats = {"weight": weight, "grad": weight, "moment1": moment, "moment2": moment}
        compile_kernel(triton_optim._adamw, formats, constants)
    compile_kernel(triton_optim._apply, {"weight": "bf16", "update": "bf16"}, {"WEIGHT_BF16": True, **size})
    flags = {"NESTEROV": True, "MOMENTUM_BF16": True, "OUT_BF16": True, **size}
    compile_kernel(triton_optim._momentum, {"out": "bf16", "grad": "bf16", "momentum": "bf16"}, flags)


if __name__ == "__main__":
    main()
