"""Before training: matrix products, memory and collectives with known answers; devices and links that are wrong are named."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from olmo_train.attempt import node_name
from olmo_train.config.faults import FaultsConfig
from olmo_train.errors import UnhealthyError
from olmo_train.parallel.collectives import gather_to_all
from olmo_train.parallel.mesh import Layout

log = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16)
"""In which runs multiply."""
ROUNDS = 3
"""A broken unit may be wrong only now and then."""
PATTERNS = (0x55, 0xAA)
"""Bytes 01010101 and 10101010: each bit of the memory once 0, once 1, its neighbours the other way round."""
CHUNK = 2**30
PART = 2**18
"""Elements of each rank's part in a collective, so that all channels of a link carry some; fewer where all would be over 2^24."""


@dataclass(frozen=True)
class _Report:
    """What one rank found."""

    rank: int
    node: str
    problems: list[str]
    """Of its own device, or of what it received."""
    bad_sources: list[int] = field(default_factory=list)
    """Ranks whose part of an all-gather arrived wrong."""


def check_health(layout: Layout, faults: FaultsConfig, is_sick: bool = False) -> None:
    """Check this rank's device, then what the ranks send each other. A collective: all ranks call it, and all raise or none.

    `is_sick`: for drills; this rank's product comes out wrong.

    Raises:
        UnhealthyError: names ranks, nodes and what was wrong.
    """
    if not faults.health_check:
        return
    began = time.perf_counter()
    _raise_together(layout, _Report(layout.rank, node_name(), [*_device_problems(layout.device, is_sick)]), _broken)
    if layout.n_ranks > 1:  # only with devices that compute: on a broken one a collective may never end
        _raise_together(layout, _link_report(layout), _blamed)
    log.info("health check of %d ranks passed in %.2f s", layout.n_ranks, time.perf_counter() - began)


def _raise_together(layout: Layout, report: _Report, blame: Callable[[list[_Report]], list[int]]) -> None:
    """Tell everyone what this rank found."""
    reports: list[_Report] = gather_to_all(layout, report)
    problems = [f"rank {r.rank} on node {r.node}: {problem}" for r in reports for problem in r.problems]
    if not problems:
        return
    nodes = sorted({reports[rank].node for rank in blame(reports)})
    advice = f"start again without {', '.join(nodes)}" if nodes else "it shows no single node at fault: look at the network"
    raise UnhealthyError(f"health check: {'; '.join(problems)}; {advice} (faults.health_check=false leaves it out)", nodes)


def _broken(reports: list[_Report]) -> list[int]:
    """Whose device is wrong."""
    return [report.rank for report in reports if report.problems]


def _blamed(reports: list[_Report]) -> list[int]:
    """Who sent what more than half of the others got wrong; else who alone got more than half of the parts wrong."""
    others = len(reports) - 1
    complaints = [sum(rank in r.bad_sources for r in reports if r.rank != rank) for rank in range(len(reports))]
    senders = [rank for rank, n in enumerate(complaints) if 2 * n > others]
    receivers = [r.rank for r in reports if 2 * len([s for s in r.bad_sources if s != r.rank]) > others]
    return senders or receivers


# ---- the device ------------------------------------------------------------------------------------------------------------


def _device_problems(device: torch.device, is_sick: bool) -> Iterator[str]:
    try:
        for dtype in DTYPES:
            yield from check_products(device, dtype, is_sick)
        if device.type == "cuda":
            yield from check_memory(device)
    except RuntimeError as error:  # CUDA says of itself that something is broken
        yield f"the device fails: {str(error).splitlines()[0]}"


def check_products(device: torch.device, dtype: torch.dtype, is_sick: bool = False) -> Iterator[str]:
    """Multiply matrices whose product is known by integer arithmetic, exactly, in any order of summation.

    The factors repeat with the periods 7 and 5: 35 entries make up the whole product, and every partial sum over neighbours is an
    integer below 256, which bfloat16 still holds.
    """
    n = 4096 if device.type == "cuda" else 256
    left, right = _factors(n)
    answer = (left[:7] @ right[:, :5])[torch.arange(n)[:, None] % 7, torch.arange(n)[None, :] % 5].to(device, dtype)
    left, right = left.to(device, dtype), right.to(device, dtype)
    for _ in range(ROUNDS):
        product = left @ right
        if is_sick:
            product[n // 2, n // 3] += 1
        wrong = (product != answer).nonzero()
        if len(wrong):
            i, j = wrong[0].tolist()
            yield (
                f"a matrix product in {str(dtype).removeprefix('torch.')} is wrong in {len(wrong)} of {n * n} places, "
                f"at [{i}, {j}] it is {float(product[i, j]):g} and not {float(answer[i, j]):g}"
            )
            return


def _factors(n: int) -> tuple[Tensor, Tensor]:
    """Integers (n, n) and (n, n): the first repeats after 7 rows, the second after 5 columns; int64 on the CPU."""
    i = torch.arange(n)
    return (i[:, None] + i[None, :]) % 7 - 3, (3 * i[:, None] + i[None, :]) % 5 - 2


def check_memory(device: torch.device, max_bytes: int | None = None) -> Iterator[str]:
    """Write patterns to the free memory of a GPU and read them back; the memory is given back."""
    free = torch.cuda.mem_get_info(device)[0] * 8 // 10 if max_bytes is None else max_bytes
    chunks = [torch.empty(min(CHUNK, free), dtype=torch.uint8, device=device) for _ in range(max(free // CHUNK, 1))]
    for pattern in PATTERNS:
        for chunk in chunks:
            chunk.fill_(pattern)
        wrong = int(torch.stack([(chunk != pattern).sum() for chunk in chunks]).sum())
        if wrong:
            yield f"{wrong} bytes of {len(chunks) * len(chunks[0])} of the device's memory do not hold {pattern:#x}"
    del chunks
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ---- between ranks ---------------------------------------------------------------------------------------------------------


def _link_report(layout: Layout) -> _Report:
    """An all-gather, which shows whose part is wrong, and an all-reduce, over all ranks."""
    size = max(min(PART, 2**24 // layout.n_ranks), 2**10)
    mine = known_part(layout.rank, size, layout.device)
    parts = [torch.empty_like(mine) for _ in range(layout.n_ranks)]
    dist.all_gather(parts, mine)
    answers = [known_part(rank, size, layout.device) for rank in range(layout.n_ranks)]
    bad = [rank for rank, part in enumerate(parts) if not torch.equal(part, answers[rank])]
    dist.all_reduce(mine)
    wrong = int((mine != torch.stack(answers).sum(0)).sum())
    problems = [f"an all-gather brought wrong values from rank {', '.join(map(str, bad))}"] if bad else []
    if wrong:
        problems.append(f"an all-reduce over {layout.n_ranks} ranks is wrong in {wrong} of {size} places")
    return _Report(layout.rank, node_name(), problems, bad)


def known_part(rank: int, size: int, device: torch.device) -> Tensor:
    """What `rank` contributes: small integers in float32, whose sum over ranks is exact in any order."""
    return (torch.arange(size, device=device) * (rank + 1) % 251 + rank % 7).float()
