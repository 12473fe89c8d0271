"""Two checkpoints, tensor by tensor: `olmo checkpoints diff A B`.

A and B: a step folder, a run (its newest step, or `runs/first@STEP`), a Hugging Face folder or a release; in any number formats.
"""

import argparse
from pathlib import Path

from checkpoints.inspect.compare import Compared, Difference, Part, Side, compare
from checkpoints.inspect.measures import to_json
from checkpoints.inspect.places import open_named
from checkpoints.inspect.readable import amount
from checkpoints.inspect.tables import check_target, columns, value, write_json
from olmo_train.errors import ConfigError, run_command

_TITLES = ("elements", "norm of A", "norm of B", "norm of B - A", "relative", "cosine", "max abs", "different")


def main(argv: list[str]) -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        "olmo checkpoints diff", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--top", type=int, default=10, help="matrices shown, those that moved most first")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--optimizer", action="store_true", help="also compare the optimizer's moments")
    args = parser.parse_args(argv)
    if args.top < 0:
        raise ConfigError(f"--top={args.top} must not be negative")
    check_target(args.json)
    difference = compare(open_named(args.a, args.optimizer), open_named(args.b, args.optimizer), args.optimizer)
    if args.json is not None:
        write_json(args.json, to_json(difference))
    print("\n".join(lines(difference, args.top)))


def lines(difference: Difference, top: int) -> list[str]:
    """The text that the command prints."""
    d = difference
    out = [f"A: {_side(d.a)}", f"B: {_side(d.b)}", "", *_part(d.weights, "weights", top)]
    out += [] if d.optimizer is None else ["", *_part(d.optimizer, "moments", top)]
    if d.config:
        rows = [["", "A", "B"], *([field.name, _short(field.a), _short(field.b)] for field in d.config)]
        out += ["", "Config:", *columns(rows, left=(0, 1, 2), indent="  ")]
    return out


def _part(part: Part, name: str, top: int) -> list[str]:
    out = [f"The {name}: {_verdict(part)}", *_mismatches(part)]
    if not part.all.n or part.is_equal:
        return out
    table = [["", *_TITLES], [f"all {name}", *_cells(part.all)]]
    table += [[kind, *_cells(values)] for kind, values in part.by_kind.items()]
    table += [[f"layer {layer}", *_cells(values)] for layer, values in part.by_layer.items()]
    out += ["", *columns(table, indent="  ")]
    movers = part.movers(top)
    if movers:
        rows = [["", *_TITLES], *([matrix.name, *_cells(matrix.values)] for matrix in movers)]
        out += ["", f"Of {len(part.matrices):,} matrices moved most:", *columns(rows, indent="  ")]
    return out


def _side(side: Side) -> str:
    parts = [side.where, "/".join(side.dtypes)]
    parts += [] if side.step is None else [f"step {side.step}"]
    parts += [] if side.tokens is None else [f"{side.tokens:,} tokens"]
    return ", ".join(parts)


def _verdict(part: Part) -> str:
    if part.is_equal:
        return "equal, bit for bit."
    if part.is_rounded:
        return "equal once the wider number format is rounded to the narrower one; not bit for bit."
    if not part.all.n:
        return "nothing can be compared, no tensor has the same name and shape in both."
    if part.all.n_rounded:
        return f"different, in {part.all.n_rounded:,} of {part.all.n:,} elements compared."
    return "equal where both have the tensor."


def _mismatches(part: Part) -> list[str]:
    out = []
    for side, names in (("A", part.only_in_a), ("B", part.only_in_b)):
        out += [f"  only in {side}: {len(names)} tensors: {', '.join(names[:5])}{', ...' if names[5:] else ''}"] if names else []
    out += [f"  another shape: {m.name}: {_shape(m.shape_a)} in A, {_shape(m.shape_b)} in B" for m in part.shapes[:10]]
    return [*out, f"  another shape: {len(part.shapes) - 10} more tensors"] if part.shapes[10:] else out


def _cells(values: Compared) -> list[str]:
    return [
        amount(values.n), value(values.norm_a), value(values.norm_b), value(values.norm_difference), value(values.relative),
        value(values.cosine, 6), value(values.max_abs), f"{values.n_rounded / max(1, values.n):.1%}",
    ]  # fmt: skip


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _short(text: object) -> str:
    words = str(text)
    return words if len(words) <= 60 else words[:57] + "..."


if __name__ == "__main__":
    raise SystemExit(run_command(main))
