"""Whether the replicas of HSDP still agree bit by bit: integer checksums of weights and moments, compared across replicas."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from olmo_train.attempt import node_name
from olmo_train.errors import CorruptionError
from olmo_train.parallel.collectives import gather_to_all
from olmo_train.parallel.mesh import Layout

CHUNK = 2**22
"""Elements at a time: what is summed is copied to 8 bytes each."""
WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def checksum(tensor: Tensor) -> Tensor:
    """A sum over the bits of all elements, an int64 scalar on the device, the same in any order of summation.

    Each element counts an odd number of times, another one at each place, modulo 2^64: whichever bit changes, the sum changes
    too, and elements that changed places are found.
    """
    words = tensor.detach().contiguous().view(-1).view(WIDTHS[tensor.itemsize])
    odd = torch.arange(1, 2 * min(CHUNK, max(words.numel(), 1)), 2, device=tensor.device)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, words.numel(), CHUNK):
        piece = words[start : start + CHUNK].long()
        total += (piece * (odd[: piece.numel()] + 2 * start)).sum()
    return total


@dataclass(frozen=True)
class _Finding:
    """What the replicas of one rank's rows say, as that rank sees it."""

    node: str
    names: list[str]
    """Tensors that are not the same on all replicas of these rows."""
    is_odd: bool
    """Whether this rank differs from more than half of its replicas."""


def check_replicas(layout: Layout, tensors: Mapping[str, Tensor], when: str) -> None:
    """Compare the same rows on all replicas. A collective: all ranks raise or none. Waits for the device.

    `when`: for the message, such as "before step 100 is saved".

    Raises:
        CorruptionError: names the tensors, and the ranks and nodes that differ from the majority; without one, all that differ.
    """
    mine = torch.stack([checksum(tensor) for tensor in tensors.values()])
    n_replicas = dist.get_world_size(layout.replicate_group)
    gathered = [torch.empty_like(mine) for _ in range(n_replicas)]
    dist.all_gather(gathered, mine, group=layout.replicate_group)
    finding = _compare(list(tensors), torch.stack(gathered).tolist(), dist.get_rank(layout.replicate_group))
    findings: list[_Finding] = gather_to_all(layout, finding)
    names = sorted({name for f in findings for name in f.names})
    if not names:
        return
    odd = [rank for rank, f in enumerate(findings) if f.is_odd]
    ranks = odd or [rank for rank, f in enumerate(findings) if f.names]
    who = ", ".join(f"rank {rank} on node {findings[rank].node}" for rank in ranks)
    told = (
        f"{who} differs from the other replicas" if odd else f"{who} differ, and two replicas cannot say which of them is right"
    )
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    raise CorruptionError(
        f"the replicas of {some} are not equal bit by bit {when}: {told} (faults.replica_check_every)",
        sorted({findings[rank].node for rank in odd}),
    )


def _compare(names: list[str], sums: list[list[int]], mine: int) -> _Finding:
    """`sums`: by replica, of each tensor."""
    different, is_odd = [], False
    for i, name in enumerate(names):
        seen = Counter(replica[i] for replica in sums)
        if len(seen) > 1:
            different.append(name)
            value, count = seen.most_common(1)[0]
            is_odd |= 2 * count > len(sums) and sums[mine][i] != value
    return _Finding(node_name(), different, is_odd)
