"""What watching the hardware costs, in training steps: the health check, timing of collectives, comparing replicas, a replay.

    torchrun --nproc-per-node 2 -m benchmarks.checkups parallel.shard_size=1 [--micro-steps 4] [--out FILE] [name=value ...]

One line of JSON by rank 0. Times are medians of the slowest rank's. The timing of collectives is so cheap that the difference of
two runs is noise: it is the number of timed collectives in a step times the cost of timing an empty block.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.measure import default_device, describe_machine, synchronize
from benchmarks.scaling import random_rows, weak
from benchmarks.workload import compose, load, open_loader, write_corpus
from olmo_train.config.faults import FaultsConfig
from olmo_train.config.train import TrainConfig
from olmo_train.metrics import PhaseTimer
from olmo_train.parallel.health import check_health
from olmo_train.parallel.mesh import Layout, init_distributed, world
from olmo_train.parallel.replay import check_replay
from olmo_train.parallel.replicas import check_replicas
from olmo_train.parallel.stragglers import CollectiveClock, compare, gather_times
from olmo_train.problems import find_problems
from olmo_train.train import build, draw_weights
from olmo_train.train_step import TrainStep

EMPTY_BLOCKS = 1000


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and let rank 0 print and append the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file to append the line to")
    parser.add_argument("--steps", type=int, default=5, help="times that each thing is done, after once before")
    parser.add_argument("--micro-steps", type=int, default=4, help="micro-batches of a rank in one optimizer step")
    args, overrides = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        places = [f"run_dir={folder}/run", f"data.sources.demo.path={folder}/shards"]
        config = [*compose(default_device().type == "cuda", overrides), *places]
        run = load(config)
        few = [*config, f"data.global_batch_size={run.data.micro_batch_size}"]
        write_corpus(Path(folder) / "shards", few, 1)  # each rank its own: for the order that `build` describes
        run = weak(run, args.micro_steps, world()[1])
        problems = find_problems(run, world()[1])
        if problems:
            raise SystemExit("\n".join(problems))
        line, is_main = measure(run, few, args.steps)
    if is_main:
        print(json.dumps(line))
        if args.out is not None:
            with args.out.open("a") as stream:
                stream.write(json.dumps(line) + "\n")


def measure(run: TrainConfig, config: Sequence[str], times: int) -> tuple[dict[str, Any], bool]:
    """(the line, whether this is rank 0)."""
    layout = init_distributed(run.parallel)
    live = build(run, layout, open_loader(load(config)).order)
    draw_weights(run, live)
    clock = _CountingClock(layout.device)
    step, rows = TrainStep(live.model, live.optimizer, live.guard, layout, run, clock), random_rows(run, layout)
    embedding = live.model.embedding
    tensors = {**{name: weight.tensor for name, weight in live.weights.items()}, **live.optimizer.moments()}
    seconds = {
        "health check": _seconds(layout, times, lambda: check_health(layout, FaultsConfig())),
        "step": _seconds(layout, times, lambda: step(rows, 1e-4, PhaseTimer(layout.device))),
        "replay": _seconds(layout, times, lambda: check_replay(layout, embedding, lambda: step.rehearse(rows), 0.0, 1)),
        "comparing ranks": _seconds(layout, times, lambda: compare(gather_times(layout, 1.0, 0.5, 0.0), 1, 0.2)),
    }
    if layout.has_replicas:
        seconds["replicas"] = _seconds(layout, times, lambda: check_replicas(layout, tensors, ""))
    clock.n_counted = 0
    step(rows, 1e-4, PhaseTimer(layout.device))
    n_counted = clock.n_counted
    seconds["timing a step's collectives"] = n_counted * _empty_block_s(clock)
    line = {
        "n_ranks": layout.n_ranks, "mesh": dict(zip(layout.mesh.mesh_dim_names or (), layout.mesh.shape, strict=True)),
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        "over_step": {name: round(value / seconds["step"], 5) for name, value in seconds.items()},
        "timed_collectives": n_counted, "parameters": sum(p.numel() for p in live.model.parameters()),
        "micro_steps": run.data.global_batch_size // (run.data.micro_batch_size * layout.n_ranks),
        "bytes_compared": sum(t.numel() * t.itemsize for t in tensors.values()),
        "config": [word for word in config if not word.startswith(("run_dir", "data.sources"))],
        **describe_machine(layout.device),
    }  # fmt: skip
    dist.destroy_process_group()
    return line, layout.is_main


class _CountingClock(CollectiveClock):
    """Knows how many collectives it timed."""

    n_counted = 0

    def _count(self, begin: Any) -> None:
        self.n_counted += 1
        super()._count(begin)


def _seconds(layout: Layout, times: int, work: Callable[[], object]) -> float:
    """Median over `times` of what the slowest rank takes, after doing it once."""
    found = []
    for _ in range(times + 1):
        dist.barrier(group=layout.control)
        begin = time.perf_counter()
        work()
        synchronize(layout.device)
        found.append(time.perf_counter() - begin)
    slowest = torch.tensor(found[1:], dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=layout.control)
    return median(slowest.tolist())


def _empty_block_s(clock: CollectiveClock) -> float:
    begin = time.perf_counter()
    for _ in range(EMPTY_BLOCKS):
        with clock.inside():
            pass
    return (time.perf_counter() - begin) / EMPTY_BLOCKS


if __name__ == "__main__":
    main()
