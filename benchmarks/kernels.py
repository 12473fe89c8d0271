"""Every backend of every kernel, and peers' kernels: checked against a float32 reference, then timed, at OLMoE-1B-7B's sizes.

    python benchmarks/kernels.py [--family moe_mlp attention cross_entropy pieces optimizer] [--budget 240] [--out kernels.json]

A row: the relative error |a - b| / |b| of the output and of the worst gradient (inputs rounded to bf16, reference in float32, at
the very size that is timed); median times of forward and of forward and backward; TFLOP/s, and their share of the bf16 matmul
rate measured in the same run (GB/s and the share of the copy rate for what moves memory); the memory it needs beyond its inputs.
FLOPs of forward and backward are three times the forward ones: scores that attention computes again count nothing. A `!` marks an
error beyond 2 %.

Rows run in three processes of their own, started again without the row at which one crashed or hung. On a CPU: tiny, in float32.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not benchmarks/, whose profile.py would hide Python's own

import torch
from torch import Tensor

from benchmarks.kernel_cases import FAMILIES, TINY, Case, Problem, Sizes, cases, compute_dtype, draw
from benchmarks.measure import (
    answer,
    copy_rate,
    default_device,
    describe_machine,
    matmul_rate,
    median_seconds,
    run_child,
    short,
    table,
)

GROUPS = (("moe_mlp",), ("attention",), ("cross_entropy", "pieces", "optimizer"))
"""Families that share a process, which takes some seconds to start."""
SHARE = {"moe_mlp": 0.4, "attention": 0.25, "cross_entropy": 0.2, "pieces": 0.1, "optimizer": 0.05}
TOLERANCE = 0.02
"""Relative error beyond which a row is marked: bf16 rounds to 0.4 %, and gradients pass through it several times."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--budget", type=float, default=240, help="seconds for everything; rows left over are named")
    parser.add_argument("--out", help="also write everything as JSON")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        run_families(json.loads(Path(args.task).read_text()))
        return
    until = deadlines(args.family, time.time(), args.budget)
    rows: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for group in GROUPS:
            found, more = collect({name: until[name] for name in group if name in until}, Path(folder))
            rows, machine = rows + found, (more or machine) | {"command": shlex.join(sys.argv)}
            for family in group:
                mine = [row for row in found if row["family"] == family]
                print(report(family, mine, machine) if mine else "", end="", flush=True)
            if args.out:
                Path(args.out).parent.mkdir(parents=True, exist_ok=True)
                Path(args.out).write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))


def deadlines(families: Sequence[str], now: float, budget_s: float) -> dict[str, float]:
    """When each family must be done: what one leaves over is the next one's."""
    wanted = [family for family in FAMILIES if family in families]
    whole, out = sum(SHARE[family] for family in wanted), {}
    for family in wanted:
        now += budget_s * SHARE[family] / whole
        out[family] = now
    return out


def collect(until: dict[str, float], folder: Path, script: str = __file__) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of some families, and the machine; the process of `script` is started again after a row that ended it."""
    rows: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    while until:
        done = [[row["family"], row["case"], row["backend"]] for row in rows]
        task = {"name": f"{next(iter(until))}{len(rows)}", "until": until, "done": done}
        end = max(until.values())
        lines, problem = run_child(script, task, folder, max(10.0, end - time.time()) + 15)
        before, started = len(rows), None
        for line in lines:
            machine = line.get("machine", machine)
            started = line.get("start", started)
            if "case" in line:
                rows.append(line)
                started = None
        if problem is None:
            break
        if started is not None:
            rows.append(dict(zip(("family", "case", "backend"), started, strict=True)) | {"error": problem})
        if len(rows) == before or time.time() > end:
            rows.append({"family": next(iter(until)), "case": "", "backend": "", "error": f"the rest did not run: {problem}"})
            break
    return rows, machine


# ---- in the process of a family --------------------------------------------------------------------------------------------


def run_families(task: dict[str, Any]) -> None:
    """Check and time the rows that are not done; append each to the task's file as it is known."""
    device = default_device()
    done = {tuple(key) for key in task["done"]}
    if not done:
        rates = {"matmul_flops": matmul_rate(device), "copy_bytes_per_s": copy_rate(device)}
        answer(task, {"machine": describe_machine(device) | rates})
    for family, until in task["until"].items():
        for case in cases(family, Sizes() if device.type == "cuda" else TINY, device):
            expected: dict[str, Tensor] | None = None
            for backend in case.backends:
                row = {"family": family, "case": case.title, "backend": backend}
                if tuple(row.values()) in done:
                    continue
                reason = case.why_not(backend)
                if reason is not None or time.time() > until:
                    answer(task, row | {"error": reason or "skipped: no time was left"})
                    continue
                answer(task, {"start": list(row.values())})
                try:
                    if expected is None and case.is_checked:
                        expected = reference(case, device)
                    answer(task, row | measure(case, backend, expected, device))
                except Exception as error:
                    answer(task, row | {"error": short(error)})
                free(device)  # raises where the device is lost, and so ends this process: the next one goes on


def reference(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Output and gradients in float32."""
    backend = "reference" if "reference" in case.backends else "eager"
    values = outputs(case.build(backend, torch.float32), device)
    free(device)
    return values


def outputs(problem: Problem, device: torch.device) -> dict[str, Tensor]:
    """Output, and the gradient of every leaf for a random gradient of the output."""
    out = problem.forward()
    found = {"out": out.detach()}
    if problem.leaves:
        gradient = draw(tuple(out.shape), 99, out.dtype, device) if out.ndim else torch.ones_like(out)
        grads = torch.autograd.grad(out, list(problem.leaves.values()), gradient)
        found |= {f"d{name}": grad for name, grad in zip(problem.leaves, grads, strict=True)}
    return found


def measure(
    case: Case, backend: str, expected: dict[str, Tensor] | None, device: torch.device, budget_s: float = 0.4
) -> dict[str, Any]:
    """Errors, times and memory of one way; `budget_s` for forward and backward, half of it for forward alone."""
    begin = time.perf_counter()
    problem = case.build(backend, compute_dtype(device))
    row: dict[str, Any] = {"flops": problem.flops, "moved": problem.moved}
    if expected is not None:
        found = outputs(problem, device)
        row["errors"] = {name: relative_error(found[name], value) for name, value in expected.items()}
        del found
    else:
        problem.forward()
    row["first_call_s"] = time.perf_counter() - begin
    row["forward_s"] = median_seconds(problem.forward, device, budget_s / 2)
    if problem.leaves:
        out = problem.forward()
        gradient = draw(tuple(out.shape), 99, out.dtype, device) if out.ndim else torch.ones_like(out)
        del out

        def both() -> None:
            torch.autograd.grad(problem.forward(), list(problem.leaves.values()), gradient)

        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            both()
            row["extra_gib"] = (torch.cuda.max_memory_allocated(device) - before) / 2**30
        row["both_s"] = median_seconds(both, device, budget_s)
    return row


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, Euclidean norms in float32."""
    norm = expected.float().norm()
    return float((found.float() - expected.float()).norm() / norm.clamp_min(1e-30))


def free(device: torch.device) -> None:
    """Give back what a row held."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


# ---- telling ---------------------------------------------------------------------------------------------------------------


def report(family: str, rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """A table for each case of a family, then what did not run and why."""
    header = [
        "backend",
        "error out",
        "worst gradient",
        "fwd ms",
        "fwd+bwd ms",
        "fwd rate",
        "fwd+bwd rate",
        "of peak",
        "extra GiB",
    ]
    parts = []
    for title in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == title]
        lines = [_line(row, machine) for row in mine if "error" not in row]
        parts.append(f"## {family}: {title}\n" + (table(header, lines) if lines else ""))
        parts[-1] += "".join(f"\n{row['backend']}: {row['error']}" for row in mine if "error" in row)
    return "\n\n".join(parts) + "\n"


def _line(row: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    errors = dict(row.get("errors", {}))
    out = errors.pop("out", None)
    worst = max(errors, key=errors.__getitem__, default=None)
    if row["moved"]:
        work, times, unit, scale, peak = row["moved"], 2.5, "GB/s", 1e9, machine["copy_bytes_per_s"]
    else:
        work, times, unit, scale, peak = row["flops"], 3.0, "TFLOP/s", 1e12, machine["matmul_flops"]
    forward, both = work / row["forward_s"], times * work / row["both_s"] if "both_s" in row else None
    return [
        row["backend"],
        "" if out is None else _error(out),
        "" if worst is None else f"{worst} {_error(errors[worst])}",
        f"{1000 * row['forward_s']:.3f}",
        "" if both is None else f"{1000 * row['both_s']:.3f}",
        f"{forward / scale:.4g} {unit}",
        "" if both is None else f"{both / scale:.4g} {unit}",
        f"{(both or forward) / peak:.0%}",
        f"{row['extra_gib']:.2f}" if "extra_gib" in row else "",
    ]


def _error(value: float) -> str:
    return f"{value:.1e}" + ("" if value < TOLERANCE else "!")  # what is not a number gets its mark too


if __name__ == "__main__":
    main()
