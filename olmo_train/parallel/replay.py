"""Whether this hardware computes the same twice: one micro-step taken two times, its loss and gradients compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from olmo_train.attempt import node_name
from olmo_train.errors import CorruptionError
from olmo_train.parallel.collectives import gather_to_all
from olmo_train.parallel.mesh import Layout
from olmo_train.parallel.replicas import checksum

MicroStep = Callable[[], tuple[Tensor, Mapping[str, Tensor]]]
"""Takes the micro-step; returns the loss of this rank's own rows and its rows of the gradient summed over all ranks."""


@dataclass(frozen=True)
class _Finding:
    """What changed on one rank between the two."""

    node: str
    local: list[str]
    """Of what this rank computed from its own rows of the batch."""
    is_sum_different: bool
    """Of its rows of the summed gradient, to which all ranks contribute."""


def check_replay(layout: Layout, embedding: nn.Module, micro_step: MicroStep, tolerance: float, step: int) -> None:
    """Take the same micro-step twice. A collective: all ranks raise or none. Waits for the device.

    The gradient of a rank's own rows at the embedding's output has passed through every layer and no collective: it tells whose
    computation changed.

    Args:
        tolerance: allowed difference, as a fraction of the norm; 0: bit by bit.
        step: for the message; the step that this micro-step belongs to.

    Raises:
        CorruptionError: names the ranks and nodes whose own values changed.
    """
    first, second = (_values(embedding, micro_step, keeps=tolerance > 0) for _ in range(2))
    different = [name for name in first if not _agree(first[name], second[name], tolerance)]
    finding = _Finding(node_name(), [name for name in different if name != "gradient"], "gradient" in different)
    findings: list[_Finding] = gather_to_all(layout, finding)
    if not any(f.local or f.is_sum_different for f in findings):
        return
    local = [rank for rank, f in enumerate(findings) if f.local]
    if local:
        told = "; ".join(f"rank {rank} on node {findings[rank].node}: {', '.join(findings[rank].local)}" for rank in local)
    else:
        ranks = ", ".join(str(rank) for rank, f in enumerate(findings) if f.is_sum_different)
        told = f"the sums of gradients of rank {ranks}, to which all ranks contribute, so that none can be named"
    raise CorruptionError(
        f"a micro-step of step {step}, taken twice, came out differently on {told} (faults.replay_check_every; kernels with "
        "atomic sums need faults.replay_tolerance)",
        sorted({findings[rank].node for rank in local}),
    )


def _values(embedding: nn.Module, micro_step: MicroStep, keeps: bool) -> dict[str, list[Tensor]]:
    """Loss, gradient at the embedding's output, parameters' gradients; checksums of them, or copies if they are to be kept."""
    at_embedding: list[Tensor] = []

    def watch(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if output.requires_grad:  # not in a forward pass that only counts
            output.register_hook(at_embedding.append)

    handle = embedding.register_forward_hook(watch)
    try:
        loss, grads = micro_step()
    finally:
        handle.remove()
    take = torch.clone if keeps else checksum
    return {
        "loss": [take(loss)],
        "gradient at the embedding": [take(grad) for grad in at_embedding],
        "gradient": [take(grad) for grad in grads.values()],
    }


def _agree(first: list[Tensor], second: list[Tensor], tolerance: float) -> bool:
    if tolerance == 0:
        return bool(torch.equal(torch.stack(first), torch.stack(second)))
    # Of a batch that has no finite loss both are not finite, which is no fault of the hardware.
    pairs = [(a.double().nan_to_num(0, 0, 0), b.double().nan_to_num(0, 0, 0)) for a, b in zip(first, second, strict=True)]
    difference = sum(((a - b).square().sum() for a, b in pairs), torch.zeros(()))
    norm = sum((a.square().sum() for a, _ in pairs), torch.zeros(()))
    return bool(difference.sqrt() <= tolerance * norm.sqrt())
