"""Where the time of a training step goes: kernels grouped by what they are for, against the matmul rate of the same run.

    python benchmarks/profile.py [--settle 8] [--steps 3] [--out profile.json] [--trace trace.json] [name=value ...]

The step is the trainer's own, as in train_step.py, with the same defaults: OLMoE-1B-7B on a GPU, a tiny model on a CPU. Steps are
first timed without the profiler, then recorded with it. The groups' times are the kernels' on a GPU, the operators' own on a CPU;
what is left of the time without the profiler is idle (where kernels overlap, their sum exceeds it). FLOPs of a group follow from
the config; "at matmul rate" is the time they would take at the rate of a bf16 matmul of 8192.

By what rules: benchmarks/op_groups.py. The largest kernels are listed with their group, so that a wrong rule is seen.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this folder would put this file before Python's own profile

from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as record

from benchmarks import op_groups as groups
from benchmarks.measure import (
    Clock,
    answer,
    answer_probe,
    default_device,
    matmul_rate,
    probe,
    run_child,
    short,
    synchronize,
    table,
)
from benchmarks.sides import Side, build_ours
from benchmarks.workload import compose, load, merge, open_loader, rate, recipe_words, rows_to_try, write_corpus
from olmo_train.config.model import ModelConfig
from olmo_train.config.train import TrainConfig
from olmo_train.metrics import PhaseTimer
from olmo_train.model.shapes import d_head as head_width
from olmo_train.model.shapes import moe_of_layer, n_kv_heads, vocab_rows
from olmo_train.model.size import flops_per_token
from olmo_train.schema import load_config
from olmo_train.train import find_all_problems


class LabelledTimer(PhaseTimer):
    """Names the step's phases in the trace too."""

    @contextmanager
    def phase(self, name: str, on_device: bool = True) -> Iterator[None]:
        """As PhaseTimer.phase."""
        with record_function(f"phase:{name}"), super().phase(name, on_device):
            yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settle", type=int, default=8, help="steps before anything is measured")
    parser.add_argument("--steps", type=int, default=3, help="steps recorded, and as many timed without the profiler")
    parser.add_argument("--budget", type=float, default=300, help="seconds for everything")
    parser.add_argument("--out", help="also write the tables as JSON")
    parser.add_argument("--trace", help="keep the trace, for chrome://tracing or Perfetto")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args, overrides = parser.parse_known_args()
    if args.task:
        run_task(json.loads(Path(args.task).read_text()))
        return
    end = time.perf_counter() + args.budget
    with tempfile.TemporaryDirectory() as folder:
        machine = probe(__file__, Path(folder)) | {"command": shlex.join(sys.argv)}
        words = compose(machine["memory_gib"] is not None, overrides)
        words += [f"data.sources.demo.path={folder}/shards", f"run_dir={folder}/run"]
        write_corpus(Path(folder) / "shards", words, args.settle + 2 * args.steps)
        task = {"settle": args.settle, "steps": args.steps, "trace": args.trace or f"{folder}/trace.json"}
        for rows in rows_to_try(words, overrides, machine["memory_gib"], is_peer=False):
            sized = merge(words, [f"data.micro_batch_size={rows * load(words).data.seq_len}"])
            sized = merge(recipe_words(sized, machine["memory_gib"]), sized)
            left = end - time.perf_counter()
            lines, problem = run_child(__file__, task | {"name": f"rows{rows}", "config": sized}, Path(folder), max(left, 20))
            if lines and "out of memory" not in lines[0].get("error", "").lower():
                break
        if not lines or "error" in lines[0]:
            raise SystemExit(f"error: {lines[0]['error'] if lines else problem}")
        result = lines[0] | {"machine": machine, "config": sized}
        print(report(result, load(sized)))
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


def run_task(task: dict[str, Any]) -> None:
    """Be the process that trains (or the probe of the machine), and write the result."""
    if answer_probe(task):
        return
    device = default_device()
    try:
        run = load_config("train", TrainConfig, task["config"], find_all_problems)
        first_rate = matmul_rate(device)
        side = build_ours(run)
        step_s = run_steps(side, run, (task["settle"], task["steps"]), Path(task["trace"]))
        rates = [first_rate, matmul_rate(device)]
        work = groups.read_trace(json.loads(Path(task["trace"]).read_text(), strict=False)["traceEvents"])
        found = summarise(work, run, step_s, task["steps"])
        answer(task, {"facts": side.facts, "step_s": step_s, "matmul_rates": rates, "matmul_flops": max(rates), **found})
    except Exception as error:
        answer(task, {"error": short(error)})
        raise


def run_steps(side: Side, run: TrainConfig, counts: tuple[int, int], trace: Path) -> float:
    """Settle, time some steps, then record as many to `trace`; return the median seconds of a step without the profiler."""
    settle, steps = counts
    device = default_device()
    batches = open_loader(run).steps(1, 10**6)

    def step() -> None:
        number, rows = next(batches)
        side.step(rows, rate(run, number), LabelledTimer(device))

    for _ in range(settle):
        step()
    clock = Clock(device)
    synchronize(device)
    clock.mark()
    for _ in range(steps):
        step()
        clock.mark()
    step_s = median(clock.seconds())
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with record(activities=activities, record_shapes=True) as recorded:
        for _ in range(steps):
            step()
        synchronize(device)
    recorded.export_chrome_trace(str(trace))
    return step_s


def group_flops(model: ModelConfig, seq_len: int) -> dict[str, float]:
    """Training FLOPs per token of the groups whose FLOPs are counted; with the router's they add up to flops_per_token."""
    d, c = model.d_model, head_width(model)
    out = {groups.LOSS_MATMUL: 6.0 * vocab_rows(model) * d, groups.PROJECTIONS: 0.0, groups.EXPERTS: 0.0, groups.ROUTER: 0.0}
    for layer in range(model.n_layers):
        out[groups.PROJECTIONS] += 6.0 * d * c * (2 * model.n_heads + 2 * n_kv_heads(model))
        moe = moe_of_layer(model, layer)
        if moe is None:
            out[groups.PROJECTIONS] += 18.0 * d * (model.d_ff or 0)
        else:
            out[groups.EXPERTS] += 18.0 * d * moe.d_expert * moe.top_k
            out[groups.PROJECTIONS] += 18.0 * d * moe.d_expert * moe.n_shared_experts
            out[groups.ROUTER] += 6.0 * d * moe.n_experts
    out[groups.ATTENTION] = flops_per_token(model, seq_len) - sum(out.values())
    return out


def summarise(work: Sequence[groups.Work], run: TrainConfig, step_s: float, n_steps: int) -> dict[str, Any]:
    """Seconds per step by group, FLOPs per step by group, the largest kernels, and how long anything ran at all."""
    moe = run.model.moe
    sizes = groups.Sizes(vocab_rows(run.model), -1 if moe is None else moe.n_experts)
    seconds: defaultdict[str, float] = defaultdict(float)
    names: defaultdict[tuple[str, str], float] = defaultdict(float)
    calls: Counter[tuple[str, str]] = Counter()
    for piece in work:
        group = groups.group_of(piece, sizes)
        spent = piece.duration_us / 1e6 / n_steps
        seconds[group] += spent
        names[group, short(piece.name, 90)] += spent
        calls[group, short(piece.name, 90)] += 1
    busy_s = groups.busy_us(list(work)) / 1e6 / n_steps if any(w.category == "kernel" for w in work) else sum(seconds.values())
    seconds[groups.IDLE] = max(0.0, step_s - busy_s)
    tokens = run.data.global_batch_size
    flops = {name: value * tokens for name, value in group_flops(run.model, run.data.seq_len).items()}
    top = [
        [group, name, spent, calls[group, name] / n_steps]
        for (group, name), spent in sorted(names.items(), key=lambda item: -item[1])[:40]
    ]
    return {"seconds": dict(seconds), "flops": flops, "busy_s": busy_s, "largest": top}


def report(result: dict[str, Any], run: TrainConfig) -> str:
    """The tables."""
    seconds, flops, matmul, step_s = result["seconds"], result["flops"], result["matmul_flops"], result["step_s"]
    rows = []
    for group in groups.ORDER:
        spent = seconds.get(group, 0.0)
        if not spent:
            continue
        known = group in groups.MATMULS and flops.get(group)
        ideal = flops[group] / matmul if known else None
        rows.append([
            group, f"{1000 * spent:.3f}", f"{spent / step_s:.1%}", f"{flops[group] / spent / 1e12:.4g}" if known else "",
            "" if ideal is None else f"{1000 * ideal:.3f}", f"{1000 * (spent - (ideal or 0.0)):.3f}",
        ])  # fmt: skip
    tokens, total = run.data.global_batch_size, sum(flops.values())
    ideal = total / matmul
    largest = [[group, name, f"{1000 * spent:.3f}", f"{n:.4g}"] for group, name, spent, n in result["largest"]]
    facts = "\n".join(f"{name}: {value}" for name, value in result["machine"].items())
    return f"""{facts}

{result["facts"]["kernels"]}; compile {result["facts"]["compile"]}; weights {result["facts"]["weights"]}, moments \
{result["facts"]["moments"]}; micro-batch {run.data.micro_batch_size:,} tokens, step {tokens:,}

{table(["group", "ms a step", "of step", "TFLOP/s", "at matmul rate", "ms beyond"], rows)}

step without the profiler: {1000 * step_s:.3f} ms, {tokens / step_s:,.0f} tokens/s; something runs for \
{1000 * result["busy_s"]:.3f} ms a step
all counted FLOPs at the matmul rate ({matmul / 1e12:.4g} TFLOP/s): {1000 * ideal:.3f} ms, {ideal / step_s:.1%} of the step; \
what the other {1 - ideal / step_s:.1%} are is in the last column

The largest, by name:

{table(["group", "name", "ms a step", "calls a step"], largest)}"""


if __name__ == "__main__":
    main()
