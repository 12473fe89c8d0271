"""Everything known of one checkpoint: `olmo checkpoints show runs/first --step 1000`."""

import argparse
from pathlib import Path
from typing import Any

from checkpoints.inspect.describe import Description, describe
from checkpoints.inspect.measures import to_json
from checkpoints.inspect.places import open_named
from checkpoints.inspect.readable import one_line, size
from checkpoints.inspect.tables import check_target, columns, value, write_json
from checkpoints.opening import open_checkpoint
from olmo_train.errors import run_command


def main(argv: list[str]) -> None:
    """Print it."""
    parser = argparse.ArgumentParser("olmo checkpoints show", description=__doc__)
    parser.add_argument("where", help="a run (its newest step), a step folder, a Hugging Face folder, or a release")
    parser.add_argument("--step", type=int, help="step of the run")
    parser.add_argument("--tensors", action="store_true", help="also read every tensor: norm, mean, std, min, max")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    args = parser.parse_args(argv)
    check_target(args.json)
    checkpoint = open_named(args.where) if args.step is None else open_checkpoint(args.where, args.step)
    description = describe(checkpoint, args.tensors)
    if args.json is not None:
        write_json(args.json, to_json(description))
    print("\n".join(lines(description)))


def lines(d: Description) -> list[str]:
    """The text that the command prints."""
    total = max(1, d.parameters["total"])
    parameters = [["total", f"{d.parameters['total']:,}", ""], ["active per token", f"{d.parameters['active']:,}", ""]]
    parameters += [[kind, f"{n:,}", f"{n / total:.1%}"] for kind, n in d.parameters_by_kind.items()]
    formats = ", ".join(f"{name} ({n} tensors)" for name, n in d.dtypes.items())
    out = [f"{d.where}: a {d.kind}, {formats}, {'with' if d.has_optimizer else 'without'} optimizer state"]
    for title, facts in (("Identity", d.identity), ("Training", d.training), ("Data", d.data), ("Architecture", d.architecture)):
        if facts:
            out += ["", f"{title}:", *columns([[name, _fact(name, fact)] for name, fact in facts.items()], (0, 1), "  ")]
    out += ["", "Parameters:", *columns(parameters, indent="  ")]
    if d.evaluations:
        rows = [[e.suite, e.label, ", ".join(f"{name} {value(x)}" for name, x in e.metrics.items())] for e in d.evaluations]
        out += ["", "Evaluations:", *columns(rows, (0, 1, 2), "  ")]
    files = [[name, f"{n:,}"] for name, n in d.files.items()]
    out += ["", f"Files, {size(sum(d.files.values()))}:", *columns(files, indent="  ")]
    if d.tensors is not None:
        rows = [["", "dtype", "shape", "norm", "mean", "std", "min", "max"]]
        for t in d.tensors:
            numbers = [value(x) for x in (t.norm, t.mean, t.std, t.low, t.high)]
            rows.append([t.name, t.dtype, " x ".join(map(str, t.shape)), *numbers])
        out += ["", "Tensors:", *columns(rows, (0, 1), "  ")]
    return out


def _fact(name: str, fact: Any) -> str:
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    if isinstance(fact, float):
        return f"{fact:.1%}" if name.endswith("_frac") else value(fact)
    if isinstance(fact, int) and abs(fact) >= 10_000:
        return f"{fact:,}"
    return value(None) if fact is None else one_line(fact)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
