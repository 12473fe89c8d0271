"""Training throughput on a CPU: this trainer against transformers' OlmoeForCausalLM, on the same weights and batches.

    python benchmarks/cpu_vs_transformers.py [--steps 30] [--threads N] [name=value of the training config ...]

The model is OLMoE at an eighth of its width and a quarter of its depth, with its own routing: 64 experts, top 8.

Each side is a process of its own (so neither lives with the other's memory settings or threads), and they take turns step by
step, so that a machine whose speed drifts drifts for both. Ours is the trainer's own step: loader, guard, metrics sums.
Theirs is the usual loop: OlmoeForCausalLM with sdpa attention and grouped_mm experts, loss, clip_grad_norm_, fused AdamW. Both
without auxiliary losses, which transformers defines differently, so that the two loss curves must be one. Needs the `dev` extra.
"""

import argparse
import multiprocessing as mp
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not benchmarks/, whose profile.py would hide Python's own

from benchmarks.workload import load, open_loader, rate, write_corpus

DEFAULTS = [
    "run_name=benchmark", "model=tiny_moe", "model.d_model=256", "model.moe.d_expert=128", "model.moe.n_experts=64",
    "model.moe.top_k=8", "model.vocab_size=8192", "model.init_std=0.02", "data.seq_len=512", "data.global_batch_size=4096",
    "data.micro_batch_size=4096", "data.repetition_mask=null", "model.moe.load_balancing_loss_weight=0",
    "model.moe.router_z_loss_weight=0", "optim.lr=1e-3", "optim.no_decay=[]", "optim.skip=null",
    "optim.schedule={kind: constant, warmup_tokens: 40960}", "eval.eval_every=null",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="counted steps of each side")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args, overrides = parser.parse_known_args()
    total = args.warmup + args.steps
    with tempfile.TemporaryDirectory() as folder:
        words = {word.split("=", 1)[0]: word for word in [*DEFAULTS, *overrides]}
        ours_alone = [f"data.sources.demo.path={folder}/shards", f"run_dir={folder}/run", "max_tokens=1_000_000_000"]
        config = [*words.values(), *ours_alone, f"parallel.threads_per_rank={args.threads}"]
        write_corpus(Path(folder) / "shards", config, total)
        sides = {name: start(side, config, args.threads) for name, side in (("ours", ours), ("transformers", theirs))}
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for step in range(1, total + 1):
            for name, side in sides.items():
                side.send(step)
                results[name].append(side.recv())
        for side in sides.values():
            side.send(None)
    report(results, args.warmup, config)


def report(results: dict[str, list[tuple[float, float]]], warmup: int, config: list[str]) -> None:
    """Medians, the ratio step by step, and both loss curves."""
    run = load(config)
    tokens = run.data.global_batch_size
    print(" ".join(word for word in config if not word.startswith(("run_dir", "data.sources", "max_tokens"))))
    for name, steps in results.items():
        print(
            f"{name:<13}{tokens / median(s for s, _ in steps[warmup:]):>10,.0f} tokens/s (median of {len(steps) - warmup} steps)"
        )
    pairs = list(zip(results["ours"][warmup:], results["transformers"][warmup:], strict=True))
    ratios = sorted(their[0] / our[0] for our, their in pairs)
    print(f"ratio ours / transformers, pair by pair: median {median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}")
    print("loss   step        ours  transformers")
    losses = [(a[1], b[1]) for a, b in zip(results["ours"], results["transformers"], strict=True)]
    for step in range(1, len(losses) + 1):
        if step in (1, 2, 5) or step % 10 == 0 or step == len(losses):
            print(f"{step:>11}{losses[step - 1][0]:>12.5f}{losses[step - 1][1]:>14.5f}")
    print(f"largest difference of a step: {max(abs(a - b) for a, b in losses):.1e} nats")


# ---- the two sides, each in its own process --------------------------------------------------------------------------------


def start(side: Callable[..., Iterator[float]], config: list[str], threads: int) -> Connection:
    context = mp.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=serve, args=(there, side, config, threads), daemon=True).start()
    return here


def serve(connection: Connection, side: Callable[..., Iterator[float]], config: list[str], threads: int) -> None:
    """Take a step whenever asked; answer (seconds, loss)."""
    stepper = side(config, threads)
    while connection.recv() is not None:
        begin = time.perf_counter()
        loss = next(stepper)
        connection.send((time.perf_counter() - begin, loss))


def ours(config: list[str], threads: int) -> Iterator[float]:
    from olmo_train.parallel.memory import keep_freed_memory

    keep_freed_memory()
    from olmo_train.metrics import PhaseTimer
    from olmo_train.parallel.mesh import init_distributed
    from olmo_train.train import build, draw_weights
    from olmo_train.train_step import TrainStep

    run = load(config)
    layout = init_distributed(run.parallel)
    loader = open_loader(run)
    live = build(run, layout, loader.order)
    draw_weights(run, live)
    step = TrainStep(live.model, live.optimizer, live.guard, layout, run)
    for number, rows in loader.steps(1, 10**6):
        yield float(step(rows, rate(run, number), PhaseTimer(layout.device)).loss)


def theirs(config: list[str], threads: int) -> Iterator[float]:
    import torch
    import transformers

    from checkpoints.hf_names import hf_config, to_hf
    from olmo_train.model.init import initial_rows
    from olmo_train.model.shapes import param_shapes

    torch.set_num_threads(threads)
    run = load(config)
    values = {
        **hf_config(run.model, run.data.seq_len),
        "pad_token_id": None,
        "eos_token_id": 0,
        "output_router_logits": False,
        "use_cache": False,
    }
    settings = transformers.OlmoeConfig(**values)
    model = transformers.OlmoeForCausalLM._from_config(
        settings, attn_implementation="sdpa", experts_implementation="grouped_mm", dtype=torch.float32
    )
    assert model.config._experts_implementation == "grouped_mm", model.config._experts_implementation
    assert model.config._attn_implementation == "sdpa", model.config._attn_implementation
    initial = {s.name: initial_rows(s, run.model, run.seed, (0, s.shape[0])) for s in param_shapes(run.model)}
    model.load_state_dict(to_hf(initial, run.model, "module"))
    model.train()
    o = run.optim
    optimizer = torch.optim.AdamW(model.parameters(), o.lr or 0.0, (o.beta1, o.beta2), o.eps, o.weight_decay, fused=True)
    for number, rows in open_loader(run).steps(1, 10**6):
        for group in optimizer.param_groups:
            group["lr"] = rate(run, number)
        total = 0.0
        micro = run.data.micro_batch_size // run.data.seq_len
        parts = len(rows.ids) // micro
        for i in range(parts):
            ids = torch.from_numpy(rows.ids[i * micro : (i + 1) * micro])
            loss = model(input_ids=ids, labels=ids).loss / parts
            loss.backward()
            total += loss.detach()
        if o.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), o.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield float(total)


if __name__ == "__main__":
    main()
