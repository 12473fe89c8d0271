"""Which rank the others wait for: each rank's time inside collectives, compared once per interval."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from olmo_train.attempt import node_name
from olmo_train.parallel.collectives import gather_to_all
from olmo_train.parallel.mesh import Layout

LEAST_EXCESS_S = 0.5
"""In an interval: a rank that is slower by less is not worth a warning, whatever part of tiny steps it may be."""


class CollectiveClock:
    """Seconds that this rank spends inside collectives of training steps: waiting for others, and moving data.

    On a CPU (gloo) by the wall clock, because a collective returns when it is done; on a GPU by events around it, on the stream
    where it runs. FSDP2's own collectives are timed by putting ours in the place of its default ones, which they call.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._pairs: list[tuple[Any, Any]] = []
        self._mark: Any = None
        self._is_on = True

    @contextmanager
    def inside(self, on_host: bool = False) -> Iterator[None]:
        """Count the time of the block, which does nothing but collectives; `on_host`: those of the CPU, whatever the device."""
        begin = time.perf_counter() if on_host else self._now()
        yield
        self._count(begin)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Count nothing in the block: collectives of an evaluation or of a save."""
        before, self._is_on = self._is_on, False
        yield
        self._is_on = before

    def install(self, model: nn.Module, has_replicas: bool, see_block: Callable[[Tensor], None] | None) -> None:
        """Time the collectives of every FSDP2 module of `model`.

        `see_block`: the all-reduce hook that is there already, called as before.
        """
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_all_gather(_AllGather(self))
                module.set_custom_reduce_scatter(_ReduceScatter(self))
                if has_replicas:  # the all-reduce over replicas has no place of its own: it ends where its hook is called
                    module.set_all_reduce_hook(self._after_all_reduce(see_block))

    def read(self) -> float:
        """Seconds since the last reading; synchronises a GPU."""
        if self._pairs:
            torch.cuda.synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._pairs) / 1000
            self._pairs.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def mark(self) -> None:
        """A reduction is about to begin."""
        self._mark = self._now()

    def _after_all_reduce(self, see_block: Callable[[Tensor], None] | None) -> Callable[[Tensor], None]:
        def hook(reduced: Tensor) -> None:
            self._count(self._mark)
            if see_block is not None:
                see_block(reduced)

        return hook

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _count(self, begin: Any) -> None:
        if not self._is_on:
            return
        if isinstance(begin, float):
            self._seconds += time.perf_counter() - begin
        else:
            self._pairs.append((begin, self._now()))


class _AllGather(DefaultAllGather):
    def __init__(self, clock: CollectiveClock) -> None:
        super().__init__()
        self._clock = clock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._clock.inside():
            return super().__call__(*args, **kwargs)


class _ReduceScatter(DefaultReduceScatter):
    def __init__(self, clock: CollectiveClock) -> None:
        super().__init__()
        self._clock = clock

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        self._clock.mark()  # the last allocation of a reduction is its result, on the stream that will reduce
        return super().allocate(size, dtype=dtype, device=device)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._clock.inside():
            work = super().__call__(*args, **kwargs)
        self._clock.mark()
        return work


def inside(clock: CollectiveClock | None, on_host: bool = False) -> AbstractContextManager[None]:
    """`clock.inside()`, or nothing without a clock."""
    return nullcontext() if clock is None else clock.inside(on_host)


@dataclass(frozen=True)
class RankTimes:
    """One rank's seconds in an interval."""

    node: str
    steps_s: float
    """Wall time of its steps, evaluation and saves not counted."""
    collectives_s: float
    data_s: float
    """Waiting for the loader."""


def gather_times(layout: Layout, steps_s: float, collectives_s: float, data_s: float) -> list[RankTimes]:
    """Every rank's times, in rank order; a collective."""
    return gather_to_all(layout, RankTimes(node_name(), steps_s, collectives_s, data_s))


def compare(ranks: list[RankTimes], n_steps: int, straggler_frac: float) -> tuple[dict[str, Any], str | None]:
    """What metrics.jsonl says of the ranks of an interval, and a warning if one of them holds up the others.

    All ranks take the same time for a step, because they wait for each other. Who is last waits least: collectives take it only
    as long as moving the data does. What a rank spends in them beyond that is waiting; the rest of the step is its own work.
    """
    moving_s = min(rank.collectives_s for rank in ranks)
    own = [(rank.steps_s - (rank.collectives_s - moving_s)) / n_steps for rank in ranks]
    slowest = max(range(len(ranks)), key=own.__getitem__)
    excess = own[slowest] / max(median_low(own), 1e-9) - 1
    values: dict[str, Any] = {
        "own_s": _spread(own),
        "collectives_s": _spread([rank.collectives_s / n_steps for rank in ranks]),
        "data_s": _spread([rank.data_s / n_steps for rank in ranks]),
        "slowest": {"rank": slowest, "node": ranks[slowest].node, "excess": round(excess, 4)},
    }
    if excess <= straggler_frac or (own[slowest] - median_low(own)) * n_steps < LEAST_EXCESS_S:
        return values, None
    values["straggler"] = slowest
    data = ranks[slowest].data_s / n_steps
    return values, (
        f"rank {slowest} on node {ranks[slowest].node} holds up the others: its own work takes {own[slowest]:.3f} s a step "
        f"({data:.3f} s of it waiting for data), the median rank's {median_low(own):.3f} s"
    )


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": round(min(values), 6), "median": round(median_low(values), 6), "max": round(max(values), 6)}
