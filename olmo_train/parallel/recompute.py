"""Trade compute for memory: run (part of) a block again in the backward pass instead of keeping its activations."""

import functools
from typing import Any

from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from olmo_train.config.train import Recompute

# Costly to run again, so kept by `selective`; all else (norms, rotary, gates, casts) is cheap.
# By name: operators of libraries exist only once those are imported.
_KEPT = {
    "aten::mm",
    "aten::addmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
    "olmo_train::flash_attention",
    "olmo_train::moe_mlp",
}


def recompute(block: nn.Module, kind: Recompute) -> None:
    """Make `block` recompute in place. Its parameters keep their names, which a wrapper module would change."""
    arguments: dict[str, Any] = {
        "use_reentrant": False,
        "preserve_rng_state": False,
    }  # nothing in a block draws random numbers
    if kind == Recompute.SELECTIVE:
        arguments["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    forward = block.forward
    block.forward = lambda *inputs: checkpoint(forward, *inputs, **arguments)


def _policy(_context: Any, op: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op.name() in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
