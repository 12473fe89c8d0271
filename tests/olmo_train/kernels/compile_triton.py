"""Compile our Triton kernels for Hopper; needs no GPU, but a process in which Triton does not interpret.

python -m tests.olmo_train.kernels.compile_triton
"""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from olmo_train.kernels import triton_cross_entropy, triton_moe, triton_optim, triton_routing, triton_top_k
from olmo_train.kernels.int8_states import BLOCK

POINTERS = dict.fromkeys(("scale1", "scale2", "grad_scale", "skip", "corrections"), "*fp32") | {"step": "*i64"}
NUMBERS = dict.fromkeys(("lr", "gain1", "gain2", "eps", "decay", "mu", "gain"), "fp32") | {"first": "i64"}
NUMBERS |= dict.fromkeys(("key0", "key1", "n_rows", "n_columns", "n_per_row", "n"), "i32")


def compile_kernel(
    kernel: Any, formats: dict[str, str], constants: dict[str, Any], numbers: dict[str, str] | None = None
) -> None:
    pointers = {name: f"*{kind}" for name, kind in formats.items()}
    types = POINTERS | NUMBERS | (numbers or {}) | pointers | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def main() -> None:
    optimizer()
    experts()
    compile_kernel(
        triton_cross_entropy._rows,
        {"logits": "bf16", "labels": "i64", "ce": "fp32", "z": "fp32"},
        {"V": 50304, "IGNORE": -100, "NEEDS_GRAD": True, "BLOCK": 4096},
        {"stride": "i32", "z_weight": "fp32"},
    )


def experts() -> None:
    """At the widths of OLMoE-1B-7B."""
    counts = dict.fromkeys(("n_pairs", "n_experts", "n_blocks", "N", "E", "D"), "i32")
    blocks = {"BLOCK": 256, "WIDTH": 64}
    compile_kernel(triton_routing._count, {"ids": "i64", "counts": "i32"}, blocks, counts)
    places = dict.fromkeys(("starts", "pair_of_slot", "slot_of_pair"), "i32")
    compile_kernel(triton_routing._place, {"ids": "i64", **places}, blocks, counts)
    compile_kernel(triton_top_k._top_k, {"scores": "fp32", "ids": "i64"}, {"K": 8, "ROWS": 64, "WIDTH": 64}, counts)
    sums = {"y": "bf16", "slots": "i32", "weights": "fp32", "out": "bf16"}
    compile_kernel(triton_moe._gather_sum, sums, {"K": 8, "WEIGHTED": True, "BLOCK": 2048}, counts)
    compile_kernel(triton_moe._swiglu, {"h": "bf16", "out": "bf16"}, {"BLOCK": 1024}, {"F": "i32"})
    low = dict.fromkeys(("da", "h", "dh", "gated"), "bf16")
    compile_kernel(triton_moe._swiglu_backward, {**low, "gates": "fp32", "dgates": "fp32"}, {"F": 1024, "BLOCK": 1024})


def optimizer() -> None:
    """Of the recipes."""
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
