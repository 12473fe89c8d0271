"""Optimizer recipes on a small mixture of experts: loss curves beside float32's, bytes held, and Muon against AdamW, both tuned.

    python -m benchmarks.optimizers recipes [--steps 300] [name=value of the training config ...]
    python -m benchmarks.optimizers muon [--steps 300] [--lrs 1e-3,2e-3,...] [--muon-lrs ...] [name=value ...]

Every run takes the trainer's own steps (loader, guard, clipping) on the same batches from the same initial weights, on the
corpus of benchmarks/workload.py unless data.sources.demo.path is given. Losses are of tokens never seen before, averaged over the
steps since the line above. All compute in float32 on a CPU, which has no fast bfloat16 products: only what
is stored differs.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from benchmarks.workload import load, merge, open_loader, rate, write_corpus
from olmo_train.metrics import PhaseTimer
from olmo_train.optim.build import Optimizer
from olmo_train.parallel.memory import keep_freed_memory
from olmo_train.parallel.mesh import Layout, init_distributed
from olmo_train.train import build, draw_weights
from olmo_train.train_step import TrainStep

WORK = [
    "run_name=benchmark", "model=tiny_moe", "model.d_model=128", "model.n_layers=4", "model.vocab_size=2048",
    "model.moe.n_experts=16", "model.moe.top_k=4", "model.moe.d_expert=64", "data=demo", "data.repetition_mask=null",
    "data.seq_len=128", "data.global_batch_size=4096", "data.micro_batch_size=1024", "optim.lr=4e-3", "optim.skip=null",
    "eval.eval_every=null",
]  # fmt: skip
BF16 = ["optim.weight_dtype=bfloat16", "optim.moment_dtype=bfloat16"]
RECIPES = {
    "fp32 weights, fp32 moments": [],
    "fp32 weights, bf16 moments": ["optim.moment_dtype=bfloat16"],
    "fp32 weights, int8 moments": ["optim.moment_dtype=int8"],
    "bf16 weights, bf16 moments": BF16,
    "bf16 weights, bf16 moments, bf16 gradients": [*BF16, "optim.grad_dtype=bfloat16"],
    "bf16 weights, int8 moments": [BF16[0], "optim.moment_dtype=int8"],
    "Muon, fp32 weights, fp32 momentum": ["optim.muon={}"],
    "Muon, bf16 weights, bf16 momentum": [*BF16, "optim.muon={}"],
    "fp32 weights, fp32 moments, another seed": ["seed=1"],
}


@dataclass
class Watched:
    """An optimizer whose gradients are weighed on the way in."""

    optimizer: Optimizer
    grad_bytes: int = 0

    def step(self, grads: Mapping[str, Tensor], lr: float, grad_scale: Tensor, skip: Tensor) -> None:
        self.grad_bytes = sum(grad.nbytes for grad in grads.values())
        self.optimizer.step(grads, lr, grad_scale, skip)


@dataclass
class Curve:
    """What a run left."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """From the start to the end of each step, compilation and corpus excluded."""
    bytes_per_param: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Weights as they are updated (not a copy of another dtype to compute with), gradients after the last micro-step, moments."""

    @property
    def end(self) -> float:
        """Mean loss of the last tenth."""
        return mean(self.losses[-max(1, len(self.losses) // 10) :])

    def smooth(self) -> list[float]:
        """Mean of a tenth of the run up to each step."""
        width = max(1, len(self.losses) // 10)
        return [mean(self.losses[max(0, i + 1 - width) : i + 1]) for i in range(len(self.losses))]

    def reaches(self, loss: float) -> int | None:
        """The first step by which the smoothed loss is down to `loss`."""
        return next((i for i, value in enumerate(self.smooth()) if value <= loss), None)


def run(words: list[str], layout: Layout, steps: int) -> Curve:
    """Train from the seed's initial weights."""
    config = load(words)
    loader = open_loader(config)
    live = build(config, layout, loader.order)
    draw_weights(config, live)
    step = TrainStep(live.model, live.optimizer, live.guard, layout, config)
    watched = Watched(live.optimizer)
    step.optimizer = watched  # type: ignore[assignment]
    curve, spent = Curve(), 0.0
    for number, rows in loader.steps(1, steps):
        begin = time.perf_counter()
        curve.losses.append(float(step(rows, rate(config, number), PhaseTimer(layout.device)).loss))
        spent += time.perf_counter() - begin
        curve.seconds.append(spent)
    weights = [weight.tensor for weight in live.weights.values()]
    n = sum(weight.numel() for weight in weights)
    held = sum(weight.nbytes for weight in weights), watched.grad_bytes, sum(m.nbytes for m in live.optimizer.moments().values())
    curve.bytes_per_param = held[0] / n, held[1] / n, held[2] / n
    return curve


# ---- the two comparisons ---------------------------------------------------------------------------------------------------


def compare_recipes(words: list[str], layout: Layout, steps: int) -> None:
    """Each recipe at the same learning rate."""
    curves = {}
    for name, extra in RECIPES.items():
        curves[name] = run(merge(words, extra), layout, steps)
        print(f"done: {name}", flush=True)
    base = curves[next(iter(RECIPES))]
    print_curves(curves)
    print("\n| recipe | bytes per parameter: weights + gradients + moments | last tenth, nats | above fp32 | s per step |")
    print("|---|---|---|---|---|")
    for name, curve in curves.items():
        w, g, m = curve.bytes_per_param
        print(
            f"| {name} | {w:.2f} + {g:.2f} + {m:.2f} = {w + g + m:.2f} | {curve.end:.4f} | {curve.end - base.end:+.4f} "
            f"| {curve.seconds[-1] / len(curve.seconds):.3f} |"
        )


def compare_muon(words: list[str], layout: Layout, steps: int, grids: tuple[list[str], list[str]]) -> None:
    """AdamW and Muon, each at the best of its grid of peak rates (Muon's AdamW part at AdamW's best), on the same tokens."""
    best: dict[str, tuple[str, Curve]] = {}
    for name, grid in zip(("AdamW", "Muon"), grids, strict=True):
        for lr in grid:
            extra = [f"optim.lr={lr}"] if name == "AdamW" else [f"optim.lr={best['AdamW'][0]}", f"optim.muon={{lr: {lr}}}"]
            curve = run(merge(words, extra), layout, steps)
            print(f"{name:<6} lr {lr:<8} last tenth {curve.end:.4f}  {curve.seconds[-1]:.1f} s", flush=True)
            if name not in best or curve.end < best[name][1].end:
                best[name] = lr, curve
        if len(grid) > 2 and best[name][0] in (grid[0], grid[-1]):
            print(f"{name}: the best rate {best[name][0]} is at the edge of its grid; widen it")
    adamw, muon = best["AdamW"][1], best["Muon"][1]
    print_curves({f"{name} lr {lr}": curve for name, (lr, curve) in best.items()})
    slower, faster, names = (adamw, muon, "Muon", ) if muon.end <= adamw.end else (muon, adamw, "AdamW")  # fmt: skip
    at = faster.reaches(slower.end)
    assert at is not None
    seconds = slower.seconds[-1] / len(slower.seconds), faster.seconds[-1] / len(faster.seconds)
    print(f"seconds per step: AdamW {adamw.seconds[-1] / steps:.3f}, Muon {muon.seconds[-1] / steps:.3f}")
    print(
        f"{names} is down to the other's last loss after {at + 1} of {steps} steps: {(at + 1) / steps:.2f} of the tokens, "
        f"{faster.seconds[at] / slower.seconds[-1]:.2f} of the seconds (per step {seconds[1] / seconds[0]:.2f})"
    )


def print_curves(curves: Mapping[str, Curve]) -> None:
    """Mean loss of each tenth of the runs, one column per run."""
    names = list(curves)
    for i, name in enumerate(names):
        print(f"[{i}] {name}")
    print("step     " + "".join(f"{f'[{i}]':>10}" for i in range(len(names))))
    n = len(curves[names[0]].losses)
    width = max(1, n // 10)
    for start in range(0, n - n % width, width):
        print(f"{start + width:<9}" + "".join(f"{mean(curves[name].losses[start : start + width]):>10.4f}" for name in names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("recipes", "muon"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lrs", default="2e-3,4e-3,8e-3,1.6e-2", help="peak rates of AdamW to try")
    parser.add_argument("--muon-lrs", default="2e-3,4e-3,8e-3,1.6e-2", help="peak rates of Muon's matrices to try")
    args, overrides = parser.parse_known_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        own = [f"data.sources.demo.path={folder}/shards", f"run_dir={folder}/run"]
        words = merge([*WORK, *own], overrides)
        batch = load(words).data.global_batch_size
        length = args.steps * batch
        schedule = f"optim.schedule={{kind: cosine, warmup_tokens: {length // 20}, final_frac: 0.1}}"
        words = merge([schedule, f"max_tokens={length}"], words)
        if own[0] in words:
            write_corpus(Path(folder) / "shards", words, args.steps)
        layout = init_distributed(load(words).parallel)
        print(f"{args.steps} steps of {batch:,} tokens, {layout.device}, torch {torch.__version__}")
        print(" ".join(word for word in words if not word.startswith(("run_", "data.sources"))))
        if args.what == "recipes":
            compare_recipes(words, layout, args.steps)
        else:
            compare_muon(words, layout, args.steps, (args.lrs.split(","), args.muon_lrs.split(",")))
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
