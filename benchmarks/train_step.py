"""Full optimizer steps in tokens/s: this trainer and transformers' models on the same work, one after the other on one device.

    python benchmarks/train_step.py [--ours "label: name=value ..."]... [--peer "label: option=value ..."]... [name=value ...]
    python benchmarks/train_step.py model=olmo2_1b                       # the dense model, against Olmo2ForCausalLM

Every side is a process of its own with the same initial weights, batches and learning rates. It first trains --settle steps, so
that what is compiled is compiled and the router has begun to route, then --steps are counted: forward, backward, clipping and
update. Nothing balances a side's routing by force; the loads seen are printed. A batch that does not fit is tried again in
smaller micro-batches (--rows). The rate of a bf16 matmul of 8192 is measured before and after every side.

On a GPU the model is OLMoE-1B-7B at sequences of 4096 and 8 rows a step; on a CPU a tiny one, to see that everything runs. What
a peer can be told: PeerOptions in benchmarks/sides.py. Needs transformers (extra `dev`). A side that fails prints its error, and
the rest goes on. OLMo-core's trainer is not among the sides.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not benchmarks/, whose profile.py would hide Python's own

from benchmarks.measure import answer, answer_probe, probe, run_child, short, table
from benchmarks.workload import compose, load, merge, recipe_words, rows_to_try, write_corpus
from olmo_train.model.size import FLOPS_CONVENTION, flops_per_token

# The first is measured best elsewhere or expected best; the rest follow while time lasts.
PEERS_GPU = [
    "hf layers+cudnn: compile=layers attention=cudnn loss=compiled",
    "hf decoder: compile=decoder",
    "hf layers+fa4: compile=layers attention=flash_attention_4 loss=compiled",
    "hf model+cudnn: compile=model attention=cudnn",
    "hf eager: compile=none",
]
PEERS_CPU = ["hf eager: compile=none"]
# In the number formats a run on this card would have, and in the peers' own: weights and moments in bfloat16.
OURS_GPU = ["ours:", "ours, bf16 weights: optim.weight_dtype=bfloat16 optim.moment_dtype=bfloat16"]
OURS_CPU = ["ours:"]


@dataclass(frozen=True)
class Candidate:
    """One side, before it has run."""

    label: str
    words: tuple[str, ...]
    is_peer: bool


def main() -> None:
    args, overrides = _parser().parse_known_args()
    args.overrides = overrides
    if args.task:
        run_task(json.loads(Path(args.task).read_text()))
        return
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        machine = probe(__file__, work) | {"command": shlex.join(sys.argv)}
        words = compose(machine["memory_gib"] is not None, args.overrides)
        words += [f"data.sources.demo.path={work}/shards", f"run_dir={work}/run"]
        write_corpus(work / "shards", words, args.settle + args.steps)
        candidates = _candidates(args, machine["memory_gib"] is not None)
        results = []
        for candidate in candidates:
            left = args.budget - (time.perf_counter() - begin)
            results.append(run_candidate(candidate, words, machine, args, (work, left)))
            print(f"# {candidate.label}: {summary(results[-1])}", file=sys.stderr, flush=True)
            if args.out:
                save(Path(args.out), machine, words, results)
    print(report(machine, words, results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    label = '"LABEL: NAME=VALUE ..."'
    parser.add_argument("--ours", action="append", metavar=label, help="a variant of ours; default: as configured")
    parser.add_argument("--peer", action="append", metavar=label, help="a variant of transformers' side")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--settle", type=int, default=12, help="steps before the counted ones")
    parser.add_argument("--steps", type=int, default=20, help="counted steps at most")
    parser.add_argument("--step-seconds", type=float, default=20, help="for the counted steps of a side")
    parser.add_argument("--rows", type=int, nargs="+", help="sequences of a micro-batch, tried in turn until one fits")
    parser.add_argument("--budget", type=float, default=520, help="seconds for everything; sides left over are skipped")
    parser.add_argument("--side-budget", type=float, default=240, help="seconds for one side, its compilation included")
    parser.add_argument("--out", help="also write everything as JSON")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    return parser


def _candidates(args: argparse.Namespace, on_gpu: bool) -> list[Candidate]:
    """Ours and peers in turn, so that the first of each has run if time runs out."""
    ours = [_candidate(text, False) for text in args.ours or (OURS_GPU if on_gpu else OURS_CPU)]
    peers = [] if args.no_peers else [_candidate(text, True) for text in args.peer or (PEERS_GPU if on_gpu else PEERS_CPU)]
    paired = [candidate for pair in zip(ours, peers, strict=False) for candidate in pair]
    return [*paired, *ours[len(peers) :], *peers[len(ours) :]]


def _candidate(text: str, is_peer: bool) -> Candidate:
    label, _, words = text.partition(":")
    return Candidate(label.strip(), tuple(shlex.split(words)), is_peer)


def run_candidate(
    candidate: Candidate, config: Sequence[str], machine: dict[str, Any], args: argparse.Namespace, place: tuple[Path, float]
) -> dict[str, Any]:
    """Run one side in the first micro-batch that fits. `place`: a folder, and the seconds left."""
    work, left = place
    begin = time.perf_counter()
    words = list(config) if candidate.is_peer else merge(config, candidate.words)
    task = asdict(candidate) | {"settle": args.settle, "steps": args.steps, "budget_s": args.step_seconds}
    result: dict[str, Any] = {}
    sized = words
    asked = (*args.overrides, *(() if candidate.is_peer else candidate.words))
    for rows in args.rows or rows_to_try(words, asked, machine["memory_gib"], candidate.is_peer):
        seconds = min(args.side_budget, left - (time.perf_counter() - begin))
        if seconds < 20:
            return asdict(candidate) | (result or {"error": "skipped: no time was left"})
        data = load(words).data
        sized = merge(words, [f"data.micro_batch_size={rows * data.seq_len}"])
        if not candidate.is_peer:
            sized = merge(recipe_words(sized, machine["memory_gib"]), sized)
        task |= {"name": candidate.label, "config": sized}
        lines, problem = run_child(__file__, task, work, seconds)
        result = lines[-1] if lines else {"error": problem or "no result"}
        if "out of memory" not in result.get("error", "").lower():
            break
    return asdict(candidate) | result | {"config": sized, "rows": rows}


def run_task(task: dict[str, Any]) -> None:
    """Be a side (or the probe of the machine), and write the result."""
    if answer_probe(task):
        return
    from benchmarks.sides import Measurement, measure_side

    how = Measurement(task["settle"], task["steps"], task["budget_s"])
    try:
        answer(task, measure_side(task["config"], task["words"] if task["is_peer"] else None, how))
    except Exception as error:
        answer(task, {"error": short(error)})
        raise


# ---- telling ---------------------------------------------------------------------------------------------------------------


def save(path: Path, machine: dict[str, Any], config: Sequence[str], results: list[dict[str, Any]]) -> None:
    """Write what is known so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "config": list(config), "sides": results}, indent=1) + "\n")


def summary(result: dict[str, Any]) -> str:
    """One line for whoever waits."""
    if "error" in result:
        return result["error"]
    return f"{median(result['step_s']):.3f} s a step, ready after {result['ready_s']:.0f} s, loss {result['losses'][-1]:.3f}"


def report(machine: dict[str, Any], config: Sequence[str], results: list[dict[str, Any]]) -> str:
    """Everything a reader needs to repeat or doubt the numbers."""
    run = load(config)
    tokens, flops = run.data.global_batch_size, flops_per_token(run.model, run.data.seq_len)
    matmul = max(machine["matmul_rates"] + [rate for r in results for rate in r.get("matmul_rates", [])])
    parts = [
        "\n".join(f"{name}: {value}" for name, value in machine.items() if name != "matmul_rates"),
        f"model {flops / 1e9:.4f} GFLOP per token at {run.data.seq_len} ({FLOPS_CONVENTION}); {tokens:,} tokens a step",
        f"matmul rate: {matmul / 1e12:.4g} TFLOP/s, the highest of those measured between the sides",
        _rates(results, tokens, flops, matmul),
        _ratios(results, tokens),
        _losses(results),
        "\n".join(_facts(result) for result in results),
    ]
    return "\n\n".join(part for part in parts if part)


def _rates(results: list[dict[str, Any]], tokens: int, flops: float, matmul: float) -> str:
    header = [
        "side",
        "tok/s fwd+bwd",
        "tok/s step",
        "range",
        "TFLOP/s",
        "of matmul",
        "peak GiB",
        "rows",
        "MHz",
        "W",
        "expert load",
    ]
    rows = []
    for r in results:
        if "error" in r:
            rows.append([r["label"], "failed, see below", *[""] * (len(header) - 2)])
            continue
        speed, forward_backward = tokens / median(r["step_s"]), tokens / median(r["forward_backward_s"])
        spread = f"{tokens / max(r['step_s']):,.0f}-{tokens / min(r['step_s']):,.0f}"
        load = f"{r['idlest_over_mean']:.2f}-{r['busiest_over_mean']:.2f}" if "busiest_over_mean" in r else ""
        rows.append([
            r["label"], f"{forward_backward:,.0f}", f"{speed:,.0f}", spread, f"{speed * flops / 1e12:.4g}",
            f"{speed * flops / matmul:.1%}", _number(r["peak_gib"]), str(r["rows"]),
            _number(r["gpu"].get("sm_clock_mhz")), _number(r["gpu"].get("power_w")), load,
        ])  # fmt: skip
    return table(header, rows) + "\nexpert load: that of the idlest and of the busiest expert over the mean, meaned over layers"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _ratios(results: list[dict[str, Any]], tokens: int) -> str:
    good = [r for r in results if "error" not in r]
    ours, peers = [r for r in good if not r["is_peer"]], [r for r in good if r["is_peer"]]
    if not ours or not peers:
        return "no ratio: a side is missing"
    lines = []
    for what, key in (("full step", "step_s"), ("forward and backward", "forward_backward_s")):
        mine, theirs = (min(side, key=lambda r: median(r[key])) for side in (ours, peers))
        ratio = median(theirs[key]) / median(mine[key])
        lines.append(f"{what}: best of ours / best peer = {mine['label']} / {theirs['label']} = {ratio:.3f}")
    return "\n".join(lines)


def _losses(results: list[dict[str, Any]]) -> str:
    good = [r for r in results if "error" not in r]
    if not good:
        return ""
    last = min(len(r["losses"]) for r in good)
    steps = sorted({1, 2, 5, last, *range(10, last, 10)} & set(range(1, last + 1)))
    rows = [[r["label"], *(f"{r['losses'][s - 1]:.4f}" for s in steps)] for r in good]
    return table(["loss (nats) at step", *map(str, steps)], rows)


def _facts(r: dict[str, Any]) -> str:
    name = f"{r['label']} ({' '.join(r['words'])})"
    if "error" in r:
        return f"{name}: {r['error']}"
    mean_s = sum(r["step_s"]) / len(r["step_s"])
    matmuls = ", ".join(f"{rate / 1e12:.4g}" for rate in r["matmul_rates"])
    return (
        f"{name}: {r['kernels']}; compile {r['compile']}; weights {r['weights']}, moments {r['moments']}; "
        f"computes {r['computes']}; {len(r['step_s'])} steps counted after {r['settle']}, ready after {r['ready_s']:.0f} s; "
        f"mean step {mean_s:.4f} s, median {median(r['step_s']):.4f} s; matmul before and after {matmuls} TFLOP/s"
    )


if __name__ == "__main__":
    main()
