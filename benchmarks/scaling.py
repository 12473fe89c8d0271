"""Tokens per second and rank of the trainer's own step, on the ranks that there are: weak scaling, a line of JSON per run.

    python -m benchmarks.scaling --out scaling.jsonl                                       (one rank)
    torchrun --nproc-per-node 8 -m benchmarks.scaling --out scaling.jsonl [--micro-steps 4] [name=value of the config ...]
    sbatch --nodes 4 benchmarks/scaling.sbatch                                             (srun sets the same environment)

Work per rank is the same however many there are: --micro-steps micro-batches of random tokens. The step is that of `olmo train`
(FSDP2 mesh, collectives, guard, clipping, update); reading data, saving and evaluation are left out.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.measure import Clock, default_device, describe_machine
from benchmarks.workload import compose, load, open_loader, write_corpus
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import IGNORE, Rows
from olmo_train.metrics import PhaseTimer
from olmo_train.model.size import flops_per_token
from olmo_train.parallel.mesh import Layout, init_distributed, world
from olmo_train.problems import find_problems
from olmo_train.train import build
from olmo_train.train_step import TrainStep


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and let rank 0 print and append the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file to append the line to")
    parser.add_argument("--micro-steps", type=int, default=1, help="micro-batches of a rank in one optimizer step")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the counted ones")
    parser.add_argument("--steps", type=int, default=20, help="counted steps")
    args, overrides = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        config = [
            *compose(default_device().type == "cuda", overrides),
            f"run_dir={folder}/run",
            f"data.sources.demo.path={folder}/shards",
        ]
        few = f"data.global_batch_size={load(config).data.micro_batch_size}"
        write_corpus(Path(folder) / "shards", [*config, few], 1)  # each rank its own: for the order that `build` describes
        run = weak(load(config), args.micro_steps, world()[1])
        problems = find_problems(run, world()[1])
        if problems:
            raise SystemExit("\n".join(problems))
        line, is_main = measure(run, config, (args.warmup, args.steps))
    if is_main:
        text = json.dumps(line)
        print(text)
        if args.out is not None:
            with args.out.open("a") as stream:
                stream.write(text + "\n")


def weak(run: TrainConfig, micro_steps: int, n_ranks: int) -> TrainConfig:
    """The run with a global batch of so many micro-batches for each rank."""
    return replace(run, data=replace(run.data, global_batch_size=run.data.micro_batch_size * micro_steps * n_ranks))


def measure(run: TrainConfig, config: Sequence[str], steps: tuple[int, int]) -> tuple[dict[str, Any], bool]:
    """(the line, whether this is rank 0). `steps`: before the counted ones, and counted."""
    layout = init_distributed(run.parallel)
    step = _build(run, layout, config)
    rows = random_rows(run, layout)
    clock, warmup, counted = Clock(layout.device), *steps
    for number in range(warmup + counted):
        if number == warmup:
            if layout.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            dist.barrier(group=layout.control)
            clock.mark()
        result = step(rows, 1e-4, PhaseTimer(layout.device))
        if number >= warmup:
            clock.mark()
    seconds = torch.tensor(clock.seconds(), dtype=torch.float64)
    dist.all_reduce(seconds, dist.ReduceOp.MAX, group=layout.control)  # a step takes as long as on the slowest rank
    tokens = run.data.global_batch_size // layout.n_ranks
    rate = tokens / median(seconds.tolist())
    step_s = {"median": median(seconds.tolist()), "min": float(seconds.min()), "max": float(seconds.max()), "steps": counted}
    line = {
        "n_ranks": layout.n_ranks, "mesh": dict(zip(layout.mesh.mesh_dim_names or (), layout.mesh.shape, strict=True)),
        "tokens_per_s_per_rank": rate, "flops_per_s_per_rank": rate * flops_per_token(run.model, run.data.seq_len),
        "step_s": step_s,
        "tokens_per_rank": tokens, "global_batch_size": run.data.global_batch_size,
        "micro_batch_size": run.data.micro_batch_size, "loss": float(result.loss),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if layout.device.type == "cuda" else None,
        "config": [word for word in config if not word.startswith(("run_dir", "data.sources"))],
        "nodes": os.environ.get("SLURM_JOB_NUM_NODES"), **describe_machine(layout.device),
    }  # fmt: skip
    dist.destroy_process_group()
    return line, layout.is_main


def _build(run: TrainConfig, layout: Layout, config: Sequence[str]) -> TrainStep:
    """The trainer's step with random weights."""
    few = load([*config, f"data.global_batch_size={run.data.micro_batch_size}"])
    live = build(run, layout, open_loader(few).order)
    for weight in live.weights.values():
        weight.fill(torch.randn(weight.tensor.shape, device=layout.device).mul_(0.02))
    return TrainStep(live.model, live.optimizer, live.guard, layout, run)


def random_rows(run: TrainConfig, layout: Layout) -> Rows:
    """This rank's share of a global batch."""
    data = run.data
    shape = (data.global_batch_size // data.seq_len // layout.n_ranks, data.seq_len)
    ids = np.random.default_rng(layout.rank).integers(0, run.model.vocab_size, shape)
    labels = np.concatenate([ids[:, 1:], np.full((shape[0], 1), IGNORE)], 1)
    documents = np.zeros(shape, np.int32) if data.document_masking else None
    return Rows(ids, labels, documents, np.zeros(shape[0], bool))


if __name__ == "__main__":
    main()
