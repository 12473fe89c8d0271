"""Why the CPU kernels are as they are: each choice timed against what it replaced, in one run.

    python benchmarks/cpu_choices.py [--repeats 15]

Prints medians and ratios; docs/performance.md quotes them.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not benchmarks/, whose profile.py would hide Python's own

import torch
from torch.nn import functional as F

from olmo_train.kernels import cross_entropy, experts, moe_mlp
from olmo_train.kernels.cpu_threads import run_each

TOKENS, D, F_EXPERT, EXPERTS, TOP_K, VOCAB = 4096, 256, 128, 16, 4, 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--memory", choices=["kept", "returned"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        page_faults(args.memory == "kept")
        return
    torch.manual_seed(0)
    gather_sum(args.repeats)
    for shape in ((D, F_EXPERT, EXPERTS, TOP_K), (128, 64, 64, 8)):
        expert_mlp(args.repeats, *shape)
    losses(args.repeats)
    for setting in ("returned", "kept"):
        subprocess.run([sys.executable, __file__, "--memory", setting], check=True)


def compare(title: str, old: tuple[str, Callable[[], object]], new: tuple[str, Callable[[], object]], repeats: int) -> None:
    """Time two ways in turn, A B A B."""
    times: dict[str, list[float]] = {old[0]: [], new[0]: []}
    for number in range(repeats + 3):
        for name, work in (old, new):
            begin = time.perf_counter()
            work()
            if number >= 3:
                times[name].append(time.perf_counter() - begin)
    a, b = median(times[old[0]]), median(times[new[0]])
    print(f"{title}: {old[0]} {1000 * a:.2f} ms, {new[0]} {1000 * b:.2f} ms, ratio {a / b:.1f}")


def gather_sum(repeats: int) -> None:
    """Adding up the TOP_K weighted rows of each token."""
    y_SD, slots_NK = torch.randn(TOKENS * TOP_K, D), torch.randperm(TOKENS * TOP_K).view(TOKENS, TOP_K)
    weights_NK = torch.rand(TOKENS, TOP_K)

    def plain() -> torch.Tensor:
        y_NKD = y_SD.index_select(0, slots_NK.reshape(-1)).view(TOKENS, TOP_K, D)
        return (y_NKD * weights_NK[..., None]).sum(1)

    def bag() -> torch.Tensor:
        return F.embedding_bag(slots_NK, y_SD, mode="sum", per_sample_weights=weights_NK)

    compare("weighted sum of each token's experts", ("index_select and sum", plain), ("embedding_bag", bag), repeats)


def expert_mlp(repeats: int, d: int, d_expert: int, n_experts: int, top_k: int) -> None:
    """The expert MLP; with an expert per thread, or its matmuls split over all threads."""
    w_in = (torch.randn(n_experts, 2 * d_expert, d) * 0.02).requires_grad_()
    w_out = (torch.randn(n_experts, d, d_expert) * 0.02).requires_grad_()
    x_ND = torch.randn(TOKENS, d, requires_grad=True)
    gates, ids = torch.rand(TOKENS, n_experts).topk(top_k)

    def split(work: Callable[[object], None], items: Sequence[object]) -> None:
        with torch.no_grad():
            for item in items:
                work(item)

    def with_split() -> None:
        experts.run_each = split
        step("loop")
        experts.run_each = run_each

    def step(backend: str) -> None:
        moe_mlp.moe_mlp(x_ND, w_in, w_out, gates, ids, backend)[0].sum().backward()

    title = f"expert MLP, top {top_k} of {n_experts} experts of width {d_expert}, forward and backward"
    compare(title, ("threads share each expert", with_split), ("an expert per thread", lambda: step("loop")), repeats)
    compare(title, ("grouped_mm", lambda: step("grouped_mm")), ("loop", lambda: step("loop")), repeats)
    compare(title, ("reference", lambda: step("reference")), ("loop", lambda: step("loop")), repeats)


def losses(repeats: int) -> None:
    x = torch.randn(TOKENS, D, requires_grad=True)
    w = (torch.randn(VOCAB, D) * 0.02).requires_grad_()
    labels = torch.randint(VOCAB, (TOKENS,))
    compare(
        f"output projection and cross entropy over {VOCAB} ids, forward and backward",
        ("torch", lambda: F.cross_entropy(x @ w.T, labels, reduction="sum").backward()),
        ("chunked", lambda: cross_entropy.linear_cross_entropy(x, w, labels, 0.0, "chunked")[0].backward()),
        repeats,
    )
    usual = cross_entropy.CHUNK_ELEMENTS["cpu"]
    times: dict[int, list[float]] = {2**power: [] for power in (19, 20, 21, 22, 23)}
    for _ in range(repeats):
        for size, taken in times.items():
            cross_entropy.CHUNK_ELEMENTS["cpu"] = size
            begin = time.perf_counter()
            cross_entropy.linear_cross_entropy(x, w, labels, 0.0, "chunked")[0].backward()
            taken.append(time.perf_counter() - begin)
    cross_entropy.CHUNK_ELEMENTS["cpu"] = usual
    print("logits held at once: " + ", ".join(f"{size:,}: {1000 * median(taken):.0f} ms" for size, taken in times.items()))


def page_faults(kept: bool) -> None:
    """Page faults and system time of activations that come and go, in a fresh process."""
    from olmo_train.parallel.memory import keep_freed_memory

    if kept:
        keep_freed_memory()
    x = torch.randn(8, 512, D)
    layers = [torch.nn.Linear(D, 4 * D) for _ in range(8)]

    def work() -> None:
        torch.stack([layer(x).square().sum() for layer in layers]).sum().backward()

    for _ in range(3):
        work()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(10):
        work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults, system = (after.ru_minflt - before.ru_minflt) / 10, (after.ru_stime - before.ru_stime) / 10
    wall = (time.perf_counter() - began) / 10
    print(
        f"freed memory {'kept' if kept else 'returned'}: {faults:,.0f} page faults, {system:.3f} s system, "
        f"{wall:.3f} s wall a step"
    )


if __name__ == "__main__":
    main()
